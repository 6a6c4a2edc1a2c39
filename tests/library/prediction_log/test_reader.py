"""The reader selects labelled rows and counts hours without reading all rows."""

from pathlib import Path

import pytest

from flywheel_ml.prediction_log import (
    Block,
    EntityOutcome,
    Origin,
    Outcome,
    Prediction,
    Reader,
    Writer,
    build_block,
    new_block_ids,
    new_ids,
    reader,
)
from flywheel_ml.prediction_log.blocks import pack_inputs, pack_outputs

HOUR_US = 3_600_000_000
START_US = 480_000 * HOUR_US
DIGEST = "a" * 64


def build_rows(count: int, variant: str = "champion", digest: str = DIGEST) -> list[Prediction]:
    """Build rows that are a minute apart."""
    return [
        Prediction(name, START_US + at * 60_000_000, None, None, variant, "1", digest, '{"x":1}', "{}", 0.5, 100, False)
        for at, name in enumerate(new_ids(count))
    ]


def build_old_block(rows: int) -> Block:
    """Build a block whose rows are in the second hour."""
    ids, answers = new_block_ids(rows), ['{"prediction":true}'] * rows
    outputs = pack_outputs(answers, ["0.5"] * rows)
    block = build_block(Origin("champion", "1", DIGEST, False), ids, pack_inputs([{"x": 1}] * rows), outputs, 100)
    return block._replace(timestamp_us=START_US + HOUR_US)


@pytest.fixture
def log(tmp_path: Path) -> str:
    """90 rows, 30 of a shadow and 10 in a block, in files of two processes; every fifth row has a label."""
    rows, block = build_rows(90), build_old_block(10)
    shadow = [row._replace(id=name) for row, name in zip(rows[:30], new_ids(30), strict=True)]
    labels = [Outcome(row.id, row.timestamp_us + 5, "true") for row in rows[::5]]
    in_block = Outcome(f"{block.id[:-8]}{3:08x}", block.timestamp_us, "false")
    with Writer(str(tmp_path), "serve") as writer:
        writer.append([*rows, block]).result()
    with Writer(str(tmp_path), "other") as writer:
        writer.append([*(row._replace(variant="shadow") for row in shadow), *labels, in_block]).result()
    return str(tmp_path)


def test_hours_are_counted_over_all_files_variants_and_blocks(log: str) -> None:
    first = START_US // HOUR_US
    assert Reader(log).count_hours() == {first: 90, first + 1: 40}
    assert Reader(log).count_hours(START_US + HOUR_US) == {first + 1: 40}
    assert Reader(log).count_hours(until_us=START_US + 1) == {first: 90}
    assert Reader(log).count_hours(START_US + 9 * HOUR_US) == {}


@pytest.mark.parametrize("share", [0.0, 1e9])
def test_labelled_rows_are_found_by_scan_and_by_lookup(log: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_LOOKED_UP_SHARE", share)
    expected = [one for one in Reader(log).predictions(model_digest=DIGEST) if one.label is not None]
    assert len(expected) == 19
    assert sorted(Reader(log).labelled(model_digest=DIGEST)) == sorted(expected)
    span = (START_US + 600_000_000, START_US + HOUR_US + 1)
    of_span = [one for one in expected if span[0] <= one.prediction.timestamp_us < span[1]]
    assert 0 < len(of_span) < 19
    assert sorted(Reader(log).labelled(*span, model_digest=DIGEST)) == sorted(of_span)
    assert list(Reader(log).labelled(model_digest="b" * 64)) == []


def test_all_variants_are_read_without_labels(log: str) -> None:
    found = list(Reader(log).unlabelled())
    assert len(found) == 130
    assert {row.variant for row in found} == {"champion", "shadow"}


@pytest.mark.parametrize("share", [0.0, 1e9])
def test_labelled_rows_include_those_joined_by_entity(
    tmp_path: Path, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MAX_LOOKED_UP_SHARE", share)
    rows = [row._replace(entity_id=f"e{at % 10}") for at, row in enumerate(build_rows(40))]
    late = EntityOutcome("e3", rows[23].timestamp_us, "true", rows[39].timestamp_us)
    with Writer(str(tmp_path), "serve") as writer:
        writer.append(rows).result()
    with Writer(str(tmp_path), "labels") as writer:
        writer.append([late, Outcome(rows[0].id, rows[0].timestamp_us, "false", rows[0].timestamp_us)]).result()
    found = {
        one.prediction.id: (one.label, one.label_row) for one in Reader(str(tmp_path)).labelled(model_digest=DIGEST)
    }
    assert {name: label for name, (label, _) in found.items()} == {
        rows[0].id: "false",
        rows[3].id: "true",
        rows[13].id: "true",
        rows[23].id: "true",
    }
    assert found[rows[3].id][1] == late


def test_label_with_an_outcome_before_the_span_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_LOOKED_UP_SHARE", 1e9)
    rows = build_rows(10)
    arrived = rows[9].timestamp_us + 1
    backdated = [Outcome(rows[8].id, 5, "true", arrived), Outcome(rows[7].id, 5, "true")]
    with Writer(str(tmp_path), "serve") as writer:
        writer.append([*rows, *backdated]).result()
    found = Reader(str(tmp_path)).labelled(rows[5].timestamp_us, model_digest=DIGEST)
    assert {one.prediction.id for one in found} == {rows[8].id, rows[7].id}
