"""The data card shows what the run found, and special characters do not break its tables."""

from pathlib import Path

import polars as pl
import pytest

from flywheel_ml.core.contract import Contract
from flywheel_ml.data import data_card
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError
from library.helpers.orders import SHOP

COUNTS = {"rows_after_until": 1200, "rows_without_label": 3}


def row_of(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_card_counts_present_and_dropped_rows(orders: pl.DataFrame, shop: Contract) -> None:
    text = data_card.render_card(orders, shop, COUNTS)
    assert "# Data card: orders" in text
    assert "100 rows × 11 columns, 2020-01-01 00:00:00 to 2020-04-09 00:00:00" in text
    assert "1,200 rows later than `data.until`, 3 without a label" in text
    assert "target: `returned`, 25.0% true" in text
    assert "personal data: `buyer`" in text


def test_each_column_has_a_row_with_what_was_allowed_and_found(orders: pl.DataFrame, shop: Contract) -> None:
    text = data_card.render_card(orders, shop, COUNTS)
    assert row_of(text, "items")[1:7] == ["feature", "integer", "–", "1 to 50", "1 … 25.5 … 50", "–"]
    assert row_of(text, "amount")[3:5] == ["EUR", "0 to 1000"]
    assert row_of(text, "amount")[6] == "10.0%"
    assert row_of(text, "region")[4:6] == ["3 categories, others up to 10.0%", "3 distinct"]
    assert row_of(text, "gift")[5] == "50.7% true"
    assert row_of(text, "placed")[5].startswith("2020-01-01")
    assert all(f"| `{column.name}` |" in text for column in shop.columns)


def test_a_column_without_any_value_has_a_row_too(orders: pl.DataFrame, shop: Contract) -> None:
    empty = orders.with_columns(
        pl.lit(None, dtype=orders.schema[name]).alias(name) for name in ("amount", "gift", "channel")
    )
    text = data_card.render_card(empty, shop, COUNTS)
    assert row_of(text, "amount")[5:7] == ["–", "100.0%"]
    assert row_of(text, "gift")[5] == "–"


def test_bars_and_line_breaks_do_not_break_the_table(orders: pl.DataFrame) -> None:
    columns = [
        {**column, "unit": "a|b", "description": "one\ntwo | three"} if column["name"] == "weight" else column
        for column in SHOP["columns"]
    ]
    contract = config_model.parse({**SHOP, "columns": columns}, Contract, "contract.yaml")
    line = next(line for line in data_card.render_card(orders, contract, COUNTS).splitlines() if "`weight`" in line)
    assert line.replace(r"\|", "").count("|") == 9
    assert "one two" in line


def test_equal_tables_give_equal_cards(orders: pl.DataFrame, shop: Contract) -> None:
    assert data_card.render_card(orders, shop, COUNTS) == data_card.render_card(orders.clone(), shop, COUNTS)


def test_template_of_the_project_rewords_the_card(orders: pl.DataFrame, shop: Contract, tmp_path: Path) -> None:
    template = tmp_path / "data_card.md.jinja"
    template.write_text('{% extends "library/data_card.md.jinja" %}{% block title %}# Orders{% endblock %}\n')
    reworded = data_card.render_card(orders, shop, COUNTS, templates=tmp_path)
    assert reworded.splitlines()[1:] == data_card.render_card(orders, shop, COUNTS).splitlines()[1:]
    assert reworded.startswith("# Orders\n")
    template.write_text("{% extends 'library/data_card.md.jinja' %}{% block title %}{{ nobody }}{% endblock %}")
    with pytest.raises(ConfigError, match=r"data_card.md.jinja: 'nobody' is undefined"):
        data_card.render_card(orders, shop, COUNTS, templates=tmp_path)
