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
        self._collected: set[str] = set()
        self._lacks_tests = self._is_whole = False

    def pytest_configure(self, config: pytest.Config) -> None:
        """Register the mark."""
        config.addinivalue_line("markers", "attack(name): the promise that this test attacks, for `ml-test-score`")

    def pytest_sessionstart(self) -> None:
        """Hash what is about to be tested."""
        self._code = hash_code(self._root)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Remember which tests exist; a session is whole if no option or error selected some of them."""
        config = session.config
        self._collected = {item.nodeid for item in session.items}
        has_ignored = config.getoption("ignore", None) or config.getoption("ignore_glob", None)
        is_default = config.args_source is pytest.Config.ArgsSource.TESTPATHS
        self._is_whole = is_default and not has_ignored and not self._lacks_tests

    def pytest_deselected(self) -> None:
        """Remember that tests were deselected."""
        self._lacks_tests = True

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Remember that tests of a file are not known."""
        self._lacks_tests |= not report.passed

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
        """Write the results; tests that did not run keep their last result, unless they no longer exist."""
        if not self._results:
            return
        known = read_results(self._root)
        if self._is_whole:
            known = {name: one for name, one in known.items() if name in self._collected}
        write_results(self._root, {**known, **self._results})
