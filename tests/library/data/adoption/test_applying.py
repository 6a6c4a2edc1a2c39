"""Adopting a table is atomic, and every file of the project then describes the new table."""

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ConfigDict

from flywheel_ml.cli import verbs
from flywheel_ml.core import paths
from flywheel_ml.core.settings import Settings
from flywheel_ml.data.adoption import adopt, applying, profiling, writing
from flywheel_ml.data.adoption.inference import Decision, Proposal
from flywheel_ml.data.adoption.issues import Issue
from flywheel_ml.data.adoption.overrides import Overrides
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError, DataError
from flywheel_ml.utils.files import sha256_file
from library.helpers import project
from library.helpers.adoption_helpers import NOW, make_shop_table, propose

PACKAGE = Path("src/flight_delays")
FEATURES = '''"""Your own features."""

import numpy as np


def doubled(weight: np.ndarray) -> np.ndarray:
    """Twice the weight."""
    return weight * 2


def halved(spent: np.ndarray) -> np.ndarray:
    """Half of what was spent."""
    return spent / 2


FEATURES: tuple[object, ...] = (doubled, halved)
"""All of them."""
'''
PYPROJECT = """[dependency-groups]
train = ["polars>=1.30"]
example = ["somedata>=0.0.3"]
dev = ["pytest>=8.4"]

[tool.uv]
default-groups = ["train", "example", "dev"]
"""
README = """# Parcels

<!-- about the table: `adopt` writes this part anew -->

Parcels come late.

<!-- /about the table -->

Mine.
"""
FORMER = {
    "README.md": README,
    "Makefile": "INPUT ?= build/next-month.parquet\nscore:\n",
    "decisions.yaml": "# For people.\ndecisions: []\n",
    "contract.yaml": "# What a row is.\nversion: 1\nname: parcels\ncolumns: [{name: late, role: target}]\n",
    "pyproject.toml": PYPROJECT,
    str(PACKAGE / "features.py"): FEATURES,
    str(PACKAGE / "source.py"): "# the example's\n",
    "tests/data/test_example_source.py": "# the example's\n",
    "tests/data/test_card.py": "# everybody's\n",
    "data/raw/parcels.parquet": "rows",
    "data/raw/parcels.parquet.dvc": "pointer",
    "data/split/train.parquet": "rows",
    "bundle/model.onnx": "model",
    "model/pipeline.joblib": "model",
    "reports/metrics.json": "{}",
    "reports/data_card.md": "# Data card: parcels",
    "dvc.lock": "lock",
    "var/serving/routing.json": "{}",
    "var/log/predictions.sqlite": "log",
    "mlflow.db": "registry",
}
KEPT = ("tests/data/test_card.py", "mlflow.db")
PROPOSAL = Proposal("any", "binary", (), {}, {}, (), (), 20, False, (), ())


@pytest.fixture
def former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a project about another table, with everything that a run leaves."""
    path = tmp_path / "project"
    for name, content in FORMER.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(content)
    params = yaml.safe_load((project.ROOT / paths.PARAMS).read_text())
    params["data"]["raw"] = "data/raw/parcels.parquet"
    params["split"] = {"by": "time", "validation_days": 3, "test_days": 3}
    (path / paths.PARAMS).write_text(f"# every knob\n{yaml.safe_dump(params)}")
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A person's own table, in a CSV file."""
    path = tmp_path / "My Shop 2024.csv"
    make_shop_table(400, empty=[None] * 400).write_csv(path, separator=";")
    return path


def take(source: Path, target: str = "bought", **said: Any) -> Path:
    with adopt.examine(str(source), "", target, Overrides(**said), NOW) as found:
        return adopt.adopt_table(found, Settings(), project.PROJECT)


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def test_every_file_describes_the_new_table(former: Path, table: Path) -> None:
    take(table)
    contract = yaml.safe_load(Path("contract.yaml").read_text())
    assert Path("contract.yaml").read_text().startswith("# What a row is.\n")
    assert contract["name"] == "my-shop-2024"
    assert contract["description"] == "Rows of My Shop 2024.csv."
    assert [column["name"] for column in contract["columns"]] == ["spent", "shelf", "empty", "bought"]
    params = yaml.safe_load(paths.PARAMS.read_text())
    assert params["data"] == {"raw": "data/raw/my-shop-2024.parquet", "until": None}
    assert params["split"] == {"by": "hash", "validation_share": 0.15, "test_share": 0.15}
    assert (params["evaluate"]["slices"], params["gates"]["min_score"]) == (["shelf"], None)
    assert params["train"]["estimator"] == "auto"
    raw = pl.read_parquet(params["data"]["raw"])
    assert raw.equals(make_shop_table(400, empty=pl.Series([None] * 400, dtype=pl.String)))
    assert "example" not in Path("pyproject.toml").read_text()
    assert 'default-groups = ["train", "dev"]' in Path("pyproject.toml").read_text()
    assert "def halved" in (PACKAGE / "features.py").read_text()
    assert "(halved,)" in (PACKAGE / "features.py").read_text()
    assert "doubled" not in (PACKAGE / "features.py").read_text()


