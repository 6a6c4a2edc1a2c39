"""A query's rows come from a real PostgreSQL server, and the prediction log lives in one."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from flywheel_ml.prediction_log import Outcome, Prediction, Reader, Writer, dumps, new_id, now_us
from library.helpers.adoption_helpers import profile_source
from library.helpers.postgresql import PostgreSQL

TABLE = """create table orders as select i as order_no, (i % 97)::numeric(10, 2) as price,
case when i = 1 then 'NaN'::numeric when i % 7 > 0 then i % 13 end as tax, date '2023-01-01' + i as day,
timestamptz '2023-01-01 02:00+02' + i * interval '1 hour' as placed, gen_random_uuid() as token,
jsonb_build_object('a', i) as doc, array[i] as list, null::text as nothing, i % 3 = 0 as late
from generate_series(1, 100) i"""


def test_every_type_of_a_query_is_read(postgres: PostgreSQL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = sa.create_engine(postgres.url)
    with engine.begin() as connection:
        connection.execute(sa.text(TABLE))
    engine.dispose()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flywheel_ml.data.formats.database.BATCH_ROWS", 30)
    found = profile_source(postgres.url, "late", "select * from orders order by order_no")
    assert {name: column.parse.type for name, column in found.columns.items()} == {
        "order_no": "integer",
        "price": "float",
        "tax": "float",
        "day": "datetime",
        "placed": "datetime",
        "token": "string",
        "nothing": "string",
        "late": "boolean",
    }
    assert found.left_out == ("doc", "list")
    assert (found.columns["tax"].missing, found.columns["nothing"].missing) == (15, 100)
    assert str(found.columns["placed"].minimum) == "2023-01-01 01:00:00"


def test_the_prediction_log_lives_in_it(postgres: PostgreSQL) -> None:
    facts = (new_id(), now_us(), "k", None, "champion", "1", None)
    row = Prediction(*facts, dumps({"x": 1}), dumps({"prediction": 1}), 0.25, 9, False)
    with Writer(postgres.url, "serving") as writer, Writer(postgres.url, "feedback") as other:
        writer.append([row]).result()
        other.append([Outcome(row.id, now_us(), "true")]).result()
    (logged,) = Reader(postgres.url).predictions()
    assert (logged.prediction, logged.label) == (row, "true")
