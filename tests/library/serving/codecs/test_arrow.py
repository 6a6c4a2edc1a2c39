"""Arrow streams at /predict: column types, and rejection before memory is allocated."""

import sys
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_ml.core.contract import MISSING, Column, Contract
from flywheel_ml.core.parsing.rules import REQUIRED
from flywheel_ml.core.serving_folder import Challenger
from flywheel_ml.prediction_log import Reader
from flywheel_ml.serving.codecs import arrow
from flywheel_ml.serving.codecs.arrow_columns import CheckedColumn
from flywheel_ml.serving.errors.problems import MEDIA_TYPE, Problem, ProblemDocument
from flywheel_ml.serving.models.manager import ModelManager
from flywheel_ml.serving.models.served_model import ServedModel
from flywheel_ml.serving.observability.logs import logger
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.serving.schema.row_validator import RowValidator
from flywheel_ml.testing.servers import ServingFolder
from library.helpers import protocol_clients, rows
from library.helpers.protocol_clients import send_arrow, to_arrow_stream
from library.helpers.servers import Server
from library.serving.api.test_schemas import COLUMNS, PARSED, ROW, TARGET, schema_of

Instance = dict[str, Any]
ROOM = 1000
"""Most bytes of texts, in the tests of a column alone."""


def validate_column(name: str, values: Any, room: int = ROOM) -> CheckedColumn:
    """Validate values as the column of this name in `test_schemas.py`."""
    return build_column(next(column for column in COLUMNS if column.name == name), values, room)


def build_column(column: Column, values: Any, room: int = ROOM) -> CheckedColumn:
    """Values as a column."""
    reader = RowValidator(Contract(name="any", columns=(column, Column(name="other", type="float"), TARGET)))
    return CheckedColumn(reader, column.name, column.name, pa.chunked_array([values]), room)


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.float16(), pa.int64(), pa.uint8(), pa.int16()])
def test_a_number_may_come_in_any_width(kind: pa.DataType) -> None:
    found = validate_column("number", pa.array([10, 100, 255]).cast(kind))
    assert (found.array.tolist(), found.invalid_rows) == ([10.0, 100.0, 255.0], 0)
    assert found.to_log_array().type == pa.float64()


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint16(), pa.float64()])
def test_integral_float_is_logged_as_integer(kind: pa.DataType) -> None:
    found = validate_column("count", pa.array([1950, None, 2000]).cast(kind))
    assert np.array_equal(found.array, [1950, np.nan, 2000], equal_nan=True)
    assert found.to_log_array().to_pylist() == [1950, None, 2000]


def test_nan_counts_as_missing_as_pandas_means_it() -> None:
    assert validate_column("count", pa.array([1950.0, float("nan")])).to_log_array().to_pylist() == [1950, None]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_a_text_may_come_in_any_layout(kind: pa.DataType) -> None:
    texts = pa.array(["UA", "unseen", "UA"])
    found = validate_column(
        "open", texts.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else texts.cast(kind)
    )
    assert (found.array.tolist(), found.invalid_rows) == (["UA", "unseen", "UA"], 0)


@pytest.mark.parametrize(
    "moments",
    [
        pa.array([datetime(2013, 6, 15, 8, 30)], pa.timestamp("s")),
        pa.array([datetime(2013, 6, 15, 8, 30)], pa.timestamp("ns")),
        pa.array(["2013-06-15T08:30:00", "2013-06-15 08:30"])[1:],
    ],
)
def test_timestamp_may_have_any_unit(moments: pa.Array) -> None:
    found = validate_column("when", moments)
    assert (found.array.tolist(), found.invalid_rows) == ([datetime(2013, 6, 15, 8, 30)], 0)
    assert found.to_log_array().type == pa.timestamp("us")


