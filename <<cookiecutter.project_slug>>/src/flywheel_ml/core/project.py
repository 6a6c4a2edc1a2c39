"""The interface between a project and this library: one object with everything specific to the project."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from flywheel_ml.core import paths
from flywheel_ml.core.features import Feature
from flywheel_ml.core.params import Params
from flywheel_ml.utils.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Project:
    """A project as the library sees it.

    Parts that only training needs are named as `module:attribute` and imported on use, so that a server loads
    neither the libraries of training nor the project's code for it.

    Attributes:
        package: import name of the project's package, which lies in `src/`.
        features: features computed from the contract's columns, see `features.Featurizer`.
        source: function that writes the raw table to the path that it is given.
        params: class of params.yaml, with the parameters of the project's own estimators and gates.
        gates: name → gate, see `model.evaluation.gate`.
        alerts: rules that raise alerts from what monitoring found, see `monitoring.alerts`.
        sinks: functions that receive notifications of alerts, in addition to the sinks of the settings.
        flows: module with the Prefect flows; its `train` is what `run` runs.
        app: function that makes the FastAPI app from settings, metrics, spans and features.
    """

    package: str
    features: tuple[Feature, ...] = ()
    source: str = ""
    params: str = "flywheel_ml.core.params:Params"
    gates: str = "flywheel_ml.model.evaluation.gate:STANDARD_GATES"
    alerts: str = "flywheel_ml.monitoring.alerts:STANDARD_RULES"
    sinks: str = ""
    flows: str = ""
    app: str = "flywheel_ml.serving.app:create_app"

    @property
    def reference(self) -> str:
        """`module:attribute` of this object, for processes that import it themselves."""
        return f"{self.package}.project:PROJECT"

    @property
    def folder(self) -> Path:
        """Folder of the project's code, relative to its root."""
        return Path("src") / self.package

    def load_params(self, path: Path = paths.PARAMS) -> Params:
        """Read params.yaml.

        Raises:
            ConfigError: the file is missing or malformed.
        """
        params: type[Params] = import_reference(self.params)
        return params.load(path)

    def fetch(self, path: Path) -> None:
        """Write the raw table to `path`, as the project's source does."""
        fetch: Callable[[Path], None] = import_reference(self.source)
        fetch(path)


def import_reference(reference: str) -> Any:
    """Import the object that `module:attribute` names.

    Raises:
        ConfigError: the module or attribute does not exist or cannot be imported.
    """
    module, _, name = reference.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"project.py: '{reference}' cannot be imported: {error}") from None
