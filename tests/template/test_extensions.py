"""Each extension that the how-to describes touches one Python file of the project, and works."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml

from conftest import Bake
from processes import free_port, make, run, running

pytestmark = pytest.mark.slow

FEATURE = """

def gap(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return right - left


FEATURES: tuple[Feature, ...] = (gap,)
"""
ESTIMATOR = """
from typing import Any

from flywheel_ml.core.catalog import CLASSES, SearchRange
from flywheel_ml.core.contract import Task
from flywheel_ml.core.features import Featurizer
from flywheel_ml.utils.config_model import StrictModel


class SmallForestParams(StrictModel):
    n_estimators: int = 20


def small_forest(task: Task, params: SmallForestParams, featurizer: Featurizer, seed: int) -> Any:
    from flywheel_ml.model.pipelines import preprocessing
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline

    forest = RandomForestClassifier(params.n_estimators, max_depth=6, random_state=seed)
    return make_pipeline(preprocessing.encode_for_trees(task, featurizer, seed), forest)


ESTIMATORS["small_forest"] = Estimator(
    small_forest, CLASSES, search={"n_estimators": SearchRange(10, 40)}
)


class TrainParams(params.TrainParams):
    catalog: ClassVar[Mapping[str, Estimator]] = ESTIMATORS
    small_forest: SmallForestParams = SmallForestParams()
"""
GATE = """

class GateParams(params.GateParams):
    brier: float = 0.0


def is_sharp(candidate: gate.Candidate, params: GateParams) -> tuple[bool, str]:
    found = gate.get_measure(candidate, "test", "brier")
    return found <= params.brier, f"Brier score {found:.4f}, allowed {params.brier:g}"


GATES["sharp"] = is_sharp
"""
STEP = '    engine.task("notify", Path("notified.txt").write_text, version.number)\n'
ROUTE = """
    @app.get("/threshold")
    async def threshold() -> dict[str, float]:
        return {"threshold": 0.5}

    return app  # noqa
"""
CARD = """{% block limits %}{{ super() }}
- Not for decisions about single persons.{% endblock %}
"""
ALERT = """
from collections.abc import Iterator

from flywheel_ml.monitoring.result import Result


def few_rows(result: Result) -> Iterator[alerts.Finding]:
    seen = f"{result.volume.rows} rows"
    yield alerts.Finding("warning", "fewer rows than usual", seen, (), "drift")


ALERTS = (*alerts.STANDARD_RULES, few_rows)
"""
DATA_CARD = """{% block description %}{{ super() }}

Collected by hand.{% endblock %}
"""
STAGE = '''"""How many rows each class has."""

import polars as pl
from flywheel_ml.core import paths
from flywheel_ml.cli.command import run_command
from flywheel_ml.core.contract import Contract
from flywheel_ml.utils.files import write_json


def main() -> None:
    target = Contract.load(paths.CONTRACT).target.name
    counts = pl.read_parquet(paths.TABLE)[target].value_counts()
    write_json(paths.REPORTS / "classes.json", counts.sort(target).to_dicts())


if __name__ == "__main__":
    run_command(main)
'''
STAGE_IN_GRAPH = """
  classes:
    cmd: python -m flight_delays.classes
    desc: rows of each class
    deps: [data/table.parquet, contract.yaml, "${own}/classes.py"]
    outs:
      - reports/classes.json: {cache: false}

plots:
"""
SOURCE = '''"""The table, from elsewhere."""

import shutil
from pathlib import Path


def fetch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile("elsewhere.parquet", path)
'''


def pairs(path: Path) -> None:
    """Two numbers; how far they are apart decides, which no linear model sees."""
    draw = random.Random(3)  # noqa: S311
    lines = ["left,right,won"]
    for _ in range(800):
        left, right = draw.gauss(0, 1), draw.gauss(0, 1)
        lines.append(
            f"{left:.3f},{right:.3f},{'yes' if abs(right - left) > draw.gauss(1, 0.2) else 'no'}"
        )
    path.write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture(scope="module")
def project(bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project about a small table, with every extension, after its first successful run."""
    project = bake()
    make(project, "install")
    table = tmp_path_factory.mktemp("table") / "pairs.csv"
    pairs(table)
    make(project, "adopt", f"DATA={table}", "TARGET=won", "ARGS=--yes")
    return project


@pytest.fixture(scope="module")
def package(project: Path) -> Path:
    return project / "src" / "flight_delays"


@pytest.fixture(scope="module")
def refused(project: Path, package: Path) -> str:
    """What the first run printed: the gate asks for the impossible."""
    extend(package / "features.py", FEATURE, instead_of="FEATURES: tuple")
    extend(package / "estimators.py", ESTIMATOR, instead_of="class TrainParams")
    extend(package / "gates.py", GATE)
    replace(package / "flows.py", "    return steps.finish", f"{STEP}    return steps.finish")
    replace(package / "app.py", "    return app  # noqa: RET504 (routes go in between)\n", ROUTE)
    extend(package / "alerts.py", ALERT, instead_of="ALERTS: tuple")
    extend(package / "cards" / "model_card.md.jinja", CARD)
    extend(package / "cards" / "data_card.md.jinja", DATA_CARD)
    (package / "classes.py").write_text(STAGE, encoding="utf-8")
    replace(project / "dvc.yaml", "\nplots:\n", STAGE_IN_GRAPH)
    set_params(project, train={"estimator": "small_forest"}, tune={"trials": 2})
    command = ["make", "run"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(project: Path, refused: str) -> Path:
    set_params(project, gates={"brier": 0.25})
    make(project, "run")
    return project


def extend(path: Path, text: str, instead_of: str = "") -> None:
    """Add text to the end of a file, or put it where a statement begins that ends the file."""
    before = path.read_text(encoding="utf-8")
    if instead_of:
        assert f"\n{instead_of}" in before
        before = before[: before.rindex(f"\n{instead_of}")]
    path.write_text(before.rstrip() + "\n" + text, encoding="utf-8")


def replace(path: Path, old: str, new: str) -> None:
    before = path.read_text(encoding="utf-8")
    assert old in before
    path.write_text(before.replace(old, new), encoding="utf-8")


def set_params(project: Path, **groups: dict[str, object]) -> None:
    path = project / "params.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, values in groups.items():
        content[name] = {**content.get(name, {}), **values}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def test_gate_with_its_threshold_blocks(refused: str) -> None:
    assert "REFUSED sharp: Brier score" in refused
    assert "allowed 0" in refused


def test_feature_and_estimator_with_search_space_reach_the_bundle(trained: Path) -> None:
    manifest = json.loads((trained / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    assert list(manifest["derived"]) == ["gap"]
    assert manifest["numeric"][-1] == "gap"
    assert manifest["estimator"] == "small_forest"
    assert manifest["tuned"]["trials"] == 2


def test_step_in_the_training_flow_runs(trained: Path) -> None:
    assert (trained / "notified.txt").read_text(encoding="utf-8").isdigit()


def test_custom_route_answers_alongside_the_others(trained: Path) -> None:
    port = free_port()
    with running(trained, port), httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        assert client.get("/threshold").json() == {"threshold": 0.5}
        row = {"left": -1.0, "right": 1.0}
        answer = client.post("/predict", json={"instances": [row]}).json()
        assert answer["predictions"][0]["prediction"] == "yes"


def test_custom_card_is_part_of_the_bundle(trained: Path) -> None:
    card = (trained / "bundle" / "card.md").read_text(encoding="utf-8")
    assert card.startswith("# Model card: pairs\n\nPredicts `won`")
    assert "- Not for decisions about single persons." in card


def test_custom_data_card_is_written_by_the_run(trained: Path) -> None:
    card = (trained / "reports" / "data_card.md").read_text(encoding="utf-8")
    assert card.startswith("# Data card: pairs\n")
    assert "\n\nCollected by hand.\n\n- " in card


def test_custom_stage_of_dvc_runs(trained: Path) -> None:
    counts = json.loads((trained / "reports" / "classes.json").read_text(encoding="utf-8"))
    assert sorted(one["won"] for one in counts) == ["no", "yes"]


def test_custom_alert_is_raised(trained: Path) -> None:
    (raw,) = (trained / "data" / "raw").glob("*.parquet")
    make(trained, "score", f"INPUT={raw}", "OUTPUT=build/scored.parquet")
    command = ["make", "monitor", "SCORED=build/scored.parquet"]
    subprocess.run(command, cwd=trained, capture_output=True, check=False)
    lines = (trained / "reports" / "monitoring" / "alerts.jsonl").read_text(encoding="utf-8")
    assert "fewer rows than usual" in lines


def test_another_data_source_is_fetched(trained: Path, package: Path) -> None:
    (raw,) = (trained / "data" / "raw").glob("*.parquet")
    raw.rename(trained / "elsewhere.parquet")
    raw.with_name(f"{raw.name}.dvc").unlink()
    run(trained, "rm", "-rf", ".dvc/cache")
    (package / "source.py").write_text(SOURCE, encoding="utf-8")
    assert "fetched and recorded with DVC" in make(trained, "run")


def test_extended_project_passes_its_import_linter(trained: Path) -> None:
    assert "0 broken" in run(trained, str(trained / ".venv" / "bin" / "lint-imports"))
