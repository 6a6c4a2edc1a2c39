"""API keys in the setting, and in a file that is reloaded."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from flywheel_ml.core.settings import Settings
from flywheel_ml.serving.app import create_app
from flywheel_ml.serving.auth.api_keys import DEFAULT_SCOPES, Keyring, parse_key
from flywheel_ml.serving.auth.guard import Guard
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.observability.logs import logger
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.utils.errors import ConfigError

DIGEST = hashlib.sha256(b"secret").hexdigest()
ALL = frozenset(DEFAULT_SCOPES)


@pytest.mark.parametrize(
    ("text", "name", "scopes"),
    [
        ("secret", "", ALL),
        (f"sha256:{DIGEST}", "", ALL),
        (f"shop:sha256:{DIGEST}", "shop", ALL),
        ("shop:predict:secret", "shop", {"predict"}),
        (f"ops:log:sha256:{DIGEST}", "ops", {"log"}),
        (f"shop-2:predict+feedback:sha256:{DIGEST}", "shop-2", {"predict", "feedback"}),
        (f"x:predict+feedback+admin+metrics:sha256:{DIGEST.upper()}", "x", ALL),
    ],
)
def test_key_is_found_in_each_of_its_forms(text: str, name: str, scopes: frozenset[str]) -> None:
    found = Keyring([parse_key("another", "here"), parse_key(text, "here")]).find(b"secret")
    assert found is not None
    assert (found.name, found.scopes) == (name, scopes)


@pytest.mark.parametrize("text", ["with:colon", "AA:BB:CC", "pass word", "zweiter-schlüssel", DIGEST])
def test_plain_key_is_parsed_unchanged(text: str) -> None:
    keys = Keyring([parse_key(text, "here")])
    assert keys.find(text.encode()) is not None
    assert keys.find(b"secret") is None


@pytest.mark.parametrize(
    "text",
    [
        "sha256:", "sha256:abc", f"sha256:{'g' * 64}", f"sha256:{DIGEST}0", f"shop:sha256:{DIGEST[1:]}",
        "shop:predct:secret", "shop::secret", "shop:predict+:secret", "shop:predict:", "shop:predict:sha256:",
        f"shop:predict:sha265:{DIGEST}", f"shop:SHA256:{DIGEST}",
    ],
)  # fmt: skip
def test_malformed_key_is_rejected_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^line 3: ") as caught:
        parse_key(text, "line 3")
    assert not any(part in str(caught.value) for part in (DIGEST[1:], "secret", "predct"))


def test_key_with_two_meanings_is_rejected() -> None:
    twice = [parse_key("a:predict:secret", "here"), parse_key("b:admin:secret", "here")]
    with pytest.raises(ConfigError, match="'b' occurs twice"):
        Keyring(twice)
    assert len(Keyring([twice[0], twice[0]])) == 1


class Followed:
    """A guard with a file of keys."""

    def __init__(self, path: Path, **values: Any) -> None:
        self.path = path
        self.metrics = Metrics()
        self._said = io.StringIO()
        settings = Settings(_env_file=None, api_keys_file=str(path), **values)
        self.guard = Guard(settings, self.metrics, logger(self._said))

    def accepts(self, key: str) -> bool:
        try:
            self.guard.authorise([(b"x-api-key", key.encode())], "/predict")
        except Problem:
            return False
        return True

    def count_rejections(self) -> float | None:
        return self.metrics.registry.get_sample_value("api_key_files_rejected_total")

    def said(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._said.getvalue().splitlines()]


@pytest.fixture
def followed(tmp_path: Path) -> Followed:
    """Keys from both places."""
    path = tmp_path / "keys"
    path.write_text("# the shop's\n\n  shop:predict:first-secret  \n")
    return Followed(path, api_keys="own-secret")


def test_changed_file_replaces_only_its_own_keys(followed: Followed) -> None:
    followed.path.write_text("shop:predict:second-secret\nnew:predict:third-secret\n")
    assert followed.accepts("first-secret")
    followed.guard.refresh()
    assert [followed.accepts(f"{key}-secret") for key in ("own", "first", "second", "third")] == [
        True, False, True, True,
    ]  # fmt: skip
    (line,) = followed.said()
    assert (line["event"], line["keys"], line["names"]) == ("api_keys_loaded", 3, ["new", "shop"])


@pytest.mark.parametrize(
    "content", [b"", b"# none\n", b"\xff\xfe", b"shop:predct:other-secret\n", b"sha256:12\n", b"k\n" * 500_001, None]
)
def test_broken_file_keeps_former_keys_and_is_logged_once(followed: Followed, content: bytes | None) -> None:
    for _ in range(2):
        if content is None:
            followed.path.unlink(missing_ok=True)
        else:
            followed.path.write_bytes(content)
        followed.guard.refresh()
        followed.guard.refresh()
    assert followed.accepts("first-secret")
    assert not followed.accepts("other-secret")
    assert followed.count_rejections() == 1
    (line,) = followed.said()
    assert line["event"] == "api_keys_rejected"
    assert "ML_API_KEYS_FILE" in line["reason"]
    assert not any(told in json.dumps(line) for told in ("secret", str(followed.path)))
    followed.path.write_text("shop:predict:second-secret\n")
    followed.guard.refresh()
    assert (followed.accepts("first-secret"), followed.accepts("second-secret")) == (False, True)


@pytest.mark.parametrize("content", ["", "# none\n", "sha256:12\n", None])
@pytest.mark.parametrize("own", ["", "own-secret"])
def test_production_rejects_a_file_without_keys(tmp_path: Path, content: str | None, own: str) -> None:
    if content is not None:
        (tmp_path / "keys").write_text(content)
    settings = Settings(_env_file=None, environment="production", api_keys=own, api_keys_file=str(tmp_path / "keys"))
    with pytest.raises(ConfigError, match="ML_API_KEYS_FILE"):
        create_app(settings)


def test_development_with_a_missing_file_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ML_API_KEYS_FILE cannot be read"):
        create_app(Settings(_env_file=None, api_keys_file=str(tmp_path / "keys")))
