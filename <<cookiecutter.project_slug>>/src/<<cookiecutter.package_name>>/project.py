"""The parts of this project that the library uses."""

from flywheel_ml.core.project import Project

from .features import FEATURES

PROJECT = Project(
    package=__package__,
    features=FEATURES,
    source=f"{__package__}.source:fetch",
    params=f"{__package__}.params:Params",
    gates=f"{__package__}.gates:GATES",
    alerts=f"{__package__}.alerts:ALERTS",
    sinks=f"{__package__}.alerts:SINKS",
    flows=f"{__package__}.flows",
    app=f"{__package__}.app:create_app",
)
