"""The result of a replay, its summary, page and picture; pure."""