@pytest.mark.parametrize(
    ("zone", "understood"),
    [("Europe/Berlin", 14), ("+01:00", 13), ("local", 8), ("", None)],
)
@pytest.mark.parametrize("kind", ["America/New_York", "-04:00", "text"])
def test_timestamp_with_a_zone_is_converted_or_rejected(zone: str, understood: int | None, kind: str) -> None:
    instant = datetime(2013, 6, 15, 12, 30, tzinfo=UTC)
    sent = ["2013-06-15T08:30:00-04:00"] if kind == "text" else pa.array([instant], pa.timestamp("ms", kind))
    found = build_column(
        Column(name="when", type="datetime", time_zone=zone), pa.array(sent) if kind == "text" else sent
    )
    if understood is None:
        assert "`time_zone`" in found.describe_first_error()["rule"]
    else:
        assert (found.array.tolist(), found.invalid_rows) == ([datetime(2013, 6, 15, understood, 30)], 0)


@pytest.mark.parametrize(
    ("name", "values", "understood"),
    [
        ("number", ["700", None, " 7e2"], [700.0, None, 700.0]),
        ("number", [Decimal("700.50")], [700.5]),
        ("count", ["1999.0", "", "NaN"], [1999, None, None]),
        ("count", [1999.0, float("inf")], [1999, None]),
        ("closed", [" JFK", "JFK"], ["JFK", "JFK"]),
        ("open", ["e\u0301", "é"], ["é", "é"]),
        ("open", [5, 6], ["5", "6"]),
    ],
)
def test_a_column_may_be_written_as_the_table_has_it(name: str, values: list[Any], understood: list[Any]) -> None:
    found = validate_column(name, pa.array(values))
    assert found.to_log_array().to_pylist() == understood
    assert found.invalid_rows == sum(value is None for value in understood) * (name == "number")


def test_columns_are_parsed_as_the_contract_says() -> None:
    values = {
        "owner": pa.array(["Ja", "nein"]),
        "price": pa.array(["1.234,50 €", "12"]),
        "day": pa.array(["15.06.2013", "2013-06-15T00:00:00"]),
        "kind": pa.array(["keine", "a"]),
        "level": pa.array([-999, 1]),
    }
    day = datetime(2013, 6, 15)
    understood = [[True, False], [1234.5, 12.0], [day, day], [None, "a"], [None, 1.0]]
    found = [build_column(column, values[column.name]) for column in PARSED]
    assert [one.to_log_array().to_pylist() for one in found] == understood
    assert [one.invalid_rows for one in found] == [0] * len(found)


def test_a_date_is_its_midnight() -> None:
    found = validate_column("when", pa.array([datetime(2013, 6, 15).date()]))
    assert found.array.tolist() == [datetime(2013, 6, 15)]


