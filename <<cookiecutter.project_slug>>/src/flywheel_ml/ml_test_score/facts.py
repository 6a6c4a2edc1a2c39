"""Collects everything that the checks look at: one reading of reports, model, tests, history and traffic."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from flywheel_ml.core import bundle, paths, serving_folder
from flywheel_ml.core.bundle import Bundle, Manifest
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows import compute, schema_changes
from flywheel_ml.flows.compute import Measurements
from flywheel_ml.flows.versioning import dvc_stages, git
from flywheel_ml.flows.versioning.git import LastChange
from flywheel_ml.ml_test_score import attacks, traffic
from flywheel_ml.ml_test_score.attacks import AttackResult, TestResult
from flywheel_ml.ml_test_score.manual import ManualTest, read_manual_tests
from flywheel_ml.ml_test_score.personal_data import PersonalData, search
from flywheel_ml.ml_test_score.traffic import Traffic
from flywheel_ml.model.evaluation.compute import ComputeFigures, run_calibration_loop
from flywheel_ml.utils.errors import ProjectError
from flywheel_ml.utils.files import read_json

REPORTS = (
    "ingest", "validation", "privacy", "split", "train", "tuning", "evaluation", "ablation",
)  # fmt: skip

LOCKS = (dvc_stages.LOCK, Path("uv.lock"))

TRIES = 3
"""How often the latency is measured next to the calibration loop."""


class Report(NamedTuple):
    """Content of a JSON file, and when it was written."""

    content: Any
    at: datetime


class Pipeline(NamedTuple):
    """Readable reports by path, stages that would run again with the reason, and when each lock was written."""

    reports: Mapping[str, Report]
    outdated: Mapping[str, str]
    locks: Mapping[str, datetime]


class Champion(NamedTuple):
    """The served version, its digest, its lineage, and why it cannot serve, if so."""

    version: str
    digest: str
    lineage: Mapping[str, Any]
    refusal: str
    problem: str


class Model(NamedTuple):
    """The packaged model, and what is measured of it.

    Attributes:
        manifest: of the verified bundle; None if it has a `problem`.
        at: when it was packaged.
        background_rows: rows that explanations compare with.
        measured: by the last run.
        baseline: of computing performance.
        current: computing performance as of now.
        champion: None if nothing is served.
        installed: versions of the libraries that the manifest names, as installed.
    """

    manifest: Manifest | None
    problem: str
    digest: str = ""
    at: datetime | None = None
    background_rows: int = 0
    measured: Measurements | None = None
    baseline: ComputeFigures | None = None
    current: ComputeFigures | None = None
    champion: Champion | None = None
    installed: Mapping[str, str] = MappingProxyType({})


class History(NamedTuple):
    """The files that specify the model: those that differ from the commit, and the last commit that changed them."""

    changed: tuple[str, ...]
    last: LastChange | None


class Facts(NamedTuple):
    """All facts about a project at one time."""

    now: datetime
    project: Project
    contract: Contract
    params: Params
    pipeline: Pipeline
    model: Model
    history: History
    personal: PersonalData
    traffic: Traffic
    tests: Mapping[str, TestResult]
    code: str
    manual: Mapping[str, ManualTest]

    def judge_attack(self, name: str) -> AttackResult:
        """Judge an attack by the recorded tests."""
        return attacks.judge_attack(name, dict(self.tests), self.code, self.now)


def collect(
    project: Project, settings: Settings, now: datetime | None = None, outdated: Mapping[str, str] | None = None
) -> Facts:
    """Read all facts of the project in the current folder.

    Args:
        project: the project.
        settings: where the log and the serving folder are.
        now: the time to which ages refer.
        outdated: stages that would run again, if the caller knows them; DVC takes a second to tell.
    """
    contract, params = Contract.load(paths.CONTRACT), project.load_params()
    model = _read_model(project, settings, contract)
    spec = (str(paths.PARAMS), str(paths.CONTRACT), str(dvc_stages.GRAPH), str(project.folder))
    return Facts(
        now=now or datetime.now(UTC),
        project=project,
        contract=contract,
        params=params,
        pipeline=Pipeline(
            _read_reports(),
            dvc_stages.list_outdated() if outdated is None else outdated,
            {path.as_posix(): read_time(path) for path in LOCKS if path.is_file()},
        ),
        model=model,
        history=History(tuple(git.list_changed(*spec)), git.find_last_change(*spec)),
        personal=search(settings, contract, params),
        traffic=traffic.examine(project, settings, contract, params),
        tests=attacks.read_results(),
        code=attacks.hash_code(Path()),
        manual=read_manual_tests(),
    )


def read_time(path: Path) -> datetime:
    """When a file was written."""
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _read_reports() -> dict[str, Report]:
    found = {}
    for path in (*(paths.REPORTS / f"{name}.json" for name in REPORTS), schema_changes.REPORT):
        try:
            found[path.as_posix()] = Report(read_json(path), read_time(path))
        except (OSError, ValueError):
            continue
    return found


def _read_model(project: Project, settings: Settings, contract: Contract) -> Model:
    champion = _read_champion(project, settings, contract)
    try:
        opened = Bundle.open(paths.BUNDLE, features=project.features)
    except ProjectError as error:
        return Model(None, str(error), champion=champion)
    measured = compute.read_measurements()
    return Model(
        opened.manifest,
        "",
        opened.digest,
        read_time(paths.BUNDLE / bundle.MANIFEST),
        len(next(iter(opened.background.values()))) if opened.background else 0,
        measured,
        compute.read_baseline(),
        _measure_now(opened, measured),
        champion,
        {name: _find_version(name) for name in opened.manifest.libraries},
    )


def _measure_now(opened: Bundle, measured: Measurements | None) -> ComputeFigures | None:
    """Measure the latency again; training and memory are those of the last run. None if the model cannot predict."""
    from flywheel_ml.data import tables
    from flywheel_ml.model.evaluation import speed

    if measured is None or not paths.SPLITS["test"].is_file():
        return None
    rows = tables.read(paths.SPLITS["test"], opened.contract).head(speed.ROWS)
    columns = tables.to_columns(rows, opened.contract.inputs)
    try:
        # Other processes slow the one or the other down; the best pair shows the code.
        pairs = [
            (run_calibration_loop(), speed.measure_latency_ms(opened, columns, time.thread_time)) for _ in range(TRIES)
        ]
    except ProjectError:
        return None
    calibration, latency = min(pairs, key=lambda pair: pair[1] / pair[0])
    scale = calibration / measured.compute.calibration_ms
    trained = measured.compute.train_cpu_us
    return measured.compute.model_copy(
        update={
            "calibration_ms": calibration,
            "latency_cpu_ms": latency,
            "train_cpu_us": trained * scale if trained else None,
        }
    )


def _read_champion(project: Project, settings: Settings, contract: Contract) -> Champion | None:
    from flywheel_ml.model.registration import roles

    try:
        routing = serving_folder.read_routing(settings.serving_folder)
    except ProjectError:
        return None
    if (ref := routing.champion) is None:
        return None
    path = serving_folder.bundle_folder(settings.serving_folder, ref)
    try:
        Bundle.open(path, ref.digest, project.features)
        problem = ""
    except ProjectError as error:
        problem = str(error)
    try:
        lineage = read_json(path / bundle.LINEAGE)
    except (OSError, ValueError):
        lineage = {}
    state = None
    if settings.has_tracking_server:
        from flywheel_ml.model.registration.registry import Registry

        state = Registry.open(settings, contract.name).get_state(ref.version)
    else:
        state = roles.read_state(settings, contract.name, ref.version)
    refusal = "the registry does not know it"
    if state is not None:
        refusal = f"a gate refused it ({state.refusal}), and it was promoted all the same" if state.refusal else ""
        if state.champion != (ref.version, ref.digest):
            refusal = f"its role is '{state.role}'"
    return Champion(ref.version, ref.digest, lineage, refusal, problem)


def _find_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
