"""The images of the stack's services; stand-ins from Debian and Python packages where needed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import yaml

from containers import base_images
from containers.engine import Engine

STAND_INS = Path(__file__).with_name("stand_ins")
POSTGRES = ("bash", "coreutils", "dash", "findutils", "grep", "postgresql", "sed")
PROGRAMS = {"prom/prometheus": "prometheus", "prom/alertmanager": "prometheus-alertmanager"}


def list_images(project: Path) -> list[str]:
    """Return the images of other makers that the stack runs without a profile."""
    content = yaml.safe_load((project / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
    services = [service for service in content["services"].values() if "profiles" not in service]
    return sorted({service["image"] for service in services if ":" in service["image"]})


def provide(engine: Engine, project: Path, home: Path) -> None:
    """Provide each image: pulled, or made under its name."""
    for name in list_images(project):
        if engine.has_image(name) or base_images.pull(engine, name):
            continue
        context = home / name.replace("/", "-").replace(":", "-")
        shutil.copytree(STAND_INS, context)
        make(engine, name, context)


def make(engine: Engine, name: str, context: Path) -> None:
    maker = name.partition(":")[0]
    if maker == "postgres":
        scratch = context / "packages"
        base_images.make_debian_image(engine, "postgres-packages", POSTGRES, scratch)
        build(engine, name, context, "postgres.dockerfile")
    elif maker in PROGRAMS:
        unpack(PROGRAMS[maker], context / "root")
        build(engine, name, context, "program.dockerfile", f"PROGRAM={PROGRAMS[maker]}")
    else:
        install = ["pip", "install", "--quiet", "--python", "/usr/bin/python3"]
        target = ["--target", str(context / "site"), "moto[server]"]
        subprocess.run([base_images.find_uv(), *install, *target], check=True)
        build(engine, name, context, "objects.dockerfile")


def unpack(package: str, root: Path) -> None:
    """Unpack a package alone: it holds one program, and the base image what that needs."""
    root.mkdir()
    subprocess.run(["apt-get", "download", "-qq", package], cwd=root, check=True)
    (archive,) = root.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", str(archive), str(root)], check=True)
    archive.unlink()


def build(engine: Engine, name: str, context: Path, dockerfile: str, *arguments: str) -> None:
    given = [part for argument in arguments for part in ("--build-arg", argument)]
    file = ["--file", str(context / dockerfile), "--network", "host", "--tag", name]
    engine.run("build", *file, *given, str(context))
