"""Labels: how they are stored, and which prediction each belongs to."""
