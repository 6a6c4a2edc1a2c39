"""Every stage or command ends with one line for the user and an exit status for scripts."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from flywheel_ml.cli.command import run_command
from flywheel_ml.core import paths
from flywheel_ml.utils.errors import ConfigError, DataError, ProjectError


@pytest.fixture
def ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Callable[[], None]], tuple[Any, str]]:
    """Exit status and standard error of a stage that runs in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def ended(main: Callable[[], None]) -> tuple[Any, str]:
        with pytest.raises(SystemExit) as left:
            run_command(main)
        return left.value.code, capsys.readouterr().err

    return ended


Ended = Callable[[Callable[[], None]], tuple[Any, str]]


def failing(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


def test_successful_stage_prints_nothing(ended: Ended) -> None:
    assert ended(lambda: None) == (0, "")


@pytest.mark.parametrize(
    ("error", "status"), [(DataError("no rows"), 1), (ConfigError("no rows"), 2), (ProjectError("no rows"), 1)]
)
def test_an_expected_error_is_one_line_with_its_status(ended: Ended, error: ProjectError, status: int) -> None:
    assert ended(failing(error)) == (status, "error: no rows\n")
    assert not paths.TRACE.exists()


def test_a_file_that_is_not_there_is_named(ended: Ended) -> None:
    status, text = ended(lambda: print(Path("reports/x.json").read_text()))
    assert (status, text) == (1, "error: reports/x.json: No such file or directory (see var/last-error.txt)\n")


def test_system_error_is_reported_in_its_own_words(ended: Ended) -> None:
    assert ended(failing(OSError(28, "No space left on device")))[1].startswith("error: No space left on device")
    assert ended(failing(OSError("socket closed")))[1].startswith("error: socket closed")


def test_bug_in_the_program_is_one_line_and_saves_a_traceback(ended: Ended) -> None:
    status, text = ended(failing(ValueError("a\nb" + 1000 * "x")))
    assert status == 1
    assert text.startswith("error: unexpected ValueError: a bxxx")
    assert text.endswith("…: a bug in this program (see var/last-error.txt)\n")
    assert text.count("\n") == 1
    assert "Traceback" in paths.TRACE.read_text()


def test_a_traceback_that_cannot_be_kept_does_not_hide_the_error(ended: Ended, tmp_path: Path) -> None:
    (tmp_path / "var").touch()
    assert ended(failing(ValueError("x"))) == (1, "error: unexpected ValueError: x: a bug in this program\n")


def test_a_library_that_the_serving_image_lacks_is_named(ended: Ended) -> None:
    status, text = ended(lambda: print(import_module("no_such_library")))
    assert status == 2
    assert text == (
        "error: this command needs the library 'no_such_library', which is not installed here; run it in the "
        "project after `make install`, or in the image for training\n"
    )


def test_interrupted_stage_exits_with_status_130(ended: Ended) -> None:
    assert ended(failing(KeyboardInterrupt())) == (130, "interrupted\n")
