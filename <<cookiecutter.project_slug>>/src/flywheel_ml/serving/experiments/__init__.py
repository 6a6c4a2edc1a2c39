"""Challenger and shadow beside the champion."""
