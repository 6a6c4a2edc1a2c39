"""From a pipeline to a bundle."""
