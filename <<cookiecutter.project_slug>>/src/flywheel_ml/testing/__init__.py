"""Helpers for a project's tests: synthetic rows, small bundles, and servers."""
