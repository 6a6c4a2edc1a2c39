"""Logged requests, replayed through the batch path, give the same bits; a changed bit is found and named."""

import json
import shutil
import sqlite3
import struct
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flywheel_ml.core.contract import Contract
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows import skew
from flywheel_ml.model.registration.registry import Registry
from flywheel_ml.testing.rows import json_rows
from flywheel_ml.testing.servers import ServingFolder
from flywheel_ml.utils.errors import ProjectError
from flywheel_ml.utils.files import read_json
from library.helpers.project import PROJECT
from library.helpers.servers import Server

ROWS = 150


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, bundle_path: Path, table: pl.DataFrame, contract: Contract
) -> Path:
    """A folder with the log of a real server: single rows, and a block of a large request."""
    home = tmp_path_factory.mktemp("served")
    ServingFolder(home / "serving", bundle_path).roll_out("1")
    instances = json_rows(table.head(ROWS), contract)
    with Server(home) as server, server.client() as client:
        for instance in instances[:20]:
            assert client.post("/predict", json={"instances": [instance]}).is_success
        assert client.post("/predict", json={"instances": instances[20:]}).is_success
        log = Path(server.log)
    return log.parent


@pytest.fixture
def settings(served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    shutil.copytree(served, tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    log = next(path.parent for path in tmp_path.rglob("serve-0.db"))
    return Settings(prediction_log=str(log), serving_folder=tmp_path / "home" / "serving")


def never() -> Registry:
    raise ProjectError("no registry")


def change(settings: Settings, column: str, value: Any) -> str:
    """Overwrite a value of one logged prediction and return its id."""
    connection = sqlite3.connect(Path(settings.prediction_log) / "serve-0.db")
    (name,) = connection.execute("SELECT max(id) FROM predictions").fetchone()
    connection.execute(f"UPDATE predictions SET {column} = ? WHERE id = ?", (value, name))
    connection.commit()
    connection.close()
    return str(name)


def read_row(settings: Settings) -> tuple[float, dict[str, Any]]:
    connection = sqlite3.connect(Path(settings.prediction_log) / "serve-0.db")
    score, output = connection.execute("SELECT score, output FROM predictions ORDER BY id DESC LIMIT 1").fetchone()
    connection.close()
    return float(score), json.loads(output)


def test_replayed_requests_give_the_same_bits(settings: Settings) -> None:
    found = skew.check_skew(PROJECT, settings, never)
    assert found == skew.Skew({"1": ROWS}, {}, ())
    skew.raise_if_skewed(found)
    assert read_json(skew.REPORT)["differences"] == 0


def test_flipped_bit_of_a_score_is_found(settings: Settings) -> None:
    (bits,) = struct.unpack("<q", struct.pack("<d", read_row(settings)[0]))
    (flipped,) = struct.unpack("<d", struct.pack("<q", bits ^ 1))
    name = change(settings, "score", flipped)
    found = skew.check_skew(PROJECT, settings, never)
    assert [(one.id, one.column) for one in found.differences] == [(name, "score")]
    with pytest.raises(skew.SkewError, match=f"1 of {ROWS} logged predictions differ .* in score: {name}; see "):
        skew.raise_if_skewed(found)
    assert read_json(skew.REPORT)["columns"] == {"score": 1}


def test_changed_prediction_is_found(settings: Settings) -> None:
    _, output = read_row(settings)
    name = change(settings, "output", json.dumps({**output, "prediction": not output["prediction"]}))
    found = skew.check_skew(PROJECT, settings, never).differences
    assert [(one.id, one.column) for one in found] == [(name, "prediction")]


def test_nan_in_the_log_is_a_difference(settings: Settings) -> None:
    _, output = read_row(settings)
    text = json.dumps({**output, "probabilities": dict.fromkeys(output["probabilities"], float("nan"))})
    name = change(settings, "output", text)
    found = skew.check_skew(PROJECT, settings, never).differences
    assert [(one.id, one.column) for one in found] == [(name, "probabilities[1]")]


def test_changed_input_is_found(settings: Settings, contract: Contract) -> None:
    change(settings, "inputs", "{}")
    assert {one.column for one in skew.check_skew(PROJECT, settings, never).differences} >= {"score"}


def test_sample_is_bounded_and_repeatable(settings: Settings) -> None:
    assert skew.check_skew(PROJECT, settings, never, rows=30, seed=4).compared == {"1": 30}


def test_missing_bundle_is_named_in_one_line(settings: Settings) -> None:
    change(settings, "model_digest", "e" * 64)
    found = skew.check_skew(PROJECT, settings, never)
    assert found.compared == {"1": ROWS - 1}
    (reason,) = found.skipped
    assert "version 1, which made prediction" in reason
    assert "the registry does not have it" in reason
    shutil.rmtree(settings.serving_folder)
    with pytest.raises(ProjectError, match="no row could be replayed: version 1"):
        skew.check_skew(PROJECT, settings, never)


def test_fallback_answers_are_not_replayed(settings: Settings) -> None:
    change(settings, "degraded", 1)
    assert skew.check_skew(PROJECT, settings, never).skipped == {"a fallback answered": 1}


def test_empty_log_is_an_error(settings: Settings) -> None:
    empty = settings.model_copy(update={"prediction_log": "nothing"})
    with pytest.raises(ProjectError, match="has no prediction to replay"):
        skew.check_skew(PROJECT, empty, never)