def test_files_of_the_previous_table_are_moved_aside_and_kept(former: Path, table: Path) -> None:
    before = content(former)
    kept = take(table)
    assert content(former / kept) == {name: digest for name, digest in before.items() if name not in KEPT}
    now = content(former)
    assert {name: now[name] for name in KEPT} == {name: before[name] for name in KEPT}
    assert sorted(name for name in now if not name.startswith("var/before")) == sorted(
        [
            "Makefile",
            "README.md",
            "contract.yaml",
            "data/raw/my-shop-2024.parquet",
            "decisions.yaml",
            "mlflow.db",
            "params.yaml",
            "pyproject.toml",
            "reports/data_card.md",
            str(PACKAGE / "source.py"),
            str(PACKAGE / "features.py"),
            "tests/data/test_card.py",
        ]
    )


def test_readme_describes_the_new_table_and_keeps_the_rest(former: Path, table: Path) -> None:
    take(table)
    text = Path("README.md").read_text()
    assert "Parcels come late" not in text
    assert text.startswith("# Parcels\n")
    assert text.endswith("\nMine.\n")
    assert r"**my\-shop\-2024** (400 rows, from My Shop 2024.csv)" in text
    assert "from 2 columns of a row it predicts bought, one of two classes" in text
    asked = re.search(r"--data '(\{\"instances.*)'", text)
    assert asked is not None
    (instance,) = json.loads(asked[1])["instances"]
    assert (set(instance), instance["shelf"]) == ({"spent", "shelf"}, "left")
    assert '"label": "buyer"' in text
    assert Path("Makefile").read_text().startswith("INPUT ?= data/raw/my-shop-2024.parquet\n")
    take(table, target="spent")
    assert "it predicts spent, a number" in Path("README.md").read_text()


def test_readme_without_markers_stays(former: Path, table: Path) -> None:
    Path("README.md").write_text("# Mine alone\n")
    take(table)
    assert Path("README.md").read_text() == "# Mine alone\n"


def test_data_card_shows_decisions_and_issues(former: Path, tmp_path: Path) -> None:
    make_shop_table(400, flat=["x"] * 400).write_csv(tmp_path / "tills.csv")
    take(tmp_path / "tills.csv")
    text = Path("reports/data_card.md").read_text()
    assert "- 400 rows × 4 columns" in text
    assert "| – | task: binary |" in text
    assert "| `flat` | ignored |" in text
    assert "| `flat` | handled |" in text
    assert Path("decisions.yaml").read_text().startswith("# For people.\n")


def test_adopting_again_uses_a_new_model(former: Path, table: Path) -> None:
    first = take(table)
    second = take(table, target="spent")
    assert (first.name, second.name) == ("before-adoption-1", "before-adoption-2")
    assert yaml.safe_load(Path("contract.yaml").read_text())["columns"][0]["role"] == "target"
    assert not Path("mlflow.db").exists(), "versions of another contract under the same name"
    assert (second / "data/raw/my-shop-2024.parquet").is_file()


