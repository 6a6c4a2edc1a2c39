"""The flows: they call the stages in order, retry steps, and hold every side effect outside a stage."""
