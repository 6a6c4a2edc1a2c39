"""routing.json is written atomically and read strictly."""

import json
import math
from collections import Counter
from hashlib import blake2b
from pathlib import Path

import pytest

from flywheel_ml.core import serving_folder
from flywheel_ml.core.serving_folder import BundleRef, Challenger, KeySplit, Routing, Shadow
from flywheel_ml.utils.errors import ConfigError, ServingError

REF, OTHER, THIRD = (BundleRef(version=version, digest="a" * 64) for version in "345")
SALT = "5a" * 16
REF_JSON = REF.model_dump_json()
SELF = Shadow(ref=REF, salt=SALT, since="x").model_dump_json()
KEYS = [str(number).encode() for number in range(100_000)]


def challenger(share: float, salt: str = "5a" * 16) -> Challenger:
    return Challenger(ref=OTHER, share=share, salt=salt, since="2013-11-01")


def taken(one: Challenger) -> set[bytes]:
    split = KeySplit((one,))
    return {key for key in KEYS if split.find(key) == 0}


def test_written_tables_can_be_read(tmp_path: Path) -> None:
    shadow = Shadow(ref=THIRD, salt="00" * 16, since="2013-11-02")
    written = Routing(
        name="flights",
        champion=REF,
        challengers=(challenger(0.25),),
        shadow=shadow,
        updated_at="2013-11-01",
        reason="promoted",
    )
    serving_folder.write_routing(tmp_path / "new", written)
    assert serving_folder.read_routing(tmp_path / "new") == written
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["routing.json"]


@pytest.mark.parametrize("version", ["../3", "a/b", ".", "..", "", ".hidden", "a\n"])
def test_a_version_cannot_lead_out_of_the_folder(version: str) -> None:
    with pytest.raises(ValueError, match="version"):
        BundleRef(version=version, digest="a" * 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected keys and values"),
        ('{"name": "f", "updated_at": "x", "champoin": null}', "did you mean 'champion'"),
        ('{"name": "f", "updated_at": "x", "challenger": {"share": 2}}', "share"),
        (f'{{"name": "f", "updated_at": "x", "shadow": {{"ref": {REF_JSON}, "salt": "1", "since": "x"}}}}', "salt"),
        (f'{{"name": "f", "updated_at": "x", "shadow": {SELF}}}', "needs a champion"),
        (f'{{"name": "f", "updated_at": "x", "champion": {REF_JSON}, "shadow": {SELF}}}', "alongside itself"),
        ('{"name": "f", "updated_at": "x", "champion": {"version": "1"}}', "digest"),
    ],
)
def test_broken_routing_is_rejected_with_its_error(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / serving_folder.ROUTING).write_text(content)
    with pytest.raises((ServingError, ConfigError), match=message):
        serving_folder.read_routing(tmp_path)


def test_a_missing_routing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="roll a model out"):
        serving_folder.read_routing(tmp_path)


def test_folder_of_the_previous_format_still_serves(tmp_path: Path) -> None:
    old = {"format": 1, "name": "f", "champion": REF.model_dump(), "share": 0.0, "shadow": False, "updated_at": "x"}
    (tmp_path / serving_folder.ROUTING).write_text(
        json.dumps({**old, "previous": None, "challenger": None, "reason": ""})
    )
    found = serving_folder.read_routing(tmp_path)
    assert (found.champion, found.challenger, found.shadow) == (REF, None, None)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_a_share_is_exact_within_three_standard_deviations(share: float) -> None:
    sigma = math.sqrt(share * (1 - share) / len(KEYS))
    assert abs(len(taken(challenger(share))) / len(KEYS) - share) <= 3 * sigma
    assert len(taken(challenger(1.0))) == len(KEYS)


def test_larger_share_keeps_its_keys_and_new_salt_redraws() -> None:
    small, large, anew = taken(challenger(0.1)), taken(challenger(0.3)), taken(challenger(0.1, "5b" * 16))
    assert small < large
    # By chance a tenth of those that one experiment takes are in the other, too.
    assert abs(len(small & anew) / len(KEYS) - 0.01) <= 3 * math.sqrt(0.01 * 0.99 / len(KEYS))


def test_key_assignment_is_stable_across_machines() -> None:
    sides = "".join("c" if challenger(0.5).is_assigned(key) else "." for key in KEYS[:32])
    assert sides == "c.ccc.c...ccc.cc.........c...c.."


def arm(version: str, share: float, salt: str = SALT) -> Challenger:
    return Challenger(ref=BundleRef(version=version, digest="a" * 64), share=share, salt=salt, since="2013-11-01")


def routing(*challengers: Challenger, shadow: Shadow | None = None) -> Routing:
    return Routing(name="f", champion=REF, challengers=challengers, shadow=shadow, updated_at="x")


def test_challengers_have_disjoint_shares_of_the_keys() -> None:
    split = KeySplit((arm("4", 0.2), arm("5", 0.05), arm("6", 0.5)))
    counts = Counter(split.find(key) for key in KEYS)
    for at, share in ((0, 0.2), (1, 0.05), (2, 0.5), (None, 0.25)):
        deviation = math.sqrt(share * (1 - share) * len(KEYS))
        assert abs(counts[at] - share * len(KEYS)) < 4 * deviation


def test_shares_that_grow_alike_keep_every_key() -> None:
    small = KeySplit((arm("4", 0.1), arm("5", 0.05)))
    large = KeySplit((arm("4", 0.6), arm("5", 0.3)))
    kept = [(small.find(key), large.find(key)) for key in KEYS]
    assert all(before in (None, after) for before, after in kept)
    assert {0, 1} <= {before for before, _ in kept}


def test_all_keys_are_served_by_challengers_whose_shares_add_up_to_one() -> None:
    split = KeySplit((arm("4", 0.1), arm("5", 0.2), arm("6", 0.7)))
    assert {split.find(key) for key in KEYS} == {0, 1, 2}


def test_one_challenger_keeps_the_keys_of_the_previous_format() -> None:
    one = challenger(0.25)
    places = {
        key: int.from_bytes(blake2b(key, digest_size=8, salt=bytes.fromhex(one.salt)).digest()) / 2**64 for key in KEYS
    }
    assert taken(one) == {key for key, place in places.items() if place < 0.25}


@pytest.mark.parametrize(
    ("challengers", "message"),
    [
        ((arm("4", 0.6), arm("5", 0.5)), "add up to 1.1"),
        ((arm("4", 0.1), arm("4", 0.2)), "version 4 is listed twice"),
        ((arm("4", 0.1), arm("3", 0.2)), "version 3 is champion"),
        ((arm("4", 0.1), arm("5", 0.2, "00" * 16)), "different salts"),
    ],
)
def test_impossible_challengers_are_rejected(challengers: tuple[Challenger, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        routing(*challengers)


def test_several_challengers_are_written_in_format_3_and_one_in_format_2(tmp_path: Path) -> None:
    path = tmp_path / serving_folder.ROUTING
    for asked, expected in ((routing(arm("4", 0.1)), 2), (routing(), 2), (routing(arm("4", 0.1), arm("5", 0.1)), 3)):
        serving_folder.write_routing(tmp_path, asked)
        assert json.loads(path.read_text())["format"] == expected
        assert serving_folder.read_routing(tmp_path) == asked
    path.write_text(path.read_text().replace('"format": 3', '"format": 4'))
    with pytest.raises(ConfigError, match=r"routing.json: format") as error:
        serving_folder.read_routing(tmp_path)
    assert "\n" not in str(error.value)
