"""Trains small bundles with the stages of the pipeline."""

from flywheel_ml.model.packaging.in_memory import build_bundle as make_bundle

__all__ = ["make_bundle"]
