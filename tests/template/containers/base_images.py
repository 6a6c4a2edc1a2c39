"""Base images for builds where no registry is reachable: this machine's distribution, unpacked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from checkout import REPOSITORY
from containers.engine import Engine, NoEngineError

PULL_S = 60.0
PYTHON_PACKAGES = (
    "base-files",
    "bash",
    "ca-certificates",
    "coreutils",
    "dash",
    "findutils",
    "libc-bin",
    "libstdc++6",
    "netbase",
    "python3",
    "sed",
    "tzdata",
)
"""What the Dockerfile of the server uses of python:3.11-slim-bookworm."""


def provide(engine: Engine, names: list[str], home: Path) -> bool:
    """Provide the base images of a Dockerfile; returns whether they are stand-ins.

    Raises:
        NoEngineError: they can be neither pulled nor made here.
    """
    if all(engine.has_image(name) or pull(engine, name) for name in names):
        return False
    for name in names:
        if name.rpartition("/")[2].startswith("uv:"):
            make_uv_image(engine, name)
        else:
            make_debian_image(engine, name, PYTHON_PACKAGES, home / "python")
    return True


def list_base_images(dockerfile: Path) -> list[str]:
    """Return the images that a Dockerfile starts from, with its default arguments."""
    text = dockerfile.read_text(encoding="utf-8")
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)", text, re.MULTILINE))
    names = re.findall(r"^FROM (\S*[/:]\S*)", text, re.MULTILINE)
    return [re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], name) for name in names]


def pull(engine: Engine, name: str) -> bool:
    command = [engine.program, "pull", "--quiet", name]
    try:
        done = subprocess.run(
            command, env=engine.environment, capture_output=True, timeout=PULL_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def make_uv_image(engine: Engine, name: str) -> None:
    """Make the image of uv from the binary that this machine uses."""
    program = find_uv()
    import_files(engine, name, program.parent, program.name)


def find_uv() -> Path:
    """Return the uv that `make` uses here."""
    found = os.environ.get("UV") or shutil.which("uv") or REPOSITORY / ".uv" / "bin" / "uv"
    return Path(found)


def make_debian_image(
    engine: Engine, name: str, packages: tuple[str, ...], scratch: Path, *changes: str
) -> None:
    """Make an image of packages and all that they depend on: unpacked, their scripts not run."""
    if shutil.which("apt-get") is None:
        raise NoEngineError(f"no registry has {name}, and apt-get cannot make a stand-in")
    archives, root = scratch / "archives", scratch / "root"
    (archives / "partial").mkdir(parents=True)
    root.mkdir()
    options = {
        "Dir::State::status": "/dev/null",  # nothing is installed yet
        "Dir::Cache::archives": str(archives),
        "APT::Sandbox::User": "root",
    }
    given = [f"-o{key}={value}" for key, value in options.items()]
    install = ["install", "--yes", "--no-install-recommends", "--download-only", *packages]
    subprocess.run(["apt-get", "-qq", *given, *install], check=True, capture_output=True)
    for package in sorted(archives.glob("*.deb")):
        unpack = f'dpkg-deb --fsys-tarfile "{package}" | tar --extract --directory "{root}"'
        subprocess.run(["sh", "-c", unpack], check=True)
    for link in ("python", "python3"):
        if (root / "usr/bin/python3").exists():
            (root / "usr/local/bin").mkdir(parents=True, exist_ok=True)
            (root / "usr/local/bin" / link).symlink_to("/usr/bin/python3")
    path = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    import_files(engine, name, root, ".", path, *changes)
    shutil.rmtree(scratch)


def import_files(engine: Engine, name: str, folder: Path, files: str, *changes: str) -> None:
    """Make an image of files in a folder."""
    pack = ["tar", "--directory", str(folder), "--create", files]
    given = [part for change in changes for part in ("--change", change)]
    with subprocess.Popen(pack, stdout=subprocess.PIPE) as packed:
        done = subprocess.run(
            [engine.program, "import", *given, "-", name],
            stdin=packed.stdout,
            env=engine.environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
