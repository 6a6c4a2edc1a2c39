"""Names and values of business metrics, such as revenue, that arrive as labels of predictions."""

import re

MODEL_LOSS = "loss"
"""Stands for the model's own loss wherever a metric is named."""
METRIC_NAME = r"^[a-z][a-z0-9_]{0,62}$"
MAX_VALUE = 1e12
"""Largest absolute value, so that sums of squares of many rows stay exact enough."""


def find_name_fault(name: str) -> str:
    """Return what is wrong with the name of a business metric; empty if nothing is."""
    if name == MODEL_LOSS:
        return f"'{MODEL_LOSS}' is the model's own loss; send a label, or choose another name"
    if not re.fullmatch(METRIC_NAME, name):
        return f"'{name[:100]}' is not a name of a metric; use lower case, digits and _, such as revenue or order_value"
    return ""
