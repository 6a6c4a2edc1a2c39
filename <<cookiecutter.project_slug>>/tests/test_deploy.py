"""The deployment files agree with the code."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import httpx
import pytest
import yaml
from flywheel_ml.core.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]


def test_the_example_of_env_lists_every_setting_with_its_default() -> None:
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    shown = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert shown.keys() == {PREFIX + name.upper() for name in Settings.model_fields}
    assert Settings(_env_file=ROOT / ".env.example") == Settings(_env_file=None)


def test_the_image_takes_no_training_library_and_no_root() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM|\Z)", text, re.MULTILINE | re.DOTALL))
    assert "install-libraries --no-default-groups" in stages["serve-libraries"]
    assert list(stages)[-1] == "serve", "the server is what `docker build` builds without a target"
    for stage in ("serve", "train"):
        assert re.search(r"^USER \d+:\d+$", stages[stage], re.MULTILINE)
    assert "VOLUME" not in text
    assert {
        name.removeprefix(PREFIX).lower() for name in re.findall(r"ML_[A-Z_]+", text)
    } <= Settings.model_fields.keys()


def test_the_stack_is_named_after_the_project_and_limits_each_container() -> None:
    stack = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
    assert stack["name"] == tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
    for name, service in stack["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["mem_limit"], name
        assert service["logging"]["options"]["max-size"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    served = stack["services"]["serve"]
    assert served["env_file"] == [{"path": "../.env", "required": False}]
    assert {
        name.removeprefix(PREFIX).lower() for name in served["environment"] if name.startswith(PREFIX)
    } <= Settings.model_fields.keys()


def test_every_alert_asks_for_series_that_there_are(client: httpx.Client) -> None:
    told = set(re.findall(r"^# TYPE (\S+)", client.get("/metrics").text, re.MULTILINE)) | {"up"}
    groups = yaml.safe_load((ROOT / "deploy" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    asked = {
        name.removesuffix("_bucket")
        for rule in rules
        for name in re.findall(r"\b[a-z]+_[a-z_]+\b(?! ?\()|\bup\b", re.sub(r"\{.*?\}", "", rule["expr"]))
    }
    assert len(asked) > 20
    # The series of monitoring are there after its first run.
    assert {name for name in asked if not name.startswith("monitoring_")} <= told
    for rule in rules:
        page, section = rule["annotations"]["runbook"].split("#")
        titles = re.findall(r"^## (.*)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert section in {title.lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "asked",
    [
        ("promtool", "check", "config", "deploy/prometheus.yaml"),
        ("promtool", "check", "config", "--syntax-only", "deploy/stack/prometheus.yaml"),
        ("promtool", "test", "rules", "tests/alerts_test.yaml"),
        ("amtool", "check-config", "deploy/alertmanager.yaml"),
    ],
)
def test_prometheus_takes_the_configuration_and_the_alerts_go_off(asked: tuple[str, ...]) -> None:
    if shutil.which(asked[0]) is None:
        pytest.skip(f"{asked[0]} is not installed")
    result = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
