"""The example project, rendered for these tests with a link to this repository's library."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

from checkout import PROJECT, copy_template

VARIABLE = "FLYWHEEL_EXAMPLE"
"""Holds the path of the rendered project, for the other processes of one test run."""


def install() -> Path:
    """Make the example importable here and in the processes started from here; returns its folder."""
    if VARIABLE not in os.environ:
        folder = Path(tempfile.mkdtemp(prefix="flywheel-example-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ[VARIABLE] = str(render(folder))
    root = Path(os.environ[VARIABLE])
    source = str(root / "src")
    if source not in sys.path:
        sys.path.insert(0, source)
        os.environ["PYTHONPATH"] = source
    return root


def render(folder: Path) -> Path:
    """Render the current template with default answers and without hooks."""
    from cookiecutter.main import cookiecutter

    template = copy_template(folder / "template")
    settings = folder / "settings.yaml"
    settings.write_text(f"cookiecutters_dir: {folder}/templates\nreplay_dir: {folder}/replay\n")
    made = Path(
        cookiecutter(
            str(template), no_input=True, accept_hooks=False, output_dir=str(folder), config_file=str(settings)
        )
    )
    library = made / "src" / "flywheel_ml"
    shutil.rmtree(library)
    library.symlink_to(PROJECT / "src" / "flywheel_ml")
    return made
