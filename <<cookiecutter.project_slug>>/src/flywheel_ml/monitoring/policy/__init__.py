"""The policy: what findings lead to, and the file of decisions."""
