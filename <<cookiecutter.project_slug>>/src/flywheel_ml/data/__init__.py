"""From the outside world to three checked, split tables."""
