"""The scorecard for people and programs: reports/ml-test-score.json and .md, and the lines of a terminal table."""

from collections.abc import Iterator
from datetime import datetime

from flywheel_ml.core import paths
from flywheel_ml.ml_test_score.score import Scorecard, VerifiedEvidence
from flywheel_ml.utils.files import replacing, write_json

JSON, MARKDOWN = (paths.REPORTS / f"ml-test-score.{suffix}" for suffix in ("json", "md"))


def write(card: Scorecard) -> None:
    """Write both files, atomically."""
    write_json(JSON, card.model_dump(mode="json"))
    with replacing(MARKDOWN) as part:
        part.write_text("\n".join(render_markdown(card)) + "\n", encoding="utf-8")


def render_markdown(card: Scorecard) -> Iterator[str]:
    """Yield the lines of the Markdown page."""
    yield f"# ML Test Score of {card.name}: {card.score:g} of 7"
    yield ""
    yield f"{card.at:%F %R} UTC, model {card.model}. The score is the lowest of the four sections."
    for section, points in card.sections.items():
        yield ""
        yield f"## {section.capitalize()}: {points:g} of 7"
        yield ""
        yield "| Points | Test | Evidence |"
        yield "|---|---|---|"
        for check in card.checks:
            if check.id.startswith(f"{section}."):
                lines = [_describe(one, card.at) for one in check.evidence]
                lines += [f"**{check.hint}**"] if check.hint else []
                lines += [check.reason] if check.reason and check.points < 1 else []
                cells = "<br>".join(line.replace("|", "\\|") for line in lines)
                yield f"| {check.points:g} | {check.title} (`{check.id}`) | {cells} |"


def render_text(card: Scorecard) -> Iterator[str]:
    """Yield the lines of a terminal: points, test, and its evidence with path and age; hints for missing points."""
    width = max(len(check.title) for check in card.checks)
    for section, points in card.sections.items():
        yield f"{section.upper()} {points:g} of 7"
        for check in card.checks:
            if check.id.startswith(f"{section}."):
                found = dict.fromkeys(f"{one.path} ({format_age(one, card.at)})" for one in check.evidence if one.holds)
                yield f"{check.points:>3g}  {check.title:<{width}}  {', '.join(found) or 'no evidence'}"
                if check.hint:
                    yield f"     → {check.id}: {check.hint}"
                if check.reason and check.points < 1:
                    yield f"       {check.reason}"


def format_age(evidence: VerifiedEvidence, at: datetime) -> str:
    """Format the age of evidence, such as 5 min or 3 d."""
    if evidence.at is None:
        return "now"
    seconds = max(0.0, (at - evidence.at).total_seconds())
    for unit, size, limit in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def _describe(evidence: VerifiedEvidence, at: datetime) -> str:
    mark = "✓" if evidence.holds else "✗"
    where = f" (`{evidence.path}`, {format_age(evidence, at)})" if evidence.path else ""
    return f"{mark} {evidence.text}{where}"
