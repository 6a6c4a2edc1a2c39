"""The page says plainly what came of retraining, and is one file that shows hostile names as text."""

import xml.etree.ElementTree as ET

import pytest

from flywheel_ml.monitoring.replay import page, picture, summary
from library.helpers.replays import Month, make_result

BETTER, WORSE, EQUAL = (-0.004, -0.006, -0.002), (0.004, 0.002, 0.006), (-0.0001, -0.002, 0.002)
PROMOTED = (Month(retrained="2", promoted="2"), Month(0.66, 0.67, "2"))
REFUSED = (Month(retrained="2", refusal="minimum score: ROC AUC 0.5"), Month(retrained="3", refusal="worse"))
UNFINISHED = (Month(), Month(retrained="2"))
FAILED = (Month(error="stage train failed"), Month(error="stage train failed"))
UNLABELLED = (Month(retrained="2", promoted="2"), Month(version="2"))


@pytest.mark.parametrize(
    ("months", "difference", "headline"),
    [
        (
            PROMOTED,
            BETTER,
            "Retraining helped: from Aug 2013 the live model’s log loss was 0.8% below the frozen one’s.",
        ),
        (
            PROMOTED,
            WORSE,
            "Retraining made the model worse: from Aug 2013 the live model’s log loss was 0.8% above the frozen one’s.",
        ),
        (
            PROMOTED,
            EQUAL,
            "Retraining did not measurably help: from Aug 2013 the live model’s log loss was less than 0.1% below "
            "the frozen one’s, which may be chance.",
        ),
        (
            REFUSED,
            None,
            "Retraining changed nothing: all 2 retrained versions were refused, and the first model served throughout.",
        ),
        (
            UNFINISHED,
            None,
            "Retraining changed nothing: the retrained version did not get into service before the end.",
        ),
        (
            FAILED,
            None,
            "Retraining changed nothing: all 2 retrainings failed, and the first model served throughout: stage train "
            "failed.",
        ),
        (UNLABELLED, None, "A retrained version served, but too few labelled rows show what it changed."),
        (
            (Month(drifted=()), Month(drifted=())),
            None,
            "Retraining changed nothing: no finding led to a retraining, and the first model served throughout.",
        ),
    ],
)
def test_headline_says_plainly_what_retraining_did(
    months: tuple[Month, ...], difference: tuple[float, float, float] | None, headline: str
) -> None:
    result = make_result(months, difference)
    assert summary.write_headline(result) == headline
    assert headline in page.render_page(result)


def test_frozen_model_without_any_loss_has_a_page() -> None:
    """Nothing can be a share of a loss of zero."""
    result = make_result(PROMOTED, WORSE)
    assert result.difference is not None
    result = result.model_copy(update={"difference": result.difference.model_copy(update={"frozen": 0.0})})
    assert "Retraining made the model worse" in page.render_page(result)


def test_page_shows_quality_findings_decisions_versions_and_seconds() -> None:
    text = page.render_page(make_result((*PROMOTED, *REFUSED), BETTER))
    for shown in ("0.660", "0.652 to 0.668", "temp, dewp", "v2 became champion", "retrained: v3 refused", "221 s"):
        assert shown in text
    assert "refused by the gate ‘minimum score’: ROC AUC 0.5" in text
    assert "<script" not in text
    assert "http://" not in text.replace("http://www.w3.org", "")


def test_rows_that_the_api_rejected_are_shown_with_the_reason() -> None:
    result = make_result((Month(),), None)
    period = result.periods[0].model_copy(update={"rejected": 12, "rejection": "distance must be between 10 and 6000"})
    text = page.render_page(result.model_copy(update={"periods": (period,)}))
    assert "12 rejected by the API: distance must be between 10 and 6000" in text


def test_retraining_that_failed_is_shown_with_the_error() -> None:
    result = make_result((Month(),), None)
    period = result.periods[0].model_copy(update={"retraining_error": "stage train failed"})
    assert "failed: stage train failed" in page.render_page(result.model_copy(update={"periods": (period,)}))


def test_period_without_rows_or_labels_is_shown() -> None:
    text = page.render_page(make_result((Month(), Month(rows=0, drifted=())), None))
    assert "no rows" in text
    assert "too few labels" in text


def test_replay_without_any_label_has_a_page() -> None:
    text = page.render_page(make_result((Month(rows=0, drifted=()),) * 2, None))
    assert "No period had enough labels to measure quality." in text


def test_hostile_names_are_shown_as_text() -> None:
    result = make_result((Month(drifted=("<script>alert(1)</script>",)),), None, name="<b>x", target='"><i>')
    assert "<script>" not in page.render_page(result)
    ET.fromstring(picture.render_picture(result))


def test_picture_is_well_formed_and_stands_alone() -> None:
    root = ET.fromstring(picture.render_picture(make_result(PROMOTED, BETTER)))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Jul 2013", "Aug 2013", "v2", "ROC AUC"} <= set(texts)


@pytest.mark.parametrize(("low", "high"), [(0.613, 0.718), (0.5, 0.5), (0.0, 0.0), (-3.0, 1200.0), (0.99991, 0.99993)])
def test_ticks_are_few_and_hold_both_values(low: float, high: float) -> None:
    first, last, step = picture.find_ticks(low, high)
    assert first <= low <= high <= last + 1e-12
    assert 1 <= round((last - first) / step) <= 8