def test_the_new_source_says_how_to_have_the_table_again(former: Path, table: Path) -> None:
    take(table)
    source = (PACKAGE / "source.py").read_text()
    space: dict[str, Any] = {}
    exec(compile(source, "source.py", "exec"), space)
    with pytest.raises(DataError, match="dvc pull"):
        space["fetch"](Path("data/raw/my-shop-2024.parquet"))


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("after", range(1, 21, 3))
def test_a_process_killed_on_the_way_leaves_all_as_it_was(
    former: Path, table: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    before = content(former)
    replace, left = Path.replace, iter(range(after))

    def until_killed(self: Path, target: Path) -> Path:
        # As after a kill, nothing more happens, not the undoing either.
        if self.suffix != ".part" and next(left, None) is None:
            raise Killed
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", until_killed)
        with pytest.raises(Killed):
            take(table)
    assert applying.JOURNAL.is_file()
    applying.recover()
    assert content(former) == before


@pytest.mark.parametrize("after", [0, 1, 7, 18])
def test_a_step_that_fails_is_undone_at_once(
    former: Path, table: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    before = content(former)
    replace, calls = Path.replace, iter(range(1000))

    def fails_once(self: Path, target: Path) -> Path:
        if self.suffix != ".part" and next(calls) == after:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails_once)
    with pytest.raises(KeyboardInterrupt):
        take(table)
    assert content(former) == before


def test_a_table_that_fails_while_it_is_written_changes_nothing(
    former: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(former)

    def full(rows: pl.LazyFrame, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(writing, "write_parquet", full)
    with pytest.raises(DataError, match=r"the disk that holds .* is full; nothing was changed"):
        take(table)
    assert content(former) == before


def test_a_disk_that_is_full_is_not_blamed_on_the_table(
    former: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise pl.exceptions.ComputeError("parquet: underlying IO error: No space left on device (os error 28)")

    monkeypatch.setattr(writing, "write_parquet", full)
    with pytest.raises(DataError, match=r"the disk that holds .* is full"):
        take(table)


@pytest.mark.parametrize("there", ["contract.yaml", "data/raw"])
def test_a_file_that_cannot_be_replaced_leaves_all_as_it_was(former: Path, table: Path, there: str) -> None:
    path = former / there
    shutil.move(path, former / "elsewhere")
    (path / "inside").mkdir(parents=True) if path.suffix else path.write_text("a file")
    before = content(former)
    with pytest.raises(OSError, match=re.escape(there)):
        take(table)
    assert content(former) == before
    assert not applying.FOLDER.exists()


def test_a_rejected_table_changes_nothing(former: Path, tmp_path: Path) -> None:
    before = content(former)
    make_shop_table(12).write_csv(tmp_path / "few.csv")
    with pytest.raises(DataError, match=r"few rows: 12 rows; add rows"):
        take(tmp_path / "few.csv")
    assert content(former) == before


def test_next_run_clears_what_a_killed_process_left(former: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (former / applying.NEW).mkdir(parents=True)
    (former / applying.NEW / "half.parquet").write_bytes(b"half")
    (former / paths.PARAMS).write_text("no params: true\n")
    monkeypatch.setattr("sys.argv", ["x", "run"])
    with pytest.raises(SystemExit):
        verbs.main(project.PROJECT)
    assert not applying.FOLDER.exists()


def test_interrupt_while_reading_is_one_line_and_changes_nothing(
    former: Path, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = content(former)
    monkeypatch.setattr(profiling, "profile_table", interrupted)
    monkeypatch.setattr("sys.argv", ["x", "adopt", str(table), "--target", "bought", "--yes", "--force"])
    with pytest.raises(SystemExit) as ended:
        verbs.main(project.PROJECT)
    assert (ended.value.code, capsys.readouterr().err) == (130, "interrupted\n")
    assert not applying.FOLDER.exists()
    shutil.rmtree(former / "var", ignore_errors=True)
    assert content(former) == {name: digest for name, digest in before.items() if not name.startswith("var/")}


def test_the_table_may_be_the_very_file_that_is_replaced(former: Path) -> None:
    make_shop_table(400).write_parquet("data/raw/till.parquet")
    take(Path("data/raw/till.parquet"))
    assert pl.read_parquet("data/raw/till.parquet").equals(make_shop_table(400))


def test_params_keep_comments_and_other_values(tmp_path: Path) -> None:
    before = (
        "# every knob\nseed: 13 # luck\n\ndata:\n  raw: data/raw/parcels.parquet # here\n  until: null\n\n"
        "split:\n  by: time\n  test_days: 3\n\ntrain:\n  estimator: ridge\n\nevaluate:\n  slices: [a]\n"
        "  min_slice_rows: 5\n\ngates:\n  own: 1\n"
    )
    found = propose(make_shop_table(400), "bought", tmp_path)
    assert writing.render_params(found, before, Path("data/raw/tills.parquet")) == (
        "# every knob\nseed: 13 # luck\n\ndata:\n  raw: data/raw/tills.parquet   # here\n  until: null\n\n"
        "split:\n  by: hash\n  validation_share: 0.15\n  test_share: 0.15\n\n"
        "train:\n  estimator: auto\n\n  candidates: [logistic_regression, spline_logistic_regression, "
        "regularized_boosting, random_forest, hist_gradient_boosting,\n    mlp]\n  calibration: auto\n\n"
        "evaluate:\n  groups: [shelf]\n  slices: [shelf]\n  min_slice_rows: 20\n\n"
        "gates:\n  own: 1\n  significance_level: 0.05\n  min_score: null\n  min_skill_score: null\n"
        "  min_gain_over_linear: null\n  max_drop_from_champion: 0.01\n  parity_tolerance: 0.00001\n"
        "  min_slice_score: null\n  max_slice_drop: null\n  min_class_recall: 0.0\n  max_calibration_error: 0.15\n"
        "  coverage_tolerance: 0.1\n  max_group_gap: null\n  forbidden_columns: []\n  max_feature_us: 1000.0\n"
        "  max_latency_ms: 20.0\n  max_size_mb: 200.0\n"
    )


def test_the_contract_breaks_long_lists_between_their_items() -> None:
    columns = (
        {"name": "shelf", "type": "string", "categories": ["9E", "a b", "no"], "parse": {"symbols": ["€"]}},
        {"name": "far", "type": "float", "range": [-0.5, 1e22], "nullable": True},
        {"name": "town", "type": "string", "categories": [f"Town on Sea {at}" for at in range(9)], "unseen": 0.01},
    )
    found = PROPOSAL._replace(columns=columns)
    assert writing.render_contract(found, "# What a row is.\n#   more\nversion: 1\n", "a: b.csv") == (
        '# What a row is.\n#   more\nversion: 1\nname: any\ndescription: "Rows of a: b.csv."\ncolumns:\n'
        '  - {name: shelf, type: string, categories: ["9E", a b, "no"], parse: {symbols: ["€"]}}\n'
        "  - {name: far, type: float, range: [-0.5, 1e+22], nullable: true}\n"
        "  - name: town\n    type: string\n"
        "    categories: [Town on Sea 0, Town on Sea 1, Town on Sea 2, Town on Sea 3, Town on Sea 4, Town on Sea 5,\n"
        "      Town on Sea 6, Town on Sea 7, Town on Sea 8]\n"
        "    unseen: 0.01\n"
    )


def test_decisions_take_one_line_where_they_are_short() -> None:
    evidence, remedy = "as rows before", "drop them; " + "or keep them " * 12
    found = PROPOSAL._replace(
        decisions=(Decision("", "split: by hash", "no column says when a row happened"),),
        issues=(Issue("duplicate rows", "", "warned", evidence, remedy),),
    )
    assert writing.render_decisions(found, "# For people.\n") == (
        "# For people.\ndecisions:\n"
        '  - {column: "", what: "split: by hash", why: no column says when a row happened}\n'
        "issues:\n"
        f'  - kind: duplicate rows\n    column: ""\n    severity: warned\n    evidence: {evidence}\n'
        f'    remedy: "{remedy}"\n'
    )
    assert writing.render_decisions(found._replace(decisions=(), issues=()), "") == "decisions: []\nissues: []\n"


class Columns(config_model.StrictModel):
    """What the strict loader makes of the columns of contract.yaml."""

    model_config = ConfigDict(strict=False, extra="ignore")
    columns: list[dict[str, Any]]


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(["yes", "no", "1e3", "1e5", "2024-01-01", "012", "null", "", "~", "1_0", "12:30", "a: b", "a #b"])
)
def test_every_text_is_read_back_from_yaml(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "contract.yaml"
    columns = tuple({"name": text, "categories": [text] * count, "parse": {"symbols": [text]}} for count in (2, 99))
    path.write_text(writing.render_contract(PROPOSAL._replace(columns=columns), "", ""), encoding="utf-8")
    assert config_model.load(path, Columns).columns == list(columns)


def test_edits_that_git_does_not_have_are_not_overwritten(
    former: Path, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project.git(former, "init", "--quiet")
    project.commit(former, "Start")
    (former / "contract.yaml").write_text(f"{FORMER['contract.yaml']}# mine\n")
    monkeypatch.setattr("sys.argv", ["x", "adopt", str(table), "--target", "bought", "--yes"])
    with pytest.raises(
        ConfigError, match=r"uncommitted edits would be lost: contract.yaml; commit them, or pass --force"
    ):
        verbs.app(standalone_mode=False, obj=project.PROJECT)
    monkeypatch.setattr("sys.argv", ["x", "adopt", str(table), "--target", "bought", "--yes", "--force"])
    verbs.app(standalone_mode=False, obj=project.PROJECT)
    assert "Adopted" in capsys.readouterr().out
    assert "mine" in (former / "var/before-adoption-1/contract.yaml").read_text()


def test_without_a_terminal_and_without_yes_nothing_is_changed(
    former: Path, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(former)
    monkeypatch.setattr("sys.argv", ["x", "adopt", str(table), "--target", "bought"])
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(ConfigError, match="--yes"):
        verbs.app(standalone_mode=False, obj=project.PROJECT)
    assert "3 categories" in capsys.readouterr().out
    shutil.rmtree(former / "var", ignore_errors=True)
    assert content(former) == {name: digest for name, digest in before.items() if not name.startswith("var/")}


def test_a_name_is_found_in_either_unicode_form(former: Path, tmp_path: Path) -> None:
    composed, decomposed = "d\u00e9cid\u00e9", "de\u0301cide\u0301"
    make_shop_table(400).rename({"bought": decomposed, "shelf": "rayonne\u0301"}).write_csv(tmp_path / "t.csv")
    for asked in (composed, decomposed):
        with adopt.examine(str(tmp_path / "t.csv"), "", asked, Overrides(ignore=("rayonne\u0301",)), NOW) as found:
            roles = {column["name"]: column.get("role", "feature") for column in found.proposal.columns}
        assert roles == {"spent": "feature", "rayonn\u00e9": "ignored", composed: "target"}
