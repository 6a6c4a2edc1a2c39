"""How well a model performs: intervals, label arrival, variants, estimates without labels, staleness."""
