"""A replay: the project lives through the past of its own table, in a folder of its own."""
