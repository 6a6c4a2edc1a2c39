"""The training steps: raw table → DVC stages → gates → MLflow registry → serving folder."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from flywheel_ml.core import bundle, metrics, paths, serving_folder
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import TRAINING_GROUPS, Params
from flywheel_ml.core.project import Project, import_reference
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows import run_state, schema_changes
from flywheel_ml.flows.compute import record_measurements
from flywheel_ml.flows.orchestration import engine
from flywheel_ml.flows.progress import Progress
from flywheel_ml.flows.versioning import dvc_stages, git
from flywheel_ml.model.evaluation import gate
from flywheel_ml.model.evaluation.gate import NO_SIGNAL, Candidate, GateResult
from flywheel_ml.utils import formatting
from flywheel_ml.utils.errors import DataError, ProjectError
from flywheel_ml.utils.files import read_json, remove_leftovers, sha256_file
from flywheel_ml.utils.process import get_user_name

if TYPE_CHECKING:
    from flywheel_ml.model.registration.registry import Registry, Version
    from flywheel_ml.model.training.tune import Trial

# MLflow and scikit-learn are imported when needed: Prefect's server takes longest to start, so it starts first.

NAME = "training"


class TrainingResult(NamedTuple):
    """Result of a training run: a version, its role (see `model.registration.roles`) and the checks of the gates."""

    version: str
    role: str
    checks: list[GateResult]


class TrainingContext(NamedTuple):
    """State that the steps of a training run share; `progress` prints each step."""

    project: Project
    settings: Settings
    contract: Contract
    params: Params
    registry: "Registry"
    progress: Progress

    @classmethod
    def begin(cls, project: Project, settings: Settings, progress: Progress) -> Self:
        """Read contract and parameters, open the registry, and remove incomplete files of a killed run."""
        contract, params = Contract.load(paths.CONTRACT), project.load_params()
        remove_leftovers(
            Path(), paths.TABLE.parent, *{path.parent for path in paths.SPLITS.values()}, paths.REPORTS, paths.PLOTS
        )
        return cls(project, settings, contract, params, _open_registry(project, settings, contract.name), progress)


def run(project: Project, settings: Settings, progress: Progress) -> TrainingResult:
    """Train under Prefect, with a private server unless one is configured.

    Raises:
        Busy: another run has locked the project.
        ProjectError: a stage failed.
    """
    name = Contract.load(paths.CONTRACT).name
    with engine.lock_project(run_state.FOLDER, "run"), ExitStack() as stack:
        with progress.step("prepare", "flow server and model registry") as step:
            # Opening the registry (mostly imports and migrations) overlaps with the start of the server.
            abandoned = stack.enter_context(
                engine.connect_api(run_state.FOLDER / "prefect", lambda: _open_registry(project, settings, name))
            )
            step.note = "flow server and model registry are ready"
            if abandoned:
                step.note += f"; {abandoned} killed run(s) marked as crashed"
        train: Callable[[TrainingContext], TrainingResult] = import_reference(f"{project.flows}:train")
        return engine.run_flow(NAME, lambda: train(TrainingContext.begin(project, settings, progress)))


def recover_registry(context: TrainingContext) -> None:
    """Register the served champion again if the registry was lost."""
    if restored := engine.task("recover", _recover, context.registry, context.settings):
        with context.progress.step("registry", "lost") as step:
            step.note = restored


def fetch_raw_data(context: TrainingContext) -> None:
    """Make sure that the raw table exists and is tracked by DVC."""
    path = context.params.data.raw
    with context.progress.step("raw data", str(path)) as step:
        step.note = engine.task("raw data", provide_raw_data, context.project, path)


def run_stages(context: TrainingContext) -> None:
    """Bring the stages of dvc.yaml up to date, in order."""
    for name, description in dvc_stages.read_stages().items():
        with context.progress.step(name, description) as step:
            step.idle = not engine.task(name, dvc_stages.reproduce, name)
            if step.idle:
                step.note = "unchanged"
            elif note := _summarize_stage(name, context.contract, context.params):
                step.note = note
            if name == "ingest" and (changes := schema_changes.report_changes()):
                step.note = f"the upstream schema changed: {changes}"


def check_gates(context: TrainingContext) -> list[GateResult]:
    """Compare the bundle with the champion and run every gate."""
    with context.progress.step("gates", "may it be promoted?") as step:
        candidate = engine.task(
            "compare", compare_with_champion, context.project, context.registry, context.settings, context.contract
        )
        measured = engine.task("measure", measure_bundle, context.project, context.contract, context.params)
        candidate = candidate._replace(**measured)
        record_measurements(candidate, context.contract, context.progress)
        checks = gate.check_gates(candidate, context.params.gates, import_reference(context.project.gates))
        failed = [check for check in checks if not check.passed]
        step.note = f"{len(checks) - len(failed)} of {len(checks)} passed"
    return checks


def register_version(context: TrainingContext, checks: list[GateResult]) -> "Version":
    """Log the run and register the bundle with the checks of the gates."""
    with context.progress.step("register", "log the run, register the bundle") as step:
        version = engine.task("register", register_bundle, context.registry, context.contract, context.params, checks)
        role = engine.task("decide", assign_role, context.registry, version, context.params)
        step.note = f"version {version.number}: {role}"
    return version


def roll_out(context: TrainingContext) -> None:
    """Bring the serving folder in line with the champion."""
    with context.progress.step("roll out", "serving folder") as step:
        served = engine.task("roll out", _roll_out, context.registry, context.settings)
        step.note = f"the champion is version {served}" if served else "no champion to serve"
        step.idle = not served


def finish(context: TrainingContext, version: "Version", checks: list[GateResult]) -> TrainingResult:
    """Record that the run completed, so that the next run does nothing unless something changes."""
    role = context.registry.get_state(version.number).role
    outcome = {"version": version.number, "role": role, "seconds": context.progress.seconds}
    schema_changes.record_schema()
    run_state.record_run(context.project, context.settings, context.params, outcome)
    return TrainingResult(version.number, role, checks)


def provide_raw_data(project: Project, path: Path) -> str:
    """Make sure that the raw table exists and is tracked by DVC; return a summary."""
    if path.is_file():
        return f"{path} changed: recorded with DVC" if dvc_stages.track(path) else f"{path} as recorded"
    tracked = dvc_stages.is_tracked(path)
    if tracked and dvc_stages.restore(path):
        return f"{path} restored by DVC"
    project.fetch(path)
    if not path.is_file():
        raise DataError(
            f"{path} does not exist after {project.source} ran; make it write the table to the path it receives"
        )
    differs = dvc_stages.track(path)
    if not tracked:
        return f"{path} fetched and recorded with DVC"
    comparison = "it differs from the recorded version" if differs else "it equals the recorded version"
    return f"{path} fetched again, because DVC has no copy; {comparison}"


def compare_with_champion(project: Project, registry: "Registry", settings: Settings, contract: Contract) -> Candidate:
    """Collect the new bundle, and the score of the champion on the same test rows."""
    from flywheel_ml.data import tables
    from flywheel_ml.model.registration.registry import CHAMPION

    manifest = bundle.verify(paths.BUNDLE)
    champion = registry.find_alias(CHAMPION)
    if champion is None:
        return Candidate(manifest)
    split = read_json(paths.REPORTS / "split.json")
    rows = tables.read_verified(paths.SPLITS["test"], split["test"]["sha256"])
    with TemporaryDirectory() as scratch:
        try:
            opened = open_registered(project, registry, champion, settings, Path(scratch))
            missing = [column.name for column in opened.contract.inputs if column.name not in rows.columns]
            if missing:
                return Candidate(
                    manifest, champion_problem=f"it needs the column '{missing[0]}', which the table no longer has"
                )
            if (opened.manifest.target, opened.manifest.classes) != (manifest.target, manifest.classes):
                return Candidate(manifest, champion_problem="it predicts a different target or different classes")
            answers = opened.predict(tables.to_columns(rows, opened.contract.inputs))
        except ProjectError as error:
            problem = str(error).replace(scratch, f"of version {champion.number}")
            return Candidate(manifest, champion_problem=problem)
    truth = tables.encode_target(rows, contract)
    decision = metrics.DecisionRule(opened.manifest.threshold) if opened.manifest.threshold is not None else None
    found = metrics.compute_metrics(contract.task, truth, answers.output, decision).get(metrics.HEADLINE[contract.task])
    return Candidate(manifest, found, "" if found is not None else "the test rows contain only one class")


def open_registered(
    project: Project, registry: "Registry", version: "Version", settings: Settings, scratch: Path
) -> bundle.Bundle:
    """Open the bundle of a version: from the serving folder, or downloaded to `scratch`.

    Raises:
        ProjectError: its files are lost or damaged.
    """
    served = serving_folder.bundle_folder(
        settings.serving_folder, serving_folder.BundleRef(version=version.number, digest=version.digest)
    )
    try:
        return bundle.Bundle.open(served, version.digest, project.features)
    except ProjectError:
        registry.download(version, scratch)
        return bundle.Bundle.open(scratch, version.digest, project.features)


def measure_bundle(project: Project, contract: Contract, params: Params) -> dict[str, Any]:
    """Measure what the gates need but the bundle does not contain, as fields of `Candidate`."""
    from flywheel_ml.data import tables
    from flywheel_ml.model.evaluation import speed
    from flywheel_ml.model.evaluation.measure import measure_candidate

    split = read_json(paths.REPORTS / "split.json")
    rows = tables.read_verified(paths.SPLITS["test"], split["test"]["sha256"]).head(speed.ROWS)
    opened = bundle.Bundle.open(paths.BUNDLE, features=project.features)
    return measure_candidate(opened, tables.to_columns(rows, contract.inputs), params.evaluate)


def register_bundle(registry: "Registry", contract: Contract, params: Params, checks: list[GateResult]) -> "Version":
    """Register the bundle with the checks of the gates, once per bundle and verdict."""
    from flywheel_ml.model.evaluation import figures

    passed = all(check.passed for check in checks)
    plots = {path.stem: read_json(path) for path in paths.PLOTS.glob("*.json")}
    figures.draw_evaluation(paths.REPORTS / "evaluation.png", f"{contract.name}: test rows", plots)
    training_params = params.model_dump(mode="json", include=TRAINING_GROUPS)
    # Two retrainings may have made equal bundles: one registers, the other finds it.
    with registry.lock_registration():
        if found := registry.find(sha256_file(paths.BUNDLE / bundle.MANIFEST), passed):
            registry.restore_files(found, paths.BUNDLE, collect_lineage())
            return found
        return registry.register(
            paths.BUNDLE,
            checks,
            flatten(training_params),
            collect_lineage(),
            [paths.REPORTS],
            read_trials(),
            _collect_selection_metrics(),
        )


def read_trials() -> list["Trial"]:
    """Read the tuning trials of the train stage, with their durations if this machine ran them."""
    report = read_json(paths.REPORTS / "tuning.json")
    if not report["trials"]:
        return []
    from flywheel_ml.model.training import tune

    seconds = tune.read_seconds(report["key"])
    return [
        tune.Trial(found["parameters"], found["loss"], seconds[at] if at < len(seconds) else None)
        for at, found in enumerate(report["trials"])
    ]


def assign_role(registry: "Registry", version: "Version", params: Params) -> str:
    """Assign a role: the first version that passes becomes champion, later ones challenger unless params differ.

    A version that was rolled back keeps that role until a person promotes it. One that is older than the champion is
    never promoted automatically: a run of an older commit would undo a retraining.
    """
    from flywheel_ml.model.registration.registry import CHAMPION

    champion = registry.find_alias(CHAMPION)
    is_free = version.passed and not version.rolled_back and (champion is None or champion.number != version.number)
    is_newer = champion is None or int(version.number) > int(champion.number)
    if is_free and is_newer and (champion is None or params.rollout.auto_promote):
        registry.promote(version.number, champion.number if champion else None)
    elif is_free:
        registry.set_challenger(version.number)
    return registry.get_state(version.number).role


def collect_lineage() -> dict[str, Any]:
    """Collect the origin of a bundle: facts that may differ between two runs with equal bundles.

    `last_row_at` is the time of the newest row that it was trained or tested on, if rows have times.
    """
    split = read_json(paths.REPORTS / "split.json") if (paths.REPORTS / "split.json").is_file() else {}
    last_row_at = max((part["last"] for part in split.values() if part.get("last")), default=None)
    return {
        **({"last_row_at": last_row_at} if last_row_at else {}),
        "git_commit": git.get_commit(),
        "git_dirty": git.is_dirty(),
        "dvc_lock_sha256": dvc_stages.hash_lock(),
        "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "trained_by": get_user_name(),
    }


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` → `{"a.b": 1}`, as MLflow logs parameters."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def _summarize_stage(name: str, contract: Contract, params: Params) -> str:
    """Summarize a finished stage in one line; empty if there is nothing to report."""
    if name == "train" and (found := read_trials()):
        loss, spent = formatting.METRIC_NAMES[metrics.LOSS[contract.task]], sum(trial.seconds or 0.0 for trial in found)
        best = min(trial.loss for trial in found)
        return f"{len(found)} trials took {spent:.0f} s: {loss} on validation {found[0].loss:.4g} → {best:.4g}"
    if name == "train":
        return _summarize_selection(contract)
    if name == "split":
        test = read_json(paths.REPORTS / "split.json")["test"]
        notes = (
            [formatting.overlap(test["in_train"], test["rows"], contract.time is not None)] if test["in_train"] else []
        )
        if test["rows"] < (least := params.monitor.min_rows):
            notes.append(
                f"{formatting.rows(test['rows'])} in the test split, too few for monitoring (monitor.min_rows: {least})"
            )
        return "; ".join(notes)
    if name == "evaluate":
        headline = metrics.HEADLINE[contract.task]
        measured = read_json(paths.REPORTS / "metrics.json")
        shown = {"test": "model", "sklearn_default": "scikit-learn's default boosting", "linear": "linear"}
        notes = [
            f"{label} {measured[part][headline]:.4f}"
            for part, label in shown.items()
            if headline in measured.get(part, {})
        ]
        return f"{formatting.METRIC_NAMES[headline]} on the test rows: {', '.join(notes)}"
    return ""


def _summarize_selection(contract: Contract) -> str:
    """Summarize which candidate was chosen, and how its probabilities are calibrated."""
    trained = read_json(paths.REPORTS / "train.json")
    found, measure = trained["selection"], "log loss" if contract.classes else "mean squared error"
    loss = {score["name"]: score["loss"] for score in found["candidates"]}
    notes = [f"{found['chosen'].replace('_', ' ')}: {measure} {loss[found['chosen']]:.4g} by {found['method']}"]
    if len(loss) > 1:
        best = min(loss, key=lambda name: loss[name])
        notes.append(
            f"the simplest of {len(loss)} candidates within one standard error of the best"
            + ("" if best == found["chosen"] else f" ({best.replace('_', ' ')} {loss[best]:.4g})")
        )
    if found["too_costly"]:
        notes.append(f"too costly for this table: {', '.join(found['too_costly'])}")
    if (method := trained.get("calibration", {}).get("method", "none")) != "none":
        notes.append(f"calibrated by {method}")
    return "; ".join(notes)


def describe_no_signal(checks: list[GateResult], contract: Contract) -> str:
    """Describe in one line that the table has no signal, and what was tried; empty if it has some."""
    if all(check.passed for check in checks if check.gate == NO_SIGNAL):
        return ""
    trained = read_json(paths.REPORTS / "train.json")
    tried = ", ".join(score["name"].replace("_", " ") for score in trained["selection"]["candidates"])
    compared, measure = trained["comparison"], "log loss" if contract.classes else "mean squared error"
    return (
        f"no signal: nothing predicts '{contract.target.name}' better than always answering the average; tried {tried} "
        f"on {compared['rows']:,} rows: {measure} {compared['loss']:.4g} against {compared['prior']['loss']:.4g} "
        f"(p = {compared['prior']['p_value']:.2g})"
    )


def _collect_selection_metrics() -> dict[str, float]:
    """Collect metrics for MLflow: loss and seconds of each candidate, comparison with prior and linear baseline."""
    trained = read_json(paths.REPORTS / "train.json")
    found = {}
    for score in trained["selection"]["candidates"]:
        found[f"selection.{_to_metric_name(score['name'])}.loss"] = score["loss"]
    seconds = read_json(paths.SELECTION_SECONDS) if paths.SELECTION_SECONDS.is_file() else {}
    found |= {f"selection.{_to_metric_name(name)}.seconds": float(value) for name, value in seconds.items()}
    for versus in ("prior", "linear"):
        for key in ("loss", "gain", "p_value"):
            found[f"out_of_fold.{versus}.{key}"] = trained["comparison"][versus][key]
    return {**found, "out_of_fold.loss": trained["comparison"]["loss"]}


def _to_metric_name(candidate: str) -> str:
    return candidate.replace(" (", ".").replace(" ", "_").replace(")", "")


def _open_registry(project: Project, settings: Settings, name: str) -> "Registry":
    from flywheel_ml.model.registration.registry import Registry

    return Registry.open(settings, name, project)


def _recover(registry: "Registry", settings: Settings) -> str:
    from flywheel_ml.flows import rollout

    return rollout.recover(registry, settings)


def _roll_out(registry: "Registry", settings: Settings) -> str:
    from flywheel_ml.flows import rollout
    from flywheel_ml.model.registration.registry import CHAMPION

    champion = registry.find_alias(CHAMPION)
    if champion is None:
        return ""
    rollout.sync(registry, settings, why="first champion" if champion.number == "1" else "trained")
    rollout.prune(registry, settings)
    return champion.number
