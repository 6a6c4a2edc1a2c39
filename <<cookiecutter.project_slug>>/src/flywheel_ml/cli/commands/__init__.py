"""One module for each group of commands; each imports its heavy libraries itself, because `--help` must not wait."""
