"""From a rolled-out bundle to answers over HTTP."""