@pytest.mark.parametrize(
    ("name", "value", "in_json"),
    [
        ("number", 7000.0, 7000.0),
        ("number", 9.5, 9.5),
        ("number", float("inf"), float("inf")),
        ("number", "five", "five"),
        ("number", None, None),
        ("count", 1999.5, 1999.5),
        ("count", 1939, 1939),
        ("count", 2**53 + 1, 2**53 + 1),
        ("closed", "XXX", "XXX"),
        ("closed", None, None),
        ("key", "x" * 10_001, "x" * 10_001),
        ("open", MISSING, MISSING),
        ("open", None, None),
        ("when", "yesterday", "yesterday"),
        ("when", None, None),
        ("key", "a\x00b", "a\x00b"),
    ],
)
def test_invalid_value_gets_the_same_error_as_in_json(name: str, value: Any, in_json: Any) -> None:
    found = validate_column(name, pa.array([value], pa.null() if value is None else None), 100_000)
    with pytest.raises(Problem) as refused:
        schema_of(*COLUMNS, rows=[ROW]).validate_rows([{**ROW, name: in_json}])
    assert found.invalid_rows == 1
    assert found.describe_first_error() == {**refused.value.extra["errors"][0], "instance": 0}


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1])
def test_integer_rounded_to_the_limit_is_rejected(value: int) -> None:
    column = COLUMNS[2].model_copy(update={"range": None})
    assert build_column(column, pa.array([value, value // 2])).invalid_rows == 1


@pytest.mark.parametrize(
    ("kind", "most"), [(pa.timestamp("s"), 2**62), (pa.timestamp("us"), 2**62), (pa.date32(), 2**30)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_timestamp_beyond_the_calendar_is_rejected(kind: pa.DataType, most: int, sign: int) -> None:
    width = pa.int32() if pa.types.is_date32(kind) else pa.int64()
    found = validate_column("when", pa.array([sign * most], width).cast(kind))
    assert found.invalid_rows == 1
    assert "ISO 8601" in found.describe_first_error()["rule"]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("when", [datetime(2013, 1, 1).time()]),
        ("open", [["UA"]]),
        ("open", [b"UA"]),
    ],
)
def test_column_of_another_kind_is_rejected(name: str, values: list[Any]) -> None:
    with pytest.raises(Problem) as refused:
        validate_column(name, pa.array(values))
    assert refused.value.extra["errors"][0]["rule"].startswith("must be a")


@pytest.mark.parametrize(
    ("name", "values"), [("number", ["five"]), ("number", [True]), ("closed", [3]), ("when", [1372636800])]
)
def test_column_of_other_values_is_rejected(name: str, values: list[Any]) -> None:
    assert validate_column(name, pa.array(values)).invalid_rows == 1


def shared_views(text: str, count: int) -> pa.Array:
    """An array whose texts are one piece of memory."""
    one = pa.array([text], pa.string_view())
    views = one.buffers()[1].to_pybytes() * count
    return pa.Array.from_buffers(pa.string_view(), count, [None, pa.py_buffer(views), *one.buffers()[2:]])


@pytest.mark.parametrize(
    "texts",
    [
        pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int16()), pa.array(["x" * 100])),
        shared_views("x" * 100, 500),
    ],
    ids=["dictionary", "views"],
)
def test_a_text_that_many_rows_share_counts_for_each(texts: pa.Array) -> None:
    with pytest.raises(Problem) as refused:
        validate_column("open", texts)
    assert refused.value.status == 413


def table_of(instances: list[Instance]) -> pa.Table:
    return pa.Table.from_pylist(instances)


def parse_problem(response: httpx.Response) -> ProblemDocument:
    assert response.headers["content-type"] == MEDIA_TYPE
    return ProblemDocument.model_validate_json(response.content)


def test_every_invalid_column_is_listed_with_its_first_row(
    client: httpx.Client, contract: Contract, instances: list[Instance]
) -> None:
    rows.find_column(contract, lambda column: not column.nullable, "column that has to be there")
    names = [column.name for column in contract.inputs if not column.nullable][:2]
    wrong = [instances[0], {**instances[1], **dict.fromkeys(names)}, {**instances[2], **dict.fromkeys(names)}]
    problem = parse_problem(send_arrow(client, to_arrow_stream(wrong)))
    in_json = parse_problem(client.post("/predict", json={"instances": wrong})).errors or []
    assert [(one.field, one.instance, one.rule) for one in problem.errors or []] == [
        (one.field, one.instance, one.rule) for one in in_json if one.instance == 1
    ]
    assert problem.detail.startswith(f"{len(in_json)} value")


def test_columns_unknown_absent_or_repeated_are_named(
    client: httpx.Client, contract: Contract, instances: list[Instance]
) -> None:
    table = table_of(instances[:2])
    name = rows.find_column(contract, lambda column: not column.nullable, "column that has to be there").name
    names = table.column_names
    at = names.index(name)
    repeated = pa.Table.from_arrays([*table.columns, table[name]], names=[*names, name])
    for wrong, rule in (
        (table.rename_columns([*names[:at], f"{name}_", *names[at + 1 :]]), f"unknown field; did you mean '{name}'?"),
        (table.drop_columns([name]), REQUIRED),
        (repeated, "is a duplicate column; send it once"),
        (table.slice(0, 0), "must have at least 1 row"),
        (pa.concat_tables([table] * 101), "must have at most 200 rows"),
    ):
        assert [fault.rule for fault in parse_problem(send_arrow(client, to_arrow_stream(wrong))).errors or []] == [
            rule
        ]


def test_several_batches_are_one_request(client: httpx.Client, instances: list[Instance]) -> None:
    parts = [table_of(instances[:30]), table_of(instances[30:60])]
    told = protocol_clients.check_ok(send_arrow(client, to_arrow_stream(pa.concat_tables(parts)))).json()["predictions"]
    assert [one["prediction"] for one in told] == protocol_clients.send_native(client, instances[:60]).predictions


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_stream_is_rejected_before_decoding(
    client: httpx.Client, instances: list[Instance], codec: str
) -> None:
    answer = send_arrow(client, to_arrow_stream(instances, compression=codec))
    assert answer.status_code == httpx.codes.UNSUPPORTED_MEDIA_TYPE
    assert "without compression" in parse_problem(answer).detail


@pytest.mark.parametrize("cut", [0, 7, 100, -100])
def test_invalid_stream_gets_400(client: httpx.Client, instances: list[Instance], cut: int) -> None:
    body = to_arrow_stream(instances)[:cut]
    assert parse_problem(send_arrow(client, body)).type == "urn:problem:malformed-arrow"
    assert parse_problem(send_arrow(client, b"x" * 1000)).type == "urn:problem:malformed-arrow"


def test_a_body_beyond_the_limit_gets_413(client: httpx.Client) -> None:
    assert send_arrow(client, b"x" * 200_001).status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE


@pytest.fixture(scope="module")
def model(server: Server) -> ServedModel:
    """The server's model, in this process."""
    models = ModelManager(server.home / "serving", 200, Metrics(), logger())
    models.refresh()
    assert models.deployment is not None
    return models.deployment.model


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_stream_is_only_rejected(model: ServedModel, instances: list[Instance], data: st.DataObject) -> None:
    table = table_of(instances[:5])
    coded = [column.dictionary_encode() if pa.types.is_string(column.type) else column for column in table.columns]
    tables = [table, pa.Table.from_arrays(coded, names=table.column_names)]
    body = bytearray(to_arrow_stream(data.draw(st.sampled_from(tables))))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        extremes = st.sampled_from([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x7f"])
        body[at : at + 4] = data.draw(extremes | st.binary(max_size=4))
    with suppress(Problem):
        arrow.decode_stream(model, bytes(body), 100_000)


def test_rows_are_logged_one_by_one_during_an_experiment(
    folder: ServingFolder, tmp_path: Path, instances: list[Instance]
) -> None:
    champion, other = folder.add("1"), folder.add("2")
    tried = Challenger(ref=other, share=1e-9, salt="5a" * 16, since="2013-11-01")
    folder.point(champion, challenger=tried)
    with Server(tmp_path) as running, running.client() as client:
        told, wanted = (
            protocol_clients.send_arrow_both_ways(client, instances[:5]),
            protocol_clients.send_native(client, instances[:5]),
        )
    assert told.predictions == wanted.predictions
    assert told.details == wanted.details
    assert all(one[-8:] != f"{at:08x}" for at, one in enumerate(told.ids))
    assert {*told.ids, *wanted.ids} == {one.prediction.id for one in Reader(str(tmp_path / "log")).predictions()}


def test_missing_pyarrow_is_reported_with_a_remedy(
    model: ServedModel, instances: list[Instance], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = to_arrow_stream(instances)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Problem, match="install the extra 'arrow', or send JSON") as refused:
        arrow.decode_stream(model, body, 100_000)
    assert refused.value.status == 415
