"""The pipeline as a whole: equal bytes anywhere, nothing corrupted used, bad data stopped, any version brought back."""

import hashlib
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest

from flywheel_ml.cli.stages import STAGES
from flywheel_ml.core import bundle, metrics, paths, serving_folder
from flywheel_ml.core.catalog import LINEAR
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.project import import_reference
from flywheel_ml.flows import rollout, training
from flywheel_ml.flows.progress import Progress
from flywheel_ml.flows.training import TrainingResult
from flywheel_ml.flows.versioning import dvc_stages
from flywheel_ml.model.evaluation import evaluate
from flywheel_ml.model.packaging import package
from flywheel_ml.model.registration.registry import Registry
from flywheel_ml.model.training import train
from flywheel_ml.utils import formatting
from flywheel_ml.utils.errors import GateRefusal, IntegrityError, ProjectError
from library.helpers import project, rows, store
from library.helpers.project import PROJECT

WORLDS = (
    {"PYTHONHASHSEED": "1", "TZ": "UTC", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LC_ALL": "C"},
    {
        "PYTHONHASHSEED": "2",
        "TZ": "Asia/Kathmandu",
        "OMP_NUM_THREADS": "3",
        "OPENBLAS_NUM_THREADS": "2",
        "LC_ALL": "C.UTF-8",
    },
)


def contents(path: Path) -> dict[str, str]:
    """Every file of a folder with the hash of its bytes; locks apart."""
    files = (file for file in path.rglob("[!.]*") if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_run_elsewhere_in_another_world_gives_every_byte_again(
    trained_project: project.PipelineRuns, tmp_path: Path
) -> None:
    other = project.make(tmp_path / "another place" / "with a longer name")
    produce(list(STAGES), {other: WORLDS[1]})
    assert set(contents(other / paths.BUNDLE)) == {*bundle.HASHED, bundle.MANIFEST}
    assert_same_results(trained_project.path, other)


@pytest.mark.full
def test_a_linear_model_too_is_equal_in_every_byte(finished: Path, tmp_path: Path) -> None:
    linear = LINEAR[Contract.load(paths.CONTRACT).task]
    project.set_params(finished, {"train": {"estimator": linear}})
    other = project.copy(finished, tmp_path / "another place")
    produce(("train", "evaluate", "package"), {finished: WORLDS[0], other: WORLDS[1]})
    assert bundle.verify(other / paths.BUNDLE).estimator == linear
    assert_same_results(finished, other)


def produce(stages: Sequence[str], places: Mapping[Path, dict[str, str]]) -> None:
    """Run stages in several projects at once, each in its world."""
    start = f"from importlib import import_module\nfrom {project.PACKAGE}.project import PROJECT\n"
    code = start + "".join(f"import_module({STAGES[name]!r}).main(PROJECT)\n" for name in stages)
    runs = [project.start(place, "-c", code, stdin=subprocess.DEVNULL, **world) for place, world in places.items()]
    for process in runs:
        errors = process.communicate(timeout=600)[1]
        assert process.returncode == 0, errors


def assert_same_results(one: Path, other: Path) -> None:
    assert contents(one / paths.BUNDLE) == contents(other / paths.BUNDLE)
    # train.json holds the hash of the pickled pipeline, which remembers how many threads there were.
    first, second = (contents(place / paths.REPORTS) for place in (one, other))
    assert {name for name in second if second[name] != first.get(name)} <= {"train.json"}


def corrupt_cache(path: Path) -> None:
    """Change a byte of DVC's copy of a file, as a bad disk would."""
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    copy = Path(".dvc/cache/files/md5") / digest[:2] / digest[2:]
    copy.chmod(0o644)
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    copy.chmod(0o444)  # DVC looks closer at files that can be written.


def test_corrupted_cache_is_used_by_no_stage_and_no_gate(finished: Path, contract: Contract) -> None:
    parts = (paths.SPLITS["train"], paths.SPLITS["test"], paths.MODEL, paths.BUNDLE / bundle.MODEL)
    for path in parts:
        corrupt_cache(path)
    for path in parts:
        shutil.rmtree(path.parent, ignore_errors=True)
    subprocess.run(["dvc", "checkout", "--quiet"], check=True)
    assert all(path.is_file() for path in parts)
    with pytest.raises(IntegrityError, match=r"train.parquet is not the file that its stage wrote"):
        train.main(PROJECT)
    with pytest.raises(IntegrityError, match=r"pipeline.joblib is not the file that the train stage wrote"):
        evaluate.main(PROJECT)
    with pytest.raises(IntegrityError, match=r"pipeline.joblib is not the file that the train stage wrote"):
        package.main(PROJECT)
    with pytest.raises(IntegrityError, match=r"model.onnx was changed after its manifest was written"):
        training.compare_with_champion(
            PROJECT, Registry.open(store.settings(finished), contract.name), store.settings(finished), contract
        )


class Changed(NamedTuple):
    """A project with two commits, one changed parameter apart: what ran for the second, and the bundles of both."""

    path: Path
    ran: list[str]
    first: dict[str, str]
    second: dict[str, str]
    locks: tuple[str, str]


@pytest.fixture
def changed(finished: Path) -> Changed:
    project.commit(finished, "First")
    first, lock = contents(paths.BUNDLE), dvc_stages.hash_lock()
    project.set_params(finished, {"evaluate": {"costs": {"false_negative": 9.0}}})
    assert dvc_stages.is_outdated()
    ran = [name for name in dvc_stages.read_stages() if dvc_stages.reproduce(name)]
    assert not dvc_stages.is_outdated()
    project.commit(finished, "Second")
    return Changed(finished, ran, first, contents(paths.BUNDLE), (lock, dvc_stages.hash_lock()))


def test_changed_parameter_reruns_its_stages_and_can_be_undone(changed: Changed) -> None:
    assert changed.ran == ["evaluate", "package"]
    assert changed.first != changed.second
    assert changed.locks[0] != changed.locks[1]

    subprocess.run(["dvc", "push", "--quiet", "--all-commits"], check=True)
    for folder in (".dvc/cache", "data/split", "model", "bundle"):
        shutil.rmtree(folder)
    project.git(changed.path, "checkout", "--quiet", "HEAD~1")
    subprocess.run(["dvc", "pull", "--quiet"], check=True)
    assert contents(paths.BUNDLE) == changed.first
    assert not dvc_stages.is_outdated()

    project.git(changed.path, "checkout", "--quiet", "-")
    assert dvc_stages.is_outdated()
    subprocess.run(["dvc", "pull", "--quiet"], check=True)
    assert contents(paths.BUNDLE) == changed.second
    assert not dvc_stages.is_outdated()


def run(path: Path) -> TrainingResult:
    """The training flow, plainly."""
    outcome: TrainingResult = import_reference(f"{PROJECT.flows}:train")(
        training.TrainingContext.begin(PROJECT, store.settings(path), Progress())
    )
    return outcome


def test_broken_row_stops_the_run_until_it_is_fixed(
    finished: Path, contract: Contract, capfd: pytest.CaptureFixture[str]
) -> None:
    good = pl.read_parquet(project.RAW)
    column = rows.find_column(contract, lambda column: column.range is not None, "range")
    assert column.range is not None
    beyond = pl.when(pl.int_range(pl.len()) == 7).then(column.range[1] + 1).otherwise(pl.col(column.name))
    serving, model = contents(finished / "var" / "serving"), contents(finished / "bundle")
    project.write_raw(finished, good.with_columns(beyond.cast(good.schema[column.name]).alias(column.name)))
    with pytest.raises(ProjectError, match="stage 'validate' failed; its message is above"):
        run(finished)
    told = capfd.readouterr()
    assert "data/raw/table.parquet changed: recorded with DVC" in told.out
    assert f"✗ {column.name}: 1 row: must be between" in told.err
    assert "Traceback" not in told.err
    assert contents(finished / "var" / "serving") == serving
    assert contents(finished / "bundle") == model

    project.write_raw(finished, good)
    assert run(finished)[:2] == ("1", "champion")


def test_worse_model_is_registered_and_the_champion_stays(finished: Path, contract: Contract) -> None:
    serving = contents(finished / "var" / "serving")
    worse = {"hist_gradient_boosting": {"max_iter": 1, "learning_rate": 0.01, "max_leaf_nodes": 2}}
    project.set_params(finished, {"train": worse})
    outcome = run(finished)
    assert (outcome.version, outcome.role) == ("2", "refused")
    assert {check.gate for check in outcome.checks if not check.passed} >= {"keeps up with the champion"}
    assert contents(finished / "var" / "serving") == serving

    registry = Registry.open(store.settings(finished), contract.name)
    measure = formatting.METRIC_NAMES[metrics.HEADLINE[Contract.load(paths.CONTRACT).task]]
    with pytest.raises(GateRefusal, match=rf"^version 2 was refused \(.*keeps up with the champion: {measure}"):
        rollout.promote(registry, store.settings(finished), "2")
    now = serving_folder.read_routing(finished / "var" / "serving")
    assert now.champion is not None
    assert now.champion.version == "1"
