"""Builds the images of a project and runs its stack of containers on one machine."""
