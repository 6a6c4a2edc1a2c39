"""routing.json: written whole, read strictly."""

from pathlib import Path

import pytest

from << cookiecutter.package_name >>.errors import ConfigError, ServingError
from << cookiecutter.package_name >>.serving import routing
from << cookiecutter.package_name >>.serving.routing import Ref, Routing

REF = Ref(version="3", digest="a" * 64)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = Routing(name="flights", champion=REF, share=0.25, shadow=True, updated_at="2013-11-01", reason="promoted")
    routing.write(tmp_path / "new", written)
    assert routing.read(tmp_path / "new") == written
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["routing.json"]


@pytest.mark.parametrize("version", ["../3", "a/b", ".", "..", "", ".hidden", "a\n"])
def test_a_version_cannot_lead_out_of_the_folder(version: str) -> None:
    with pytest.raises(ValueError, match="version"):
        Ref(version=version, digest="a" * 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected keys and values"),
        ('{"name": "f", "updated_at": "x", "champoin": null}', "did you mean 'champion'"),
        ('{"name": "f", "updated_at": "x", "share": 2}', "share"),
        ('{"name": "f", "updated_at": "x", "champion": {"version": "1"}}', "digest"),
    ],
)
def test_a_broken_routing_is_refused_with_its_fault(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / routing.ROUTING).write_text(content)
    with pytest.raises((ServingError, ConfigError), match=message):
        routing.read(tmp_path)


def test_a_missing_routing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="roll a model out"):
        routing.read(tmp_path)
