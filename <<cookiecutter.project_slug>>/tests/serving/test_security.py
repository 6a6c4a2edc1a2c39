"""Who may ask what."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from << cookiecutter.package_name >>.errors import ConfigError
from << cookiecutter.package_name >>.serving.app import create_app
from << cookiecutter.package_name >>.settings import Settings

from .support import Folder, InProcess

V2 = "/v2/models/any"
PRIVATE = [
    *(("POST", path) for path in ("/predict", "/feedback", "/invocations", f"{V2}/infer", f"{V2}/versions/1/infer")),
    *(("GET", path) for path in ("/model", "/v2", V2, f"{V2}/ready", f"{V2}/versions/1", f"{V2}/versions/1/ready")),
]
OPEN = [
    *(("GET", path) for path in ("/healthz", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready")),
    ("POST", "/ping"),
]
FOR_DEVELOPERS = [("GET", "/metrics"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/docs/swagger-ui.css")]


def client(folder: Folder, home: Path, **values: Any) -> InProcess:
    folder.roll_out("1")
    settings = Settings(_env_file=None, serving_folder=folder.path, prediction_log=str(home / "log"), **values)
    return InProcess(create_app(settings))


def test_with_keys_set_predictions_need_one(folder: Folder, tmp_path: Path) -> None:
    with client(folder, tmp_path, api_keys="first-key, zweiter-schlüssel") as caller:
        for method, path in PRIVATE:
            refused = caller.request(method, path)
            assert refused.status_code == 401
            assert refused.headers["content-type"] == "application/problem+json"
            assert refused.headers["www-authenticate"] == "Bearer"
            for headers in (
                {"X-API-Key": "first-key"},
                {"Authorization": "Bearer first-key"},
                {"Authorization": "bearer zweiter-schlüssel".encode()},
            ):
                assert caller.request(method, path, headers=headers).status_code != 401
            for wrong in ("first-ke", "first-key2", "first-key, zweiter", ""):
                answer = caller.request(method, path, headers={"X-API-Key": wrong})
                assert answer.status_code == 401
                assert "first-key" not in answer.text
            assert caller.request(method, path, headers={"Authorization": "Basic first-key"}).status_code == 401
        for method, path in OPEN + FOR_DEVELOPERS:
            assert caller.request(method, path).status_code == 200


def test_in_production_docs_and_metrics_need_a_key_too(folder: Folder, tmp_path: Path) -> None:
    with client(folder, tmp_path, api_keys="key", environment="production") as caller:
        for method, path in FOR_DEVELOPERS:
            assert caller.request(method, path).status_code == 401
            assert caller.request(method, path, headers={"X-API-Key": "key"}).status_code == 200
        for method, path in OPEN:
            assert caller.request(method, path).status_code == 200


def test_without_keys_development_is_open(folder: Folder, tmp_path: Path) -> None:
    with client(folder, tmp_path) as caller:
        assert caller.request("GET", "/model").status_code == 200


def test_a_key_may_be_kept_as_its_digest_alone(folder: Folder, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"told to nobody").hexdigest()
    with client(folder, tmp_path, api_keys=f"plain,sha256:{digest}") as caller:
        for key, status in (("told to nobody", 200), ("plain", 200), (digest, 401), (f"sha256:{digest}", 401)):
            assert caller.request("GET", "/model", headers={"X-API-Key": key}).status_code == status


@pytest.mark.parametrize("digits", ["", "abc", "g" * 64, "0" * 65])
def test_half_a_digest_is_no_key(digits: str) -> None:
    with pytest.raises(ConfigError, match="ML_API_KEYS: after 'sha256:'"):
        create_app(Settings(_env_file=None, api_keys=f"sha256:{digits}"))


def test_production_without_a_key_is_no_application(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ML_API_KEYS"):
        create_app(Settings(_env_file=None, environment="production", api_keys=" , "))
