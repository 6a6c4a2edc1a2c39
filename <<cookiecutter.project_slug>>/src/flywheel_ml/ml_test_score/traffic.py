"""What live traffic shows, where there is some: skew, quality, and whether offline metrics predict online ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from flywheel_ml.core import bundle, serving_folder
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows import monitoring
from flywheel_ml.flows.quality.skew import Skew, check_skew
from flywheel_ml.monitoring.performance.variants import measure_others
from flywheel_ml.monitoring.quality import DECIDING_METRIC, is_error
from flywheel_ml.monitoring.result import Result
from flywheel_ml.monitoring.sources.log_window import Log, Span
from flywheel_ml.monitoring.sources.logged_rows import SOURCE
from flywheel_ml.prediction_log import Reader, now_us
from flywheel_ml.utils.errors import ProjectError
from flywheel_ml.utils.files import read_json

LATEST = monitoring.FOLDER / f"{monitoring.LATEST}.json"
REPLAYED_ROWS = 200
MIN_VERSIONS = 3
MIN_CORRELATION = 0.5


class Agreement(NamedTuple):
    """Offline metric (test rows) and online metric (labelled rows of the log) of some versions."""

    metric: str
    offline: Mapping[str, float]
    online: Mapping[str, float]

    @property
    def correlation(self) -> float:
        """Rank correlation (Spearman 1904) over the versions; 0 if all have one value."""
        from scipy.stats import rankdata

        ranks = [rankdata([values[name] for name in self.offline]) for values in (self.offline, self.online)]
        spread = [float(np.std(one)) for one in ranks]
        return float(np.corrcoef(*ranks)[0, 1]) if all(spread) else 0.0


class Traffic(NamedTuple):
    """Facts about live traffic; None where there is none.

    Attributes:
        rows: in the prediction log.
        skew: difference between logged and replayed predictions; `skew_problem` if nothing could be replayed.
        monitored: the latest monitoring result of the log; `monitored_problem` if there is none.
        agreement: of at least three versions.
    """

    rows: int = 0
    skew: Skew | None = None
    skew_problem: str = ""
    monitored: Result | None = None
    monitored_problem: str = ""
    agreement: Agreement | None = None


def examine(project: Project, settings: Settings, contract: Contract, params: Params) -> Traffic:
    """Replay logged rows, read the latest monitoring result, and compare the versions in the log."""
    reader = Reader(settings.prediction_log)
    rows = sum(reader.count_hours().values())
    if not rows:
        return Traffic()
    found, problem = None, ""
    try:
        found = check_skew(project, settings, lambda: _open_registry(project, settings, contract), REPLAYED_ROWS)
    except ProjectError as error:
        problem = str(error)
    agreement = measure_agreement(settings, contract, params)
    return Traffic(rows, found, problem, *_read_result(), agreement)


def measure_agreement(settings: Settings, contract: Contract, params: Params) -> Agreement | None:
    """Compare the offline and the online metric of the versions in the log with enough labels.

    None if fewer than three versions have them; versions with a damaged bundle do not count.
    """
    metric = DECIDING_METRIC[contract.task]
    sign = -1.0 if is_error(metric) else 1.0
    log, confidence = Log(Reader(settings.prediction_log)), params.monitor.confidence_level
    offline, online = {}, {}
    for found in measure_others(log, contract, "", Span(0, now_us() + 1), confidence):
        path = _find_bundle(settings, found.model_version)
        if path is None or found.metric is None or found.labelled < params.monitor.min_labels:
            continue
        try:
            tested = bundle.verify(path).metrics["test"].get(metric)
        except ProjectError:  # `infrastructure.validated` names a damaged champion.
            continue
        if tested is not None:
            offline[found.model_version], online[found.model_version] = sign * tested, sign * found.metric[0]
    return Agreement(metric, offline, online) if len(offline) >= MIN_VERSIONS else None


def _find_bundle(settings: Settings, number: str) -> Path | None:
    folders = settings.serving_folder.joinpath(serving_folder.BUNDLES).glob(f"{number}*/{bundle.MANIFEST}")
    return next((path.parent for path in folders if path.parent.name.rpartition("-")[0] in ("", number)), None)


def _open_registry(project: Project, settings: Settings, contract: Contract) -> Any:
    from flywheel_ml.model.registration.registry import Registry

    return Registry.open(settings, contract.name, project)


def _read_result() -> tuple[Result | None, str]:
    try:
        found = Result.model_validate(read_json(LATEST), strict=False)
    except FileNotFoundError:
        return None, "the log has rows and was not monitored"
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        return None, f"{LATEST} is not a monitoring result: {place}: {error.errors()[0]['msg']}"
    except (OSError, ValueError) as error:
        return None, f"{LATEST} cannot be read: {error}"
    if found.source != SOURCE:
        return None, f"{LATEST} is about a {found.source}, not the log"
    return found, ""
