"""Personal data is found by its form, and by the values of columns that are declared personal."""

import html
import json
from pathlib import Path

import polars as pl
import pytest

from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.data import privacy

CONTRACT = Contract(
    name="people",
    columns=(
        Column(name="note", type="string", role="ignored", nullable=True),
        Column(name="surname", type="string", role="ignored", personal=True),
        Column(name="size", type="float"),
        Column(name="late", type="boolean", role="target"),
    ),
)
TABLE = pl.DataFrame(
    {"note": ["fine", None, "fine"], "surname": ["Okonkwo", "Lindqvist", "Wu"], "size": [1.0, 2.0, 3.0]}
)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("ask jane.roe+x@mail.example.co.uk.", "e-mail address"),
        ('{"from": "j@example.org"}', "e-mail address"),
        ("+49 (30) 1234-5678", "phone number"),
        ("+14155550123", "phone number"),
        ("(415) 555-0123", "phone number"),
        ("4111111111111111", "card number"),
        ("5500-0000-0000-0004", "card number"),
        ("DE89 3704 0044 0532 0130 00", "bank account number"),
        ("GB82WEST12345698765432", "bank account number"),
        ("123-45-6789", "social security number"),
    ],
)
def test_pattern_is_found(text: str, kind: str) -> None:
    assert privacy.find_patterns(text) == {kind: 1}


@pytest.mark.parametrize(
    "text",
    [
        "4111111111111112",  # wrong check digit
        "0.4111111111111111",
        "DE88370400440532013000",
        "2013-01-01-UA-1545-EWR",
        "2013-10-07T15:29:00.123456",
        "1385000000000000",
        "a9f4111111111111111b",
        "+0.25 and +1.5 points",
        "@decorator, a@b",
        "0000000000000000",
    ],
)
def test_similar_text_is_not_found(text: str) -> None:
    assert not privacy.find_patterns(text)


def test_undeclared_column_is_reported_and_a_declared_one_is_not() -> None:
    mail = TABLE.with_columns(pl.lit("a@example.org").alias("note"), pl.lit("b@example.org").alias("surname"))
    found = privacy.report_table(mail, CONTRACT, "0")
    assert found["columns"] == {"note": {"e-mail address": 1}, "surname": {"e-mail address": 1}}
    assert found["undeclared"] == ["note"]
    assert privacy.report_table(TABLE, CONTRACT, "0")["columns"] == {}


def test_values_of_personal_columns_are_found_in_files(tmp_path: Path) -> None:
    values, left_out = privacy.collect_values(TABLE, CONTRACT)
    assert left_out == 0
    assert values == ["Okonkwo", "Lindqvist"]  # Two letters occur everywhere.
    clean, leaky = tmp_path / "clean.txt", tmp_path / "leaky.log"
    clean.write_text("nothing")
    leaky.write_text("failed for Lindqvist (j@example.org)")
    assert privacy.scan_files([clean, leaky], values) == {leaky: {"e-mail address": 1, "value of a personal column": 1}}


def test_every_personal_column_is_searched_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "MAX_VALUES", 100)
    address = Column(name="address", type="string", role="ignored", personal=True)
    contract = CONTRACT.model_copy(update={"columns": (*CONTRACT.columns, address)})
    names = [f"person {number}" for number in range(300)]
    table = pl.DataFrame({"surname": names, "address": [f"{number} Elm Street" for number in range(30)] * 10})
    values, left_out = privacy.collect_values(table, contract)
    assert sum("Elm" in value for value in values) == 30
    assert (len(values), left_out) == (80, 250)


@pytest.mark.parametrize("value", ["Sean O'Brien", 'Joe "Jo" Ray', "Tom & Ann Ltd", "Jörg Müller"])
def test_escaped_values_are_found(tmp_path: Path, value: str) -> None:
    from jinja2 import Environment

    page = Environment(autoescape=True).from_string("<td>{{ value }}</td>").render(value=value)
    texts = (value, page, html.escape(value), json.dumps([value]), json.dumps([value], ensure_ascii=False))
    paths = [tmp_path / f"{number}.txt" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    assert privacy.scan_files(paths, [value]) == {path: {"value of a personal column": 1} for path in paths}
