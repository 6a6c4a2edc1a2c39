"""The report is self-contained, complete for every verdict, and escapes content from requests."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.monitoring import plots, report
from flywheel_ml.monitoring.quality import Measure
from flywheel_ml.monitoring.result import evaluate_window
from flywheel_ml.monitoring.sources.logged_rows import from_log
from flywheel_ml.monitoring.sources.scored_file import from_file
from flywheel_ml.prediction_log import Reader
from flywheel_ml.utils import formatting
from library.helpers.windows import write_scored_file

NOW = datetime(2020, 1, 1, tzinfo=UTC)
HOSTILE = "<script>alert('1')</script>\"><img src=https://x.invalid/a onerror=alert(2)>{{ 7*7 }}&amp;"

Page = Callable[[pl.DataFrame], str]


@pytest.fixture
def page(tmp_path: Path, bundle: Bundle, params: Params) -> Page:
    """The report on a table."""

    def page(frame: pl.DataFrame) -> str:
        window = from_file(
            write_scored_file(frame, bundle, tmp_path / "scored.parquet"), bundle, params.evaluate.slices
        )
        return report.render_html(evaluate_window(window, bundle, params, NOW), window, bundle)

    return page


def assert_stands_alone(html: str) -> None:
    assert not re.search(r"https?:", html)
    assert not re.search(r"<(script|link|img|iframe|object|embed|base|form)\b", html, re.IGNORECASE)
    assert not re.search(r"\b(src|href|srcset|on\w+)\s*=\s*[\"']", html)
    assert "url(" not in html
    assert "@import" not in html
    for drawing in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(drawing)
    assert len(html) < 1_500_000


def test_report_is_self_contained_and_shows_its_verdict(
    page: Page, alike: pl.DataFrame, moved: pl.DataFrame, contract: Contract
) -> None:
    target = contract.target.name
    pages = {
        "ok": page(alike),
        "drift": page(moved.drop(target)),
        "degraded": page(moved.with_columns(~pl.col(target))),
        "insufficient data": page(alike.head(20)),
    }
    for verdict, html in pages.items():
        assert_stands_alone(html)
        assert f'<span class="chip">{verdict}</span>' in html
    assert "What changed" in pages["drift"]
    assert "What changed" not in pages["ok"]
    assert "ROC curve" in pages["degraded"]
    assert "ROC curve" not in pages["drift"]


def test_report_of_an_empty_window_is_readable(tmp_path: Path, bundle: Bundle, params: Params) -> None:
    window = from_log(Reader(str(tmp_path)), bundle, params.evaluate.slices)
    html = report.render_html(evaluate_window(window, bundle, params, NOW), window, bundle)
    assert_stands_alone(html)
    assert "Too little data" in html


def test_report_escapes_hostile_values(page: Page, alike: pl.DataFrame, contract: Contract, params: Params) -> None:
    text = [column.name for column in contract.inputs if column.type == "string"]
    html = page(alike.with_columns(pl.lit(HOSTILE).alias(name) for name in text))
    assert_stands_alone(html.replace("https://x.invalid", ""))
    assert "<script>alert" not in html
    if set(params.evaluate.slices) & set(text):
        assert "&lt;script&gt;alert(" in html
        assert "{{ 7*7 }}" in html


def test_report_escapes_hostile_names(tmp_path: Path, alike: pl.DataFrame, bundle: Bundle, params: Params) -> None:
    window = from_file(write_scored_file(alike, bundle, tmp_path / "<b>x.parquet", version=HOSTILE), bundle)
    html = report.render_html(evaluate_window(window, bundle, params, NOW), window, bundle)
    assert "<script>alert" not in html
    assert "<b>x" not in html


def test_equal_windows_give_equal_reports(page: Page, moved: pl.DataFrame) -> None:
    assert page(moved) == page(moved)


def test_report_has_a_plot_for_every_drifted_input(page: Page, moved: pl.DataFrame, bundle: Bundle) -> None:
    html = page(moved)
    cards = re.findall(r'<div class="card">(.*?)</div>', html, re.DOTALL)
    assert cards
    assert all("<svg" in card for card in cards)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (formatting.rows(1), "1 row"),
        (formatting.rows(1200), "1,200 rows"),
        (formatting.percent(0.0), "0%"),
        (formatting.percent(0.00001), "< 0.1%"),
        (formatting.percent(0.1234), "12.3%"),
        (formatting.percent(1.0), "100%"),
        (formatting.number(12345.6, "mi"), "12,346\N{NO-BREAK SPACE}mi"),
        (formatting.number(2013.0, "year"), "2013\N{NO-BREAK SPACE}year"),
        (formatting.number(-40.0, "°"), "−40°"),
        (formatting.number(0.00012), "0.00012"),
        (formatting.number(0.0), "0"),
        (formatting.p_value(1e-12), "< 0.0001"),
        (formatting.p_value(0.25), "0.25"),
        (formatting.metric_change("recall", 0.5, 0.25), "−25.0 pp"),
        (formatting.metric_change("roc_auc", 0.7, 0.75), "+0.050"),
        (formatting.span(datetime(2013, 11, 1), datetime(2013, 11, 30)), "1 Nov 2013 to 30 Nov 2013"),
        (formatting.span(None, None), "no times"),
    ],
)
def test_numbers_are_formatted_for_people(shown: str, expected: str) -> None:
    assert shown == expected


def test_error_free_model_can_be_drawn() -> None:
    never = Measure(value=0.0, low=0.0, high=0.0, reference=0.0)
    assert "now 0" in plots.draw_interval("mae", never, 0.0, plots.WIDE)
