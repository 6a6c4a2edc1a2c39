"""A person's own table goes the whole way, from one command to monitored answers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import demo

pytestmark = pytest.mark.slow


def houses(path: Path) -> None:
    """Numbers with decimal commas, dates written the German way, gaps with a word, free text."""
    draw = random.Random(1)  # noqa: S311
    lines = ["Nr;Datum;Stadt;Größe m²;Balkon;Preis €;Notiz"]
    for at in range(1500):
        size, city = draw.uniform(20, 180), draw.choice(["Köln", "Bonn", "Ulm"])
        # What a square metre costs depends on the city: no linear model sees that.
        price = {"Köln": 9000, "Bonn": 3000, "Ulm": 1000}[city] * size + draw.gauss(0, 20000)
        shown = "k.A." if at % 25 == 0 else f"{size:.1f}".replace(".", ",")
        day = f"{at % 28 + 1:02}.{at * 12 // 1500 + 1:02}.2023"
        balcony = draw.choice(["ja", "nein"])
        note = f'"Nummer {at}, ""ruhig"" gelegen"'
        price_shown = f"{price:.2f}".replace(".", ",")
        lines.append(f"{at:05};{day};{city};{shown};{balcony};{price_shown};{note}")
    path.write_text("\n".join(lines), encoding="cp1252")


def flowers(path: Path) -> None:
    """Three classes, no time, an odd name or two."""
    draw = random.Random(2)  # noqa: S311
    lines = ["leaf length (cm),class,kind"]
    for at in range(600):
        kind = draw.choice(["rose", "tulip", "lily"])
        length = {"rose": 3, "tulip": 5, "lily": 8}[kind] + draw.gauss(0, 0.8)
        lines.append(f"{length:.2f},{'ab'[at % 2]},{kind}")
    path.write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize(
    ("write", "target"),
    [(houses, "Preis €"), pytest.param(flowers, "kind", marks=pytest.mark.full)],
)
def test_demo_runs_on_a_custom_table(
    write: object, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(write)
    table = tmp_path / "my data.csv"
    write(table)
    monkeypatch.setattr(demo, "OUTPUT", tmp_path / "demo")
    assert demo.main([str(table), target]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["table.csv"], "give both"), (["no such table.csv", "y"], "does not exist")],
)
def test_incomplete_table_arguments_are_reported(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(arguments) == 2
    assert said in capsys.readouterr().out
