"""What stands beside the code says the same as the code."""

import re
from pathlib import Path

from << cookiecutter.package_name >>.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]


def test_the_example_of_env_lists_every_setting_with_its_default() -> None:
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    shown = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert shown.keys() == {PREFIX + name.upper() for name in Settings.model_fields}
    assert Settings(_env_file=ROOT / ".env.example") == Settings(_env_file=None)


def test_the_image_takes_no_training_library_and_no_root() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    syncs = re.findall(r"uv sync .*", text)
    assert syncs
    assert all("--locked --no-default-groups" in command for command in syncs)
    assert re.search(r"^USER \d+:\d+$", text, re.MULTILINE)
    assert re.findall(r"ML_[A-Z_]+", text)
    assert {
        name.removeprefix(PREFIX).lower() for name in re.findall(r"ML_[A-Z_]+", text)
    } <= Settings.model_fields.keys()
