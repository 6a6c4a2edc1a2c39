"""Settings and secrets, read from the environment and .env and never versioned."""

import os
from pathlib import Path
from typing import Literal, Self

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from flywheel_ml.utils.config_model import suggest
from flywheel_ml.utils.errors import ConfigError

PREFIX = "ML_"
FILE_SUFFIX = "_FILE"
"""ML_<NAME>_FILE names a file that holds the setting ML_<NAME>, as Docker and Kubernetes mount secrets."""

RENAMED = {
    "ML_LOG_UNAVAILABLE": "ML_LOG_FAILURE_POLICY",
    "ML_LOG_SPOOL": "ML_LOG_SPOOL_FOLDER",
    "ML_LOG_SPOOL_BYTES": "ML_LOG_SPOOL_MAX_BYTES",
    "ML_MAX_HEAD_BYTES": "ML_MAX_HEADER_BYTES",
    "ML_HEAD_SECONDS": "ML_HEADER_TIMEOUT_SECONDS",
    "ML_BODY_SECONDS": "ML_BODY_TIMEOUT_SECONDS",
    "ML_KEEP_ALIVE_SECONDS": "ML_KEEP_ALIVE_TIMEOUT_SECONDS",
    "ML_CHALLENGER_SECONDS": "ML_CHALLENGER_TIMEOUT_SECONDS",
    "ML_MAX_CONCURRENT": "ML_MAX_CONCURRENT_REQUESTS",
    "ML_VARIANT_HEADER": "ML_ALLOW_VARIANT_HEADER",
}
"""Old name of a setting → its current name."""

QUIET = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "ORT_DISABLE_TELEMETRY": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}
"""Environment variables that disable telemetry and noisy output of the tools."""


def list_file_variables(settings: type[BaseSettings]) -> dict[str, str]:
    """Return the variables that name a file with a setting → that setting."""
    fields = settings.model_fields
    # ML_API_KEYS_FILE is a setting itself: it holds further keys, one a line.
    return {f"{PREFIX}{name.upper()}{FILE_SUFFIX}": name for name in fields if f"{name}_file" not in fields}


def _read_setting(variable: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"{variable}: '{path}' cannot be read: {reason}") from None


class Settings(BaseSettings):
    """All settings; each is the environment variable ML_<NAME> or a line of .env, or in the file ML_<NAME>_FILE."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=".env", frozen=True, extra="ignore")

    tracking_uri: str = "sqlite:///mlflow.db"
    artifact_root: str = "mlartifacts"
    prediction_log: str = "var/log"
    serving_folder: Path = Path("var/serving")
    keep_versions: int = Field(default=10, ge=2)
    environment: Literal["development", "production"] = "development"
    api_keys: SecretStr = SecretStr("")
    api_keys_file: str = ""
    rate_limit: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    rate_burst: int = Field(default=0, ge=0)
    max_header_bytes: int = Field(default=16_384, ge=1024)
    max_body_bytes: int = Field(default=10_000_000, gt=0)
    max_instances: int = Field(default=10_000, gt=0)
    max_concurrent_requests: int = Field(default=256, gt=0)
    max_connections: int = Field(default=10_000, gt=0)
    header_timeout_seconds: float = Field(default=10.0, gt=0)
    body_timeout_seconds: float = Field(default=10.0, gt=0)
    keep_alive_timeout_seconds: float = Field(default=75.0, gt=0)
    challenger_timeout_seconds: float = Field(default=0.05, gt=0)
    allow_variant_header: bool = False
    root_path: str = Field(default="", pattern=r"^(/[A-Za-z0-9._~-]+)*$")
    drain_seconds: float = Field(default=1.0, ge=0)
    worker_timeout_seconds: float = Field(default=30.0, ge=2)
    log_synchronous: Literal["NORMAL", "FULL"] = "NORMAL"
    log_failure_policy: Literal["refuse", "spool", "unlogged"] = "refuse"
    log_spool_folder: Path = Path("var/spool")
    log_spool_max_bytes: int = Field(default=1_000_000_000, ge=1_000_000)
    log_max_age: str = ""
    log_max_size: str = ""
    log_key: SecretStr = SecretStr("")
    export_folder: Path = Path("var/exports")
    alert_webhook: SecretStr = SecretStr("")
    alert_slack_webhook: SecretStr = SecretStr("")
    alert_teams_webhook: SecretStr = SecretStr("")
    alert_alertmanager: SecretStr = SecretStr("")
    alert_email_to: str = ""
    alert_email_from: str = "monitoring@localhost"
    alert_smtp_host: str = ""
    alert_smtp_port: int = Field(default=587, gt=0, lt=65536)
    alert_smtp_security: Literal["starttls", "ssl", "none"] = "starttls"
    alert_smtp_user: str = ""
    alert_smtp_password: SecretStr = SecretStr("")
    alert_timeout_seconds: float = Field(default=5.0, gt=0, le=300)
    alert_retries: int = Field(default=2, ge=0, le=10)

    @classmethod
    def read(cls) -> Self:
        """Read the settings from the environment and .env of the current folder.

        Raises:
            ConfigError: a value is invalid, or a variable starts with ML_ and is not a setting.
        """
        files = list_file_variables(cls)
        names = [*(PREFIX + name.upper() for name in cls.model_fields), *files]
        paths: dict[str, str] = {}
        for place, variables in ((".env", dotenv_values(".env")), ("environment", dict(os.environ))):
            for variable, value in variables.items():
                if new := RENAMED.get(variable.upper()):
                    raise ConfigError(f"{place}: '{variable}' was renamed to '{new}'; rename it")
                if variable.upper().startswith(PREFIX) and variable.upper() not in names:
                    raise ConfigError(f"{place}: '{variable}' is not a setting; {suggest(variable.upper(), names)}")
                if variable.upper() in files and value:
                    paths[variable.upper()] = value
        try:
            return cls(**{files[variable]: _read_setting(variable, path) for variable, path in paths.items()})  # type: ignore[arg-type]
        except ValidationError as error:
            fault = error.errors(include_input=False)[0]
            name = PREFIX + str(fault["loc"][0]).upper()
            raise ConfigError(f"{name}: {fault['msg']}; see .env.example") from None

    @property
    def has_tracking_server(self) -> bool:
        """Whether an MLflow server stores runs and models."""
        return self.tracking_uri.startswith(("http://", "https://"))

    @property
    def masked_tracking_uri(self) -> str:
        """The tracking URI without its password, for display."""
        if "@" not in self.tracking_uri:
            return self.tracking_uri
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            return make_url(self.tracking_uri).render_as_string(hide_password=True)
        except ArgumentError:
            return self.tracking_uri

    @property
    def keys(self) -> tuple[str, ...]:
        """The accepted API keys; empty if the server requires none."""
        return tuple(key.strip() for key in self.api_keys.get_secret_value().split(",") if key.strip())
