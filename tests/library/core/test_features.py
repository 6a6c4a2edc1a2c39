"""Features are computed row by row, and a definition's hash depends only on its meaning."""

import importlib.util
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_ml.core import features
from flywheel_ml.core.contract import MISSING, Column, Columns, Contract, columns_from_rows
from flywheel_ml.core.features import DATETIME_FEATURES, Featurizer, hash_definition, to_parameter_name, tokenize
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError
from library.helpers.bundles import same_bits
from library.helpers.project import PROJECT

CONTRACT: dict[str, Any] = {
    "name": "all types",
    "columns": [
        {"name": "key", "type": "string", "role": "id"},
        {"name": "at", "type": "datetime", "role": "time"},
        {"name": "size", "type": "float", "nullable": True},
        {"name": "count", "type": "integer", "nullable": True},
        {"name": "new", "type": "boolean", "nullable": True},
        {"name": "colour", "type": "string", "nullable": True},
        {"name": "note", "type": "string", "role": "ignored"},
        {"name": "sold", "type": "boolean", "role": "target"},
    ],
}


def make(**more: dict[str, Any]) -> Contract:
    return config_model.parse(
        {**CONTRACT, "columns": [*CONTRACT["columns"], *more.values()]}, Contract, "contract.yaml"
    )


