"""What a check is made of: pieces of evidence, each verified against the collected facts."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from flywheel_ml.ml_test_score.facts import Facts

Section = Literal["data", "model", "infrastructure", "monitoring"]
SECTIONS: tuple[Section, ...] = ("data", "model", "infrastructure", "monitoring")


class Finding(NamedTuple):
    """What verifying a piece of evidence found.

    Attributes:
        holds: whether it counts.
        text: what was seen, or what is wrong.
        path: the artifact or the tests.
        at: when it was made; None if it was made just now.
    """

    holds: bool
    text: str
    path: str = ""
    at: datetime | None = None


class Evidence(NamedTuple):
    """A piece of evidence. `verify` returns None if it does not apply, such as live traffic of an unserved model."""

    name: str
    verify: "Callable[[Facts], Finding | None]"
    hint: str


class Check(NamedTuple):
    """One of the 28 tests.

    Attributes:
        id: section and short name.
        title: what the paper asks for, in our words.
        evidence: all of it must hold for a full point.
        documented: evidence of a manual, documented test, which counts half.
        reason: why a full point cannot be automated entirely, if so.
    """

    id: str
    title: str
    evidence: tuple[Evidence, ...]
    documented: Evidence | None = None
    reason: str = ""

    @property
    def section(self) -> str:
        """The first part of the id."""
        return self.id.partition(".")[0]


def attack(name: str, check: "Callable[[Facts, Mapping[str, str | float]], str] | None" = None) -> Evidence:
    """Evidence that an attack passed in the project's tests.

    Args:
        name: the attack, as tests name it with `@pytest.mark.attack`.
        check: returns what is wrong with the figures that the tests recorded; empty if nothing is.
    """

    def verify(facts: "Facts") -> Finding:
        found = facts.judge_attack(name)
        problem = found.problem or (check(facts, found.properties) if check else "")
        where = found.tests[0] if found.tests else "tests/"
        more = f" and {len(found.tests) - 1} more" if len(found.tests) > 1 else ""
        return Finding(not problem, problem or f"attack '{name}' is caught", f"{where}{more}", found.at)

    return Evidence(f"attack: {name}", verify, "`make test`")


def stage_report(stage: str, path: str, check: "Callable[[Facts, Any], str]", hint: str = "`make run`") -> Evidence:
    """Evidence in a report of a stage that is up to date; `check` returns what is wrong with its content."""

    def verify(facts: "Facts") -> Finding:
        report = facts.pipeline.reports.get(path)
        if report is None:
            return Finding(False, f"{path} is missing or damaged", path)
        if problem := facts.pipeline.outdated.get(stage, ""):
            return Finding(False, f"stage {stage} is out of date: {problem}", path, report.at)
        try:
            problem = check(facts, report.content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problem = f"its content is not what stage {stage} writes ({type(error).__name__}: {error})"
        return Finding(not problem, problem or f"report of stage {stage}", path, report.at)

    return Evidence(f"report: {path}", verify, hint)
