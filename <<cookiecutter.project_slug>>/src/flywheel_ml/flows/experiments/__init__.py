"""Plans and reports of experiments."""
