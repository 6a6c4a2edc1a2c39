"""Files are written atomically."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_ml.utils import files


class Interrupted(BaseException):
    """Like Ctrl-C, not a subclass of Exception."""


def _fail_halfway(path: Path, error: type[BaseException]) -> None:
    path.write_text("half")
    raise error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [ValueError, OSError, Interrupted])
@pytest.mark.parametrize("before", [None, "old"])
def test_failed_write_leaves_the_old_file(tmp_path: Path, error: type[BaseException], before: str | None) -> None:
    path = tmp_path / "file.txt"
    if before is not None:
        path.write_text(before)
    with pytest.raises(error), files.replacing(path) as part:
        _fail_halfway(part, error)
    assert names(tmp_path) == ([] if before is None else ["file.txt"])
    assert before is None or path.read_text() == before


def test_write_replaces_the_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    for text in ("first", "second"):
        with files.replacing(path) as part:
            part.write_text(text)
        assert path.read_text() == text
    assert names(path.parent) == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_readers_see_the_old_file_until_the_new_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with files.replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, Interrupted])
def test_failed_folder_leaves_the_old_one(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "folder"
    with files.replacing_folder(path) as part:
        (part / "a").write_text("old")
    with pytest.raises(error), files.replacing_folder(path) as part:
        _fail_halfway(part / "a", error)
    assert (path / "a").read_text() == "old"
    assert names(tmp_path) == ["folder"]


def test_new_folder_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for name in ("a", "b"):
        with files.replacing_folder(path) as part:
            (part / name).touch()
    assert names(path) == ["b"]
    assert names(tmp_path) == ["folder"]


def test_old_folder_is_restored_if_replacing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder"
    with files.replacing_folder(path) as part:
        (part / "a").write_text("old")
    replace = Path.replace

    def refuse_the_new(self: Path, target: Path) -> Path:
        if self.suffix == ".part":
            raise OSError("no space left")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse_the_new)
    with pytest.raises(OSError, match="no space left"), files.replacing_folder(path) as part:
        (part / "a").write_text("new")
    assert (path / "a").read_text() == "old"
    assert names(tmp_path) == ["folder"]


KILLED_BETWEEN = """
import os, sys
from pathlib import Path
from flywheel_ml.utils import files
path = Path(sys.argv[1])
replace = Path.replace
def die_at_the_second(self, target):
    if self.suffix == ".part":
        os.kill(os.getpid(), 9)
    return replace(self, target)
Path.replace = die_at_the_second
with files.replacing_folder(path) as part:
    (part / "a").write_text("new")
"""


def test_folder_of_a_killed_writer_is_restored(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with files.replacing_folder(path) as part:
        (part / "a").write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED_BETWEEN, path], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not path.exists()
    files.remove_leftovers(tmp_path)
    assert (path / "a").read_text() == "old"
    assert names(tmp_path) == ["folder"]


KILLED_WRITING = """
import sys, time
from pathlib import Path
from flywheel_ml.utils import files
with files.replacing(Path(sys.argv[1])) as part:
    part.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_only_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    mine = [".env.old", ".notes.part", ".folder.old", "plain.part", ".a.20130101.older"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITING, tmp_path / "file.txt"], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.kill()
    assert len(names(tmp_path)) == len(mine) + 1
    files.remove_leftovers(tmp_path, tmp_path / "absent")
    assert names(tmp_path) == sorted(mine)


def test_old_folder_does_not_replace_its_successor(tmp_path: Path) -> None:
    (tmp_path / ".folder.abcdefgh.old" / "folder").mkdir(parents=True)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "new").touch()
    files.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["new"]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text('aé\u2028"\\'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=8,
)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(json_values, st.sampled_from([None, 2]))
def test_canonical_json_parses_and_ignores_key_order(content: object, indent: int | None) -> None:
    text = files.canonical_json(content, indent)
    assert json.loads(text) == content
    assert files.canonical_json(_reversed(content), indent) == text


def _reversed(content: object) -> object:
    if isinstance(content, dict):
        return {key: _reversed(content[key]) for key in reversed(content)}
    return [_reversed(item) for item in content] if isinstance(content, list) else content


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_canonical_json_rejects_nan_and_infinity(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "x.json", {"a": value})
    assert names(tmp_path) == []


def test_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes("é".encode() * 100_000)
    assert files.sha256_file(path) == files.sha256_text("é" * 100_000)


def test_two_writers_of_one_file_leave_one_complete_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    script = (
        "import sys\nfrom pathlib import Path\nfrom flywheel_ml.utils import files\n"
        "for _ in range(200):\n    with files.replacing(Path(sys.argv[1])) as part:\n"
        "        part.write_text(sys.argv[2] * 100_000)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, path, letter]) for letter in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            seen.add(path.read_text())
        time.sleep(0.001)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= {"a" * 100_000, "b" * 100_000}
    assert names(tmp_path) == ["file.txt"]
    assert path.stat().st_size == 100_000
