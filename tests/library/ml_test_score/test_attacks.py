"""Results of marked tests: a part of them on new code is no evidence, and tests that are gone are forgotten."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flywheel_ml.ml_test_score import attacks
from flywheel_ml.ml_test_score.attacks import TestResult, judge_attack, read_results, write_results

NOW = datetime(2026, 11, 29, tzinfo=UTC)
CONFTEST = """
from pathlib import Path
from flywheel_ml.testing.evidence import EvidenceRecorder

def pytest_configure(config):
    config.pluginmanager.register(EvidenceRecorder(Path.cwd()))
"""
TESTS = """
import pytest

@pytest.mark.attack("gate")
def test_first():
    pass

@pytest.mark.attack("gate")
def test_second():
    pass
"""


def result(code: str, outcome: str = "passed", minutes: int = 0) -> TestResult:
    at = NOW + timedelta(minutes=minutes)
    return TestResult.model_validate(
        {"attacks": ("gate",), "outcome": outcome, "at": at, "seconds": 1.0, "code": code, "properties": {}}
    )


def test_one_of_four_tests_on_new_code_is_no_evidence(tmp_path: Path) -> None:
    write_results(tmp_path, {f"t[{number}]": result("A") for number in range(4)})
    assert judge_attack("gate", read_results(tmp_path), "A", NOW).problem == ""
    for number in range(4):
        found = judge_attack("gate", read_results(tmp_path), "B", NOW)
        assert found.problem.endswith("since the tests ran" if number == 0 else f"t[{number}] has not run on this code")
        write_results(tmp_path, {**read_results(tmp_path), f"t[{number}]": result("B", minutes=1)})
    assert judge_attack("gate", read_results(tmp_path), "B", NOW).problem == ""


def test_failure_on_old_code_stays_until_it_passes(tmp_path: Path) -> None:
    write_results(tmp_path, {"t[0]": result("A"), "t[1]": result("A", "failed")})
    write_results(tmp_path, {**read_results(tmp_path), "t[0]": result("B", minutes=1)})
    assert judge_attack("gate", read_results(tmp_path), "B", NOW).problem == "t[1] failed"


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A folder with two marked tests, whose results are recorded."""
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = tests\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "conftest.py").write_text(CONFTEST)
    (tmp_path / "tests" / "test_gates.py").write_text(TESTS)
    run_tests(tmp_path)
    assert list(read_results(tmp_path)) == ["tests/test_gates.py::test_first", "tests/test_gates.py::test_second"]
    return tmp_path


def run_tests(folder: Path, *words: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    subprocess.run(command, cwd=folder, capture_output=True, check=False)


def judge(folder: Path) -> str:
    return judge_attack("gate", read_results(folder), attacks.hash_code(folder), datetime.now(UTC)).problem


def test_session_of_selected_tests_forgets_no_test(recorded: Path) -> None:
    assert judge(recorded) == ""
    (recorded / "tests" / "test_gates.py").write_text(TESTS + "\n")
    for words in (
        ["tests/test_gates.py::test_first"],
        ["-k", "first"],
        ["--deselect", "tests/test_gates.py::test_second"],
    ):
        run_tests(recorded, *words)
        assert judge(recorded) == "tests/test_gates.py::test_second has not run on this code"
    run_tests(recorded)
    assert judge(recorded) == ""


def test_whole_session_forgets_tests_that_are_gone(recorded: Path) -> None:
    (recorded / "tests" / "test_gates.py").write_text(TESTS.replace("test_second", "test_renamed"))
    run_tests(recorded, "tests/test_gates.py")
    assert judge(recorded) == "tests/test_gates.py::test_second has not run on this code"
    run_tests(recorded)
    assert judge(recorded) == ""
    assert [name.partition("::")[2] for name in read_results(recorded)] == ["test_first", "test_renamed"]


def test_session_with_a_file_that_does_not_import_forgets_no_test(recorded: Path) -> None:
    (recorded / "tests" / "test_gates.py").write_text("import absent_module\n")
    (recorded / "tests" / "test_other.py").write_text(TESTS.replace("test_", "test_other_"))
    run_tests(recorded, "--continue-on-collection-errors")
    assert "has not run on this code" in judge(recorded)
