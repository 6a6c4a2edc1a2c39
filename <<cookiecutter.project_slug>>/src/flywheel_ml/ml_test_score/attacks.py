"""Attacks: tests in which a promise is attacked, and when they passed on the present code.

A test names its attack with `@pytest.mark.attack("name")`; `testing/evidence.py` records the results. They count for
as long as the code, tests and configuration are those that were tested.
"""

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from flywheel_ml.utils.config_model import StrictModel
from flywheel_ml.utils.files import read_json, write_json

FILE = Path("var/attacks.json")
MAX_AGE = timedelta(days=35)
"""How old a passing test may be; the tests are meant to run weekly or with every change."""
_CONFIGURATION = ("contract.yaml", "params.yaml", "dvc.yaml", "pyproject.toml", "uv.lock")


class TestResult(StrictModel):
    """The last result of one marked test.

    Attributes:
        attacks: the attacks it names.
        outcome: how it ended; a test that does not apply to the contract is skipped.
        code: hash of what was tested, see `hash_code`.
        properties: figures that the test recorded with `record_property`.
    """

    __test__ = False

    attacks: tuple[str, ...]
    outcome: Literal["passed", "failed", "skipped"]
    at: datetime
    seconds: float
    code: str
    properties: dict[str, str | float] = Field(default_factory=dict)


class AttackResult(NamedTuple):
    """All tests of one attack together: why it does not count (empty if it does), its tests, figures and time."""

    problem: str
    tests: tuple[str, ...] = ()
    at: datetime | None = None
    properties: Mapping[str, str | float] = MappingProxyType({})


def hash_code(root: Path) -> str:
    """sha256 of code, tests and configuration of the project in `root`."""
    files = [root / name for name in _CONFIGURATION]
    files += [path for folder in ("src", "tests") for path in (root / folder).rglob("*") if path.suffix != ".pyc"]
    digest = hashlib.sha256()
    for path in sorted(path for path in files if path.is_file()):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def read_results(root: Path = Path()) -> dict[str, TestResult]:
    """Read the results by test; empty if there are none, or the file is damaged."""
    try:
        content: dict[str, Any] = read_json(root / FILE)
        return {name: TestResult.model_validate(one, strict=False) for name, one in content.items()}
    except (OSError, ValueError, AttributeError, ValidationError):
        return {}


def write_results(root: Path, results: dict[str, TestResult]) -> None:
    """Write the results; those on other code stay, as a list of tests that must run again."""
    write_json(root / FILE, {name: one.model_dump(mode="json") for name, one in sorted(results.items())})


def judge_attack(name: str, results: dict[str, TestResult], code: str, now: datetime) -> AttackResult:
    """Judge one attack by the results of its tests: all ran on this code, at least one passed, none failed."""
    mine = {test: one for test, one in results.items() if name in one.attacks}
    if not mine:
        return AttackResult(f"no test of the attack '{name}' has run")
    tests, oldest = tuple(mine), min(one.at for one in mine.values())
    figures = {key: value for one in mine.values() for key, value in one.properties.items()}
    if failed := [test for test, one in mine.items() if one.outcome == "failed"]:
        return AttackResult(f"{failed[0]} failed", tests, oldest, figures)
    if stale := [test for test, one in mine.items() if one.code != code]:
        problem = "code, tests or configuration changed since the tests ran"
        if len(stale) < len(mine):
            problem = f"{stale[0]} has not run on this code"
        return AttackResult(problem, tests, oldest, figures)
    if now - oldest > MAX_AGE:
        return AttackResult(f"the tests ran {(now - oldest).days} days ago", tests, oldest, figures)
    if all(one.outcome == "skipped" for one in mine.values()):
        return AttackResult("its tests do not apply to this contract", tests, oldest, figures)
    return AttackResult("", tests, oldest, figures)
