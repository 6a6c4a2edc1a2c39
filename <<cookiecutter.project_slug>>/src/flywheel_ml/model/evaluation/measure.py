"""Measures what the gates need and a bundle does not contain: speed, size, cost of features, stability."""

import time
from typing import Any

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Columns
from flywheel_ml.core.params import EvaluateParams
from flywheel_ml.model.evaluation import feature_rules, speed, stability


def measure_candidate(opened: Bundle, columns: Columns, params: EvaluateParams) -> dict[str, Any]:
    """Measure a bundle on some rows of its input columns; returns fields of `Candidate`."""
    return {
        "latency_ms": speed.measure_latency_ms(opened, columns),
        "latency_cpu_ms": speed.measure_latency_ms(opened, columns, time.thread_time),
        "size_mb": speed.measure_size_mb(opened.path),
        "interval_level": params.interval_level,
        "groups": params.groups,
        "input_columns": tuple(column.name for column in opened.contract.inputs),
        "feature_us": feature_rules.measure_feature_cost(opened, columns),
        "unstable": stability.find_unstable(opened, columns),
    }
