"""The model card shows what was measured, and stays a table whatever the values are called."""

from pathlib import Path
from typing import Any

import pytest

from << cookiecutter.package_name >> import bundle
from << cookiecutter.package_name >>.contract import Contract
from << cookiecutter.package_name >>.model import card

SPLIT = {name: {"rows": 1234, "first": "2020-01-01", "last": "2020-02-01"} for name in ("train", "validation", "test")}


@pytest.fixture
def facts(bundle_path: Path) -> dict[str, Any]:
    return bundle.verify(bundle_path).model_dump()


def test_the_card_shows_every_measure_of_the_model_beside_its_baselines(
    facts: dict[str, Any], contract: Contract
) -> None:
    text = card.text(facts, contract, SPLIT)
    assert f"# Model card: {facts['name']}" in text
    assert f"`{contract.target.name}`" in text
    heads = ("measure", "model", "gradient boosting by default", "linear baseline", "always the average")
    assert f"| {' | '.join(heads)} | model on validation |" in text
    assert f"| ROC AUC | {facts['metrics']['test']['roc_auc']:.4f} |" in text
    assert "train: 1,234 rows, 2020-01-01 to 2020-02-01" in text


def test_a_slice_that_is_too_small_makes_no_claim(facts: dict[str, Any], contract: Contract) -> None:
    part = {"column": "c", "value": "a|b\nc", "rows": 3, "enough": False, "metrics": {"roc_auc": 1.0}}
    text = card.text({**facts, "slices": [part]}, contract, SPLIT)
    assert "| c | a\\|b c | 3 | *too small* | | |" in text
    assert "1.0000" not in text.split("## By slice")[1]


def test_every_table_row_has_the_cells_of_its_header(facts: dict[str, Any], contract: Contract) -> None:
    cells = 0
    for line in card.text(facts, contract, SPLIT).splitlines():
        found = line.replace("\\|", "").count("|")
        assert not (found and cells) or found == cells, line
        cells = found


def test_without_slices_the_card_says_where_to_list_them(facts: dict[str, Any], contract: Contract) -> None:
    assert "`evaluate.slices`" in card.text({**facts, "slices": []}, contract, SPLIT)
