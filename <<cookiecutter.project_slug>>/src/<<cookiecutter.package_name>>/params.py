"""params.yaml, typed: everything that changes a result."""

from flywheel_ml.core import params

from .estimators import TrainParams
from .gates import GateParams


class Params(params.Params):
    """The whole of params.yaml. A group of your own is one more field."""

    train: TrainParams
    gates: GateParams
