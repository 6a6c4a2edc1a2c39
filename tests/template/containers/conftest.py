"""A Docker engine, base images, a baked project and its serving image, shared by the tests here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Bake
from containers import base_images
from containers.engine import IMAGE_BYTES, STACK_BYTES, Engine, NoEngineError, use_engine

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PACKAGE = "flight_delays"


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    whole = any(item.get_closest_marker("full") for item in request.session.items)
    try:
        with use_engine(STACK_BYTES if whole else IMAGE_BYTES) as engine:
            yield engine
    except NoEngineError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def project(bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default project, locked; nothing is installed or trained in it."""
    project = bake(tmp_path_factory.mktemp("project"))
    uv = base_images.find_uv()
    trust = "true" if CERTIFICATES.exists() else "false"
    environment = {**os.environ, "UV_SYSTEM_CERTS": trust, "UV_NATIVE_TLS": trust}
    subprocess.run([uv, "lock", "--quiet"], cwd=project, env=environment, check=True)
    return project


@pytest.fixture(scope="session")
def base(engine: Engine, project: Path, tmp_path_factory: pytest.TempPathFactory) -> bool:
    """Whether the base images are stand-ins."""
    names = base_images.list_base_images(project / "deploy" / "Dockerfile")
    try:
        return base_images.provide(engine, names, tmp_path_factory.mktemp("base"))
    except NoEngineError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def serving_folder(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A serving folder with a model of the project as champion."""
    folder = tmp_path_factory.mktemp("serving") / "serving"
    script = Path(__file__).with_name("make_bundle.py")
    command = [sys.executable, str(script), PACKAGE, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(project / "src")}
    subprocess.run(command, cwd=project, env=environment, check=True)
    open_to_containers(folder)
    return folder


def open_to_containers(folder: Path) -> None:
    """Let every user enter a folder that pytest made for its own alone."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for parent in folder.parents:
        if parent.name.startswith("pytest-") or parent.parent.name.startswith("pytest-"):
            parent.chmod(0o711)


def build(engine: Engine, project: Path, tag: str, *options: str) -> str:
    """Build an image of the project as its docs say; returns its tag."""
    if CERTIFICATES.exists():
        options = ("--secret", f"id=ca,src={CERTIFICATES}", *options)
    given = ["--network", "host", "--file", "deploy/Dockerfile", "--tag", tag]
    engine.run("build", *given, *options, ".", cwd=project)
    return tag