def per_piece(size: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Size of one piece."""
    ratio: np.ndarray = size / count
    return ratio


FEATURIZER = Featurizer(make(), [per_piece])

some_rows = st.lists(
    st.fixed_dictionaries(
        {
            "at": st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)),
            "size": st.none() | st.floats(),
            "count": st.none() | st.integers(-3, 3),
            "new": st.none() | st.booleans(),
            "colour": st.none() | st.text(max_size=5),
        }
    ),
    min_size=1,
    max_size=12,
)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(some_rows)
def test_a_row_is_encoded_alike_alone_and_among_others(rows: list[dict[str, Any]]) -> None:
    columns = columns_from_rows(make().inputs, rows)
    together = FEATURIZER.encode(columns)
    for at in range(len(rows)):
        alone = FEATURIZER.encode({name: values[at : at + 1] for name, values in columns.items()})
        assert same_bits(alone.num, together.num[at : at + 1])
        assert alone.cat.tolist() == together.cat[at : at + 1].tolist()


@settings(derandomize=True, deadline=None, max_examples=100)
@given(some_rows, st.booleans(), st.text(max_size=20))
def test_rows_of_python_values_are_encoded_as_their_columns_are(
    rows: list[dict[str, Any]], are_gaps_left_out: bool, words: str
) -> None:
    born = {"name": "born", "type": "datetime", "nullable": True, "datetime_features": list(DATETIME_FEATURES)}
    contract = make(born=born, words={"name": "words", "type": "string", "free_text": True, "nullable": True})
    rows = [{**row, "born": row["at"] if row["new"] else None, "words": words if row["new"] else None} for row in rows]
    if are_gaps_left_out:
        rows = [{name: value for name, value in row.items() if value is not None} for row in rows]
    for featurizer in (Featurizer(contract, [per_piece]), Featurizer(contract, ())):
        columns, direct = featurizer.encode(columns_from_rows(contract.inputs, rows)), featurizer.encode_rows(rows)
        assert same_bits(columns.num, direct.num)
        assert columns.cat.tolist() == direct.cat.tolist()


@settings(derandomize=True, deadline=None, max_examples=60)
@given(some_rows)
def test_model_inputs_are_finite_or_missing(rows: list[dict[str, Any]]) -> None:
    inputs = FEATURIZER.encode(columns_from_rows(make().inputs, rows))
    assert inputs.num.dtype == np.float32
    assert not np.isinf(inputs.num).any()
    assert all(isinstance(text, str) for text in inputs.cat.ravel())


def test_layout_is_numbers_then_datetime_then_derived_features() -> None:
    assert FEATURIZER.numeric == ("size", "count", "new", "at.hour", "at.weekday", "per_piece")
    assert [column.name for column in FEATURIZER.categorical] == ["colour"]


def test_values_are_what_their_names_say() -> None:
    row = {"at": datetime(2013, 6, 15, 8, 45), "size": 3.0, "count": 2, "new": True, "colour": "red"}
    inputs = FEATURIZER.encode(columns_from_rows(make().inputs, [row]))
    assert inputs.num.tolist() == [[3.0, 2.0, 1.0, 8.75, 5.0, 1.5]]
    assert inputs.cat.tolist() == [["red"]]


def test_every_datetime_feature_matches_its_name() -> None:
    parts = ["hour", "weekday", "month", "day", "hour_cycle", "weekday_cycle", "year_cycle", "elapsed"]
    born = {"name": "born", "type": "datetime", "nullable": True, "datetime_features": parts}
    featurizer = Featurizer(make(born=born), ())
    rows = [{"at": datetime(2013, 6, 15), "born": datetime(2013, 6, 11, 6)}, {"at": datetime(2013, 6, 15)}]
    columns = columns_from_rows(make(born=born).inputs, rows)
    found = dict(zip(featurizer.numeric, featurizer.encode(columns).num.T.tolist(), strict=True))
    assert [found[f"born.{part}"][0] for part in parts[:4]] == [6, 1, 6, 11]
    assert found["born.elapsed"][0] == 3.75
    assert found["born.hour_sin"][0] == pytest.approx(1)
    assert found["born.hour_cos"][0] == pytest.approx(0, abs=1e-6)
    assert found["born.year_sin"][0] ** 2 + found["born.year_cos"][0] ** 2 == pytest.approx(1)
    assert all(np.isnan(values[1]) for name, values in found.items() if name.startswith("born."))
    assert list(featurizer.drift_features(columns)) == ["born.elapsed"]


def test_the_row_s_own_time_elapses_since_a_fixed_day() -> None:
    columns = [
        {"name": "at", "type": "datetime", "role": "time", "datetime_features": ["elapsed"]},
        CONTRACT["columns"][-1],
    ]
    contract = config_model.parse({"name": "time", "columns": columns}, Contract, "contract.yaml")
    found = Featurizer(contract, ()).encode(columns_from_rows(contract.inputs, [{"at": datetime(2000, 1, 3, 12)}]))
    assert found.num.tolist() == [[2.5]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Good, BAD!\nugly", "good bad ugly"),
        ("", MISSING),
        ("...", MISSING),
        ("Ärger 3.5", "ärger 3 5"),
        ("a " * 300, " ".join("a" * 200)),
    ],
)
def test_a_text_is_its_first_words_in_lower_case(text: str, words: str) -> None:
    assert tokenize(text) == words


def test_equal_texts_of_a_batch_are_cut_into_words_once(monkeypatch: pytest.MonkeyPatch) -> None:
    note = Column(name="note", type="string", free_text=True, nullable=True)
    contract = Contract(name="notes", columns=(note, Column(name="y", type="boolean", role="target")))
    cut: list[str] = []

    def counting(text: str) -> str:
        cut.append(text)
        return tokenize(text)

    monkeypatch.setattr(features, "tokenize", counting)
    texts = ["One two", None, "one  two", "One two"] * 50
    inputs = Featurizer(contract, ()).encode(columns_from_rows(contract.inputs, [{"note": text} for text in texts]))
    assert inputs.cat[:, 0].tolist() == ["one two", MISSING, "one two", "one two"] * 50
    assert sorted(cut) == ["One two", "one  two"]


def test_missing_values_stay_missing_numbers_and_become_one_text() -> None:
    inputs = FEATURIZER.encode(columns_from_rows(make().inputs, [{}]))
    assert np.isnan(inputs.num).all()
    assert inputs.cat.tolist() == [[MISSING]]


@pytest.mark.parametrize("size", [1e39, -1e39, float("inf"), float("nan")])
def test_a_number_that_float32_cannot_hold_counts_as_missing(size: float) -> None:
    inputs = FEATURIZER.encode(columns_from_rows(make().inputs, [{"size": size, "count": 1}]))
    assert np.isnan(inputs.num[0, [0, 5]]).all()


def test_a_division_by_zero_counts_as_missing_and_warns_nobody() -> None:
    inputs = FEATURIZER.encode(columns_from_rows(make().inputs, [{"size": 1.0, "count": 0}, {"size": 0.0, "count": 0}]))
    assert np.isnan(inputs.num[:, 5]).all()


def test_no_rows_give_no_inputs() -> None:
    inputs = FEATURIZER.encode(columns_from_rows(make().inputs, []))
    assert (inputs.num.shape, inputs.cat.shape) == ((0, 6), (0, 1))


def test_the_project_s_own_features_do_not_look_at_neighbours(columns: Columns, contract: Contract) -> None:
    featurizer = Featurizer(contract, PROJECT.features)
    few = {name: values[:50] for name, values in columns.items()}
    together = featurizer.encode(few)
    for at in range(50):
        alone = featurizer.encode({name: values[at : at + 1] for name, values in few.items()})
        assert same_bits(alone.num, together.num[at : at + 1]), "a function of features.py depends on other rows"


def weight(weigt: np.ndarray) -> np.ndarray:
    return weigt


def leak(sold: np.ndarray) -> np.ndarray:
    return sold


def size(count: np.ndarray) -> np.ndarray:
    return count


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            weight,
            "features.py: 'weight' takes 'weigt', which is not an input column of contract.yaml; known: at, colour",
        ),
        (leak, "features.py: 'leak' takes 'sold', which is not an input column"),
        (size, "two features are called 'size'"),
    ],
)
def test_a_derived_feature_that_cannot_be_is_rejected_by_name(
    function: Callable[..., np.ndarray], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Featurizer(make(), [function])


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("temp", "temp"),
        ("size (m2)", "size__m2_"),
        ("class", "_class"),
        ("2nd", "_2nd"),
        ("größe", "größe"),
        ("a.b", "a_b"),
    ],
)
def test_a_column_of_any_name_can_feed_a_derived_feature(name: str, called: str) -> None:
    assert to_parameter_name(name) == called
    space: dict[str, Any] = {}
    exec(f"def twice({called}):\n    return 2 * {called}", space)
    columns = [{"name": name, "type": "float"}, {"name": "y", "type": "boolean", "role": "target"}]
    contract = config_model.parse({"name": "any", "columns": columns}, Contract, "contract.yaml")
    encoded = Featurizer(contract, (space["twice"],)).encode({name: np.array([1.5])})
    assert encoded.num.tolist() == [[1.5, 3.0]]


def test_two_functions_of_one_name_are_rejected() -> None:
    with pytest.raises(ConfigError, match="two features are called 'per_piece'"):
        Featurizer(make(), [per_piece, per_piece])


def test_column_named_like_a_datetime_feature_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"two features are called 'at.hour'"):
        Featurizer(make(more={"name": "at.hour", "type": "float"}), [])


# What a definition is.

BASE = """
import numpy as np

FACTOR = 2.0
TABLE = {"a": 1}


def helper(size):
    return size * FACTOR


def feature(size):
    \"\"\"Twice the size.\"\"\"
    return helper(size) + 1
"""


def definition_in(tmp_path: Path, text: str) -> str:
    path = tmp_path / f"module_{len(list(tmp_path.iterdir()))}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, path.stem, module)
        return hash_definition(module.feature)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Twice the size."""', '"""Size, doubled."""'),
        ('    """Twice the size."""\n', ""),
        ("helper(size) + 1", "helper(size)  +  1  # plus one"),
        ("import numpy as np", "import numpy as np\nimport math"),
        ('TABLE = {"a": 1}', 'TABLE = {"a": 2}'),
        ("FACTOR = 2.0\n", "\n\n# twice\nFACTOR = 2.0\n"),
    ],
)
def test_a_definition_survives_what_changes_no_result(tmp_path: Path, old: str, new: str) -> None:
    assert old in BASE
    assert definition_in(tmp_path, BASE) == definition_in(tmp_path, BASE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("helper(size) + 1", "helper(size) + 2"),
        ("FACTOR = 2.0", "FACTOR = 3.0"),
        ("return size * FACTOR", "return size + FACTOR"),
        ("def feature(size)", "def feature(size, extra=1)"),
    ],
)
def test_definition_hash_changes_with_the_result(tmp_path: Path, old: str, new: str) -> None:
    assert old in BASE
    assert definition_in(tmp_path, BASE) != definition_in(tmp_path, BASE.replace(old, new))


def test_the_definitions_of_the_project_s_features_can_be_taken(contract: Contract) -> None:
    definitions = Featurizer(contract, PROJECT.features).definitions
    assert list(definitions) == [function.__name__ for function in PROJECT.features]
    assert all(len(sha256) == 64 for sha256 in definitions.values())
