"""Settings come from the environment and .env; a misspelt one is never ignored."""

from pathlib import Path

import pytest

from flywheel_ml.core.settings import Settings
from flywheel_ml.utils.errors import ConfigError


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"ML_{name.upper()}", raising=False)


def test_the_defaults_need_neither_environment_nor_file() -> None:
    settings = Settings.read()
    assert settings.tracking_uri == "sqlite:///mlflow.db"
    assert settings.keys == ()


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("ML_MAX_INSTANCES=5\nML_PREDICTION_LOG=from-file\nAWS_REGION=other\n")
    monkeypatch.setenv("ML_MAX_INSTANCES", "7")
    settings = Settings.read()
    assert (settings.max_instances, settings.prediction_log) == (7, "from-file")


def test_a_misspelt_variable_is_rejected_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_TRACKING_URL", "x")
    with pytest.raises(
        ConfigError, match=r"environment: 'ML_TRACKING_URL' is not a setting; did you mean 'ML_TRACKING_URI'"
    ):
        Settings.read()


def test_a_setting_comes_from_the_file_that_its_variable_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a mounted secret does; the file wins over the copied line of .env.example."""
    Path("secret").write_text("from-secret\n")
    Path("other").write_text("3")
    Path(".env").write_text("ML_LOG_KEY=\nML_LOG_KEY_FILE=secret\nML_KEEP_VERSIONS_FILE=other\n")
    settings = Settings.read()
    assert (settings.log_key.get_secret_value(), settings.keep_versions) == ("from-secret", 3)
    monkeypatch.setenv("ML_LOG_KEY_FILE", "other")
    assert Settings.read().log_key.get_secret_value() == "3"


def test_the_file_of_further_keys_stays_a_setting_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_API_KEYS_FILE", "keys.txt")
    settings = Settings.read()
    assert (settings.api_keys_file, settings.keys) == ("keys.txt", ())


def test_a_missing_file_of_a_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_ALERT_SMTP_PASSWORD_FILE", "none")
    with pytest.raises(ConfigError, match=r"ML_ALERT_SMTP_PASSWORD_FILE: 'none' cannot be read: No such file"):
        Settings.read()


def test_settings_name_the_new_name_of_a_renamed_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_HEAD_SECONDS", "3")
    with pytest.raises(ConfigError, match="'ML_HEAD_SECONDS' was renamed to 'ML_HEADER_TIMEOUT_SECONDS'; rename it"):
        Settings.read()


def test_a_misspelt_line_of_the_file_is_rejected_too() -> None:
    Path(".env").write_text("ML_API_KEY=secret\n")
    with pytest.raises(ConfigError, match=r"'ML_API_KEY' is not a setting; did you mean 'ML_API_KEYS'") as caught:
        Settings.read()
    assert "secret" not in str(caught.value)


def test_variables_of_other_tools_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "x")
    Settings.read()


@pytest.mark.parametrize(
    ("name", "value"),
    [("MAX_INSTANCES", "0"), ("MAX_INSTANCES", "many"), ("ENVIRONMENT", "prod"), ("LOG_SYNCHRONOUS", "OFF")],
)
def test_a_value_that_does_not_fit_is_rejected_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"ML_{name}", value)
    with pytest.raises(ConfigError, match=f"ML_{name}: .*; see .env.example"):
        Settings.read()


def test_keys_are_separated_by_commas_and_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_API_KEYS", " one-secret, ,another ")
    settings = Settings.read()
    assert settings.keys == ("one-secret", "another")
    assert "secret" not in repr(settings)
    assert "secret" not in settings.model_dump_json()


def test_every_setting_is_in_the_example_file() -> None:
    from library.helpers.project import ROOT

    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert [name for name in Settings.model_fields if f"ML_{name.upper()}=" not in text] == []


def test_the_address_of_a_registry_is_shown_without_its_password() -> None:
    shown = Settings(tracking_uri="https://ann:secret@mlflow.example:5000/team").masked_tracking_uri
    assert shown == "https://ann:***@mlflow.example:5000/team"
    assert Settings().masked_tracking_uri == "sqlite:///mlflow.db"
