"""A pytest plugin that records which attacks passed: evidence for the ML Test Score.

A test is marked with `@pytest.mark.attack("name")`, and may add figures with pytest's `record_property`.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest

from flywheel_ml.ml_test_score.attacks import TestResult, hash_code, read_results, write_results

_ATTACK = "attack"


class EvidenceRecorder:
    """Collects the results of marked tests, and merges them into `attacks.FILE` when the session ends.

    Args:
        root: the project's folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._code = ""
        self._results: dict[str, TestResult] = {}

    def pytest_configure(self, config: pytest.Config) -> None:
        """Register the mark."""
        config.addinivalue_line("markers", "attack(name): the promise that this test attacks, for `ml-test-score`")

    def pytest_sessionstart(self) -> None:
        """Hash what is about to be tested."""
        self._code = hash_code(self._root)

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Let the report of a test carry the names of its attacks."""
        item.user_properties += [(_ATTACK, str(mark.args[0])) for mark in item.iter_markers(_ATTACK)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record the outcome of a marked test; the teardown may still fail it."""
        names = tuple(str(value) for key, value in report.user_properties if key == _ATTACK)
        before = self._results.get(report.nodeid)
        if not names or (report.when == "setup" and report.passed) or (report.when == "teardown" and report.passed):
            return
        outcome: Literal["passed", "failed", "skipped"] = report.outcome
        figures = {
            key: value if isinstance(value, float | int) else str(value)
            for key, value in report.user_properties
            if key != _ATTACK
        }
        self._results[report.nodeid] = TestResult(
            attacks=names,
            outcome=outcome,
            at=datetime.now(UTC),
            seconds=report.duration + (before.seconds if before else 0.0),
            code=self._code,
            properties=figures,
        )

    def pytest_sessionfinish(self) -> None:
        """Write the results; tests that did not run keep their last result."""
        if self._results:
            write_results(self._root, {**read_results(self._root), **self._results})
