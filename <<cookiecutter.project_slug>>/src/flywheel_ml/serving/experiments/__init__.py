"""Challenger and shadow models that run alongside the champion."""
