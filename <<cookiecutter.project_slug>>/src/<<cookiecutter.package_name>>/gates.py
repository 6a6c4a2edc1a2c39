"""What a model must pass before it may be promoted.

The standard gates (bundle size, latency, slices and others, listed in docs/how-to.md) need only their threshold in
params.yaml. A gate of your own is a function, its threshold in `GateParams`, and a row in `GATES`:

    def is_sharp(candidate: gate.Candidate, params: GateParams) -> tuple[bool, str]:
        found = gate.get_measure(candidate, "test", "brier")
        return found <= params.brier, f"Brier score {found:.4f}, allowed {params.brier:g}"
"""

from flywheel_ml.core import params
from flywheel_ml.model.evaluation import gate


class GateParams(params.GateParams):
    """Thresholds, `gates` in params.yaml; a field with a default may be omitted."""


GATES: dict[str, gate.Gate] = {**gate.STANDARD_GATES}
