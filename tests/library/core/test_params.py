"""params.yaml: every parameter is typed, and those that affect a bundle are in its fingerprint."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml

from flywheel_ml.core import paths
from flywheel_ml.core.params import Params
from flywheel_ml.utils.errors import ConfigError
from library.helpers.project import ROOT

TEXT = (ROOT / paths.PARAMS).read_text(encoding="utf-8")


def load(tmp_path: Path, change: dict[str, Any]) -> Params:
    content = yaml.safe_load(TEXT)
    for key, value in change.items():
        *path, last = key.split(".")
        table = content
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return Params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sed": 3}, "unknown key 'sed'; did you mean 'seed'"),
        ({"train.hist_gradient_boosting.max_itter": 3}, "hist_gradient_boosting.max_itter'; did you mean 'max_iter'"),
        ({"seed": -1}, "seed: .*greater than or equal to 0 .found -1"),
        ({"seed": "13"}, "seed: .*valid integer"),
        ({"train.estimator": "xgboost"}, "train.estimator: no such estimator; known: .*logistic_regression"),
        ({"train.candidates": ["mlpp"]}, "train.candidates: no such estimator 'mlpp'; did you mean 'mlp'"),
        ({"train.candidates": "mlp"}, "train.candidates: "),
        ({"train.calibration": "platt"}, "train.calibration: "),
        ({"train.estimator": "auto", "tune.trials": 3}, "tune.trials needs one estimator"),
        ({"train.estimator": "random_forrest"}, "no such estimator; did you mean 'random_forest'"),
        ({"train.mlp.hidden_layer_sizes": [64, 0]}, "train.mlp.hidden_layer_sizes.1: "),
        ({"gates.min_score": 1.2}, "gates.min_score: "),
        ({"evaluate.costs.false_positive": 0}, "evaluate.costs.false_positive: "),
        ({"split.test_days": 0}, "split.test_days: "),
        ({"data.raw": "/data/raw.parquet"}, "data.raw: '/data/raw.parquet' is absolute"),
        ({"data.until": "soon"}, "data.until: expected a date or a timestamp in ISO 8601, such as 2013-11-01"),
        ({"data.until": "2013-02-30"}, "data.until: expected a date"),
        ({"data.until": "1612120800123"}, "data.until: expected a date"),
        ({"data.until": 20131101}, "data.until: Input should be a valid datetime"),
        ({"data": None}, "data: "),
    ],
)
def test_invalid_value_is_rejected_by_name(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, change)


def test_a_bare_date_is_rejected_because_dvc_takes_none(tmp_path: Path) -> None:
    lines = [line for line in TEXT.splitlines() if not line.strip().startswith("until:")]
    at = lines.index("data:")
    (tmp_path / "params.yaml").write_text("\n".join([*lines[: at + 1], "  until: 2013-11-01", *lines[at + 1 :]]))
    with pytest.raises(ConfigError, match=r'line [0-9]+: write the date in quotes, "2013-11-01"'):
        Params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("until", "moment"),
    [
        (None, None),
        ("2013-11-01", datetime(2013, 11, 1)),
        ("2013-11-01 06:30", datetime(2013, 11, 1, 6, 30)),
        ("2013-11-01T00:00:00-05:00", datetime(2013, 11, 1, tzinfo=timezone(timedelta(hours=-5)))),
        ("2013-11-01T00:00:00Z", datetime(2013, 11, 1, tzinfo=UTC)),
    ],
)
def test_until_keeps_its_offset_for_the_time_column_s_zone(
    tmp_path: Path, until: str | None, moment: datetime | None
) -> None:
    assert load(tmp_path, {"data.until": until}).data.until == moment


def test_fingerprint_covers_only_what_affects_a_bundle(tmp_path: Path) -> None:
    same = load(tmp_path, {}).training_fingerprint()
    changes: list[dict[str, Any]] = [
        {"gates.min_score": 0.99},
        {"monitor.significance_level": 0.2},
        {"rollout.auto_promote": True},
    ]
    for change in changes:
        assert load(tmp_path, change).training_fingerprint() == same
    changes = [{"seed": 14}, {"data.until": "2001-01-01"}, {"split.test_share": 0.2}, {"train.baseline_rows": 5}]
    for change in changes:
        assert load(tmp_path, change).training_fingerprint() != same
