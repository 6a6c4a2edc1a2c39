"""From a request to logged predictions, in batches."""
