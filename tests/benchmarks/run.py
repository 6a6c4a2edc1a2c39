"""Runs benchmarks, most of them on a baked project that has a champion.

    python tests/benchmarks/run.py [--project FOLDER] bench serving swap
    python tests/benchmarks/run.py --project FOLDER growth -- --most 7
    python tests/benchmarks/run.py --project FOLDER monitoring -- --rows 100000 --file-rows 1000000
    python tests/benchmarks/run.py gate_power -- --repeats 100

A benchmark runs in the project's folder and imports its package, with the libraries of this environment. Without a
folder it is the project of the last `make demo`. `cbpe`, `drift_power`, `gate_power`, `canary_power` and `abn_power`
need no project and run in the current folder.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEMO = ROOT / "build" / "demo"
LIBRARY = ROOT / "<<cookiecutter.project_slug>>" / "src"
PROJECT_BENCHMARKS = ("bench", "serving", "swap", "growth", "flame", "monitoring", "retention")
LIBRARY_BENCHMARKS = ("cbpe", "drift_power", "gate_power", "canary_power", "abn_power")


def main() -> int:
    """Run the benchmarks; returns the exit status of the first that fails, or 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, help="folder of a baked project")
    parser.add_argument("names", nargs="+", choices=(*PROJECT_BENCHMARKS, *LIBRARY_BENCHMARKS))
    words, extra = split(sys.argv[1:])
    options = parser.parse_args(words)
    for name in options.names:
        where, source = (
            (Path.cwd(), LIBRARY) if name in LIBRARY_BENCHMARKS else find_sources(options.project or find_latest())
        )
        paths = os.pathsep.join(str(path) for path in (source, HERE, HERE.parent))
        command = [sys.executable, str(HERE / f"{name}.py"), *extra]
        done = subprocess.run(command, cwd=where, env={**os.environ, "PYTHONPATH": paths}, check=False)
        if done.returncode:
            return done.returncode
    return 0


def find_sources(project: Path) -> tuple[Path, Path]:
    """Return the folders of a project and of its code."""
    if not (project / "var" / "serving" / "routing.json").is_file():
        sys.exit(f"error: {project} has no champion; run `make run` in it, or name another project with PROJECT=")
    return project.resolve(), project.resolve() / "src"


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """Split arguments at `--`; those after it are for the benchmark."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def find_latest() -> Path:
    """Return the project that `make demo` made last."""
    projects = sorted(DEMO.glob("*/pyproject.toml"), key=lambda path: path.stat().st_mtime)
    if not projects:
        sys.exit("error: no project to measure; run `make demo`, or name one with PROJECT=")
    return projects[-1].parent


if __name__ == "__main__":
    sys.exit(main())
