"""Configuration is strict, and its errors name the place, the value and the nearest valid key."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field

from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError


class Inner(config_model.StrictModel):
    depth: int = 1
    label: str = ""


class Outer(config_model.StrictModel):
    seed: int = 0
    rate: float = 0.5
    on: bool = True
    name: str | None = None
    pair: tuple[float, float] | None = None
    folder: Path = Path()
    inner: Inner = Inner()
    several: tuple[Inner, ...] = ()
    by_name: dict[str, Inner] = Field(default_factory=dict)


def load(tmp_path: Path, text: str) -> Outer:
    path = tmp_path / "some.yaml"
    path.write_text(text, encoding="utf-8")
    return config_model.load(path, Outer)


@pytest.mark.parametrize(
    ("text", "where", "meant"),
    [
        ("sead: 1", "'sead'", "'seed'"),
        ("inner: {dept: 2}", "'inner.dept'", "'depth'"),
        ("several: [{depth: 1}, {lable: x}]", "'several.1.lable'", "'label'"),
        ("by_name: {first: {dpeth: 1}}", "'by_name.first.dpeth'", "'depth'"),
    ],
)
def test_unknown_key_is_reported_with_the_nearest_one(tmp_path: Path, text: str, where: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"some.yaml: unknown key {where}; did you mean {meant}"):
        load(tmp_path, text)


def test_unmatched_key_is_reported_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"known: by_name, folder, inner"):
        load(tmp_path, "zzz: 1")


def test_long_list_of_known_names_is_shortened() -> None:
    assert config_model.suggest("zzz", [f"name{at:02d}" for at in range(100)]).endswith("name11, …")


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"seed: .*; .*rate: "):
        load(tmp_path, "seed: x\nrate: y")


@pytest.mark.parametrize(
    "text",
    [
        'seed: "5"',
        "seed: 5.0",
        "seed: true",
        'rate: "0.5"',
        "rate: .inf",
        "rate: .nan",
        'on: "yes"',
        "on: yes",
        "on: 1",
        "name: 5",
        "pair: [1]",
        "inner: 3",
    ],
)
def test_value_of_the_wrong_type_is_rejected_and_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=f"some.yaml: '?{text.partition(':')[0]}"):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("rate: 1e-5", "rate", 1e-5),
        ("rate: 3", "rate", 3.0),
        ("name: NO", "name", "NO"),
        ("name: off", "name", "off"),
        ("name: 007", "name", "007"),
        ("name: 12:30", "name", "12:30"),
        ("name: ~", "name", None),
        ("name:", "name", None),
        ("pair: [1, 2.5]", "pair", (1.0, 2.5)),
        ("folder: a/b", "folder", Path("a/b")),
    ],
)
def test_plain_values_are_read_as_in_yaml_1_2(tmp_path: Path, text: str, key: str, value: object) -> None:
    assert getattr(load(tmp_path, text), key) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nrate: 0.1\nseed: 2", "some.yaml, line 3: duplicate key 'seed'"),
        ("inner:\n  depth: 1\n  depth: 1", "some.yaml, line 3: duplicate key 'depth'"),
        ("seed: 1\nname: 2013-11-01", 'line 2: write the date in quotes, "2013-11-01"'),
        ("seed: [1", "some.yaml, line 1: "),
        ("seed: \x00", "some.yaml is not valid YAML"),
        ("- 1", "expected keys and values, found list"),
        ("", "expected keys and values, found NoneType"),
    ],
)
def test_invalid_mapping_is_rejected_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)


class Threshold(config_model.StrictModel):
    """A model whose key had another name once."""

    renamed: ClassVar[Mapping[str, str]] = {"floor": "min_score"}

    min_score: float


class Thresholds(config_model.StrictModel):
    """Models of that kind at every depth."""

    gates: Threshold
    several: tuple[Threshold, ...] = ()


def test_load_names_the_new_name_of_a_renamed_key(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("gates: {floor: 1.0}\nseveral: [{floor: 2.0}]")
    with pytest.raises(ConfigError) as caught:
        config_model.load(path, Thresholds)
    assert str(caught.value) == (
        "some.yaml: 'gates.floor' was renamed to 'gates.min_score'; rename the key; "
        "some.yaml: 'several.0.floor' was renamed to 'several.0.min_score'; rename the key"
    )


def test_load_accepts_renamed_keys_if_allowed(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("gates: {floor: 1.0}\nseveral: [{floor: 2.0}, {min_score: 3.0}]")
    found = config_model.load(path, Thresholds, accept_renamed=True)
    assert (found.gates.min_score, [one.min_score for one in found.several]) == (1.0, [2.0, 3.0])


def test_missing_key_is_reported(tmp_path: Path) -> None:
    class Needy(config_model.StrictModel):
        inner: Inner
        size: int

    with pytest.raises(ConfigError, match=r"x.yaml: 'size' is missing"):
        config_model.parse({"inner": {}}, Needy, "x.yaml")


def test_missing_file_is_reported_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.yaml does not exist; run this from the project's folder"):
        config_model.load(tmp_path / "nowhere.yaml", Outer)


def test_binary_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_bytes(b"name: \xe9")
    with pytest.raises(ConfigError, match=r"cannot be read"):
        config_model.load(tmp_path / "some.yaml", Outer)


def test_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match=r"frozen"):
        Outer().seed = 3  # type: ignore[misc]


def test_duplicates_are_returned_once_in_order() -> None:
    assert config_model.find_duplicates(["c", "b", "a", "b", "a", "b"]) == ["a", "b"]
    assert config_model.find_duplicates([]) == []
