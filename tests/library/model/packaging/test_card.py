"""The model card shows what was measured, and stays a table whatever the values are called."""

from pathlib import Path
from typing import Any

import pytest

from flywheel_ml.core import bundle
from flywheel_ml.core.contract import Contract
from flywheel_ml.model.packaging import card

SPLIT = {name: {"rows": 1234, "first": "2020-01-01", "last": "2020-02-01"} for name in ("train", "validation", "test")}


@pytest.fixture
def facts(bundle_path: Path) -> dict[str, Any]:
    return bundle.verify(bundle_path).model_dump()


def test_card_lists_every_measure_of_model_and_baselines(facts: dict[str, Any], contract: Contract) -> None:
    text = card.render_card(facts, contract, SPLIT)
    assert f"# Model card: {facts['name']}" in text
    assert f"`{contract.target.name}`" in text
    heads = ("measure", "model", "gradient boosting by default", "linear baseline", "always the average")
    assert f"| {' | '.join(heads)} | model on validation |" in text
    assert f"| ROC AUC | {facts['metrics']['test']['roc_auc']:.4f} |" in text
    assert "train: 1,234 rows, 2020-01-01 to 2020-02-01" in text


def test_card_counts_test_rows_that_training_has_seen(facts: dict[str, Any], contract: Contract) -> None:
    told = f"12 of 1,234 test rows equal a training row{' but for the time' if contract.time else ''}: "
    assert told in card.render_card(facts, contract, {**SPLIT, "test": {**SPLIT["test"], "in_train": 12}})
    assert "equal a training row" not in card.render_card(
        facts, contract, {**SPLIT, "test": {**SPLIT["test"], "in_train": 0}}
    )


def test_card_names_costs_if_one_class_chose_the_threshold(facts: dict[str, Any], contract: Contract) -> None:
    assert "(cheapest on out-of-fold rows)" in card.render_card(facts, contract, SPLIT)
    facts["metrics"]["validation"]["prevalence"] = 0.0
    assert "(from the costs alone, because all rows that choose it have the same class)" in card.render_card(
        facts, contract, SPLIT
    )


def test_a_slice_that_is_too_small_makes_no_claim(facts: dict[str, Any], contract: Contract) -> None:
    part = {"column": "c", "value": "a|b\nc", "rows": 3, "enough": False, "metrics": {"roc_auc": 1.0}}
    text = card.render_card({**facts, "slices": [part]}, contract, SPLIT)
    assert "| c | a\\|b c | 3 | *too small* | | |" in text
    assert "1.0000" not in text.split("## By slice")[1]


def test_every_table_row_has_the_cells_of_its_header(facts: dict[str, Any], contract: Contract) -> None:
    cells = 0
    for line in card.render_card(facts, contract, SPLIT).splitlines():
        found = line.replace("\\|", "").count("|")
        assert not (found and cells) or found == cells, line
        cells = found


def test_card_states_background_rows_and_personal_data(
    facts: dict[str, Any], contract: Contract, bundle_path: Path
) -> None:
    assert "The bundle contains 50 training rows (`background.json`)" in (bundle_path / bundle.CARD).read_text()
    first = contract.inputs[0]
    columns = tuple(
        column.model_copy(update={"personal": True}) if column is first else column for column in contract.columns
    )
    told = card.render_card(facts, contract.model_copy(update={"columns": columns}), SPLIT, background=7)
    assert "The bundle contains 7 training rows" in told
    assert f"personal data: `{first.name}`" in told
    assert "contains no rows of data, so its predictions cannot be explained" in card.render_card(
        facts, contract, SPLIT
    )


def test_without_slices_the_card_says_where_to_list_them(facts: dict[str, Any], contract: Contract) -> None:
    assert "`evaluate.slices`" in card.render_card({**facts, "slices": []}, contract, SPLIT)
