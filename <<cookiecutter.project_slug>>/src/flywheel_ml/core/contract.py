"""The contract of a row: the single source for table checks, request model, model inputs, profile and data card.

Columns travel through the package as `Columns`: one NumPy array of n_rows per name.
`float`, `integer` and `boolean` are float64 with NaN for missing, `string` is object with None,
`datetime` is datetime64[us] with NaT: the wall-clock time in the zone that the column declares.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from flywheel_ml.utils import config_model, timestamps
from flywheel_ml.utils.errors import ConfigError
from flywheel_ml.utils.files import canonical_json, sha256_text

ColumnType = Literal["float", "integer", "string", "boolean", "datetime"]
Role = Literal["id", "time", "target", "feature", "weight", "ignored"]
Task = Literal["binary", "multiclass", "regression"]
DatetimeFeature = Literal["hour", "weekday", "month", "day", "hour_cycle", "weekday_cycle", "year_cycle", "elapsed"]
Label = bool | int | str
Columns = Mapping[str, np.ndarray]

MISSING = "__missing__"
"""Replaces a missing string before the model sees it; no value may equal it."""

SCORE_COLUMNS = ("prediction", "score", "probabilities", "low", "high", "model_version")
"""Columns that scoring adds to a table; no other column may have these names."""

DEFAULT_DATETIME_FEATURES: tuple[DatetimeFeature, ...] = ("hour", "weekday")
"""Features of a datetime column if the contract lists none."""

NO_TIMESTAMP = timestamps.NOT_A_TIMESTAMP

FLOAT_LIMIT = float(np.finfo(np.float32).max)
"""Models see float32; larger numbers would become infinity."""
INTEGER_LIMIT = 2**53
"""Columns are float64; beyond this limit neighbouring integers are equal."""

_ISO = (timestamps.compile_format(timestamps.ISO),)
_NOT_IN_SYMBOLS = frozenset("0123456789.,+-()' ")
_NOTHING = np.array(None, dtype=object)
_NOT_A_TIME = np.iinfo(np.int64).min


class Parse(config_model.StrictModel):
    """Format of a column's cells if it is not canonical text; keys are named as in pandas.read_csv.

    `na_values` are missing, besides empty cells and the usual markers (see `parsing.MARKERS`). `symbols` (currency,
    percent, unit) are stripped from numbers. `true_values` and `false_values` add to true, yes, t, 1 and their
    opposites, whatever their case. `date_formats` are tried in order: strptime formats, `iso8601`, `epoch_s`,
    `epoch_ms`, `epoch_us`, `epoch_ns`, `excel_days`; ISO 8601 is always read as well.
    """

    na_values: tuple[str, ...] = ()
    decimal: Literal[".", ","] = "."
    thousands: Literal["", ",", ".", " ", "'"] = ""
    symbols: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    true_values: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    false_values: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    date_formats: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.decimal == self.thousands:
            raise ValueError(f"decimal and thousands are both '{self.decimal}'; only one of them can be")
        for key in ("na_values", "symbols", "true_values", "false_values"):
            for value in getattr(self, key):
                if (clean := unicodedata.normalize("NFC", value.strip())) != value:
                    raise ValueError(
                        f"{key}: cells are stripped and in NFC, so {value!r} never occurs; write {clean!r}"
                    )
        for symbol in self.symbols:
            if symbol[0] in _NOT_IN_SYMBOLS or symbol.rstrip(".")[-1] in _NOT_IN_SYMBOLS:
                raise ValueError(f"symbols: {symbol!r} begins or ends with a part of a number; leave that part out")
        words = [*map(str.lower, self.true_values), *map(str.lower, self.false_values), *self.na_values]
        if twice := config_model.find_duplicates(words):
            raise ValueError(f"'{twice[0]}' appears twice in na_values, true_values and false_values")
        for name in self.date_formats:
            timestamps.compile_format(name)
        return self


_PARSE_KEYS = {
    "decimal": ("float", "integer"),
    "thousands": ("float", "integer"),
    "symbols": ("float", "integer"),
    "true_values": ("boolean",),
    "false_values": ("boolean",),
    "date_formats": ("datetime",),
}
"""Column types that each key of `Parse` needs; keys not listed fit every type."""


class Column(config_model.StrictModel):
    """One column: its type, role, allowed values, and the features made from a timestamp or a text.

    `datetime_features` are those of a datetime (see `features.DATETIME_FEATURES`). `free_text` is true where the words
    count, not the whole string.
    `source` is the column's name in the adopted file where that is another one. `time_zone` is the zone in which
    datetimes without an offset are meant, and to which others are converted: an IANA name, an offset such as +01:00,
    or `local` (the wall-clock time as written, its offset dropped). Without it, a value with an offset is rejected.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "parts": "datetime_features",
        "text": "free_text",
        "unseen": "max_unknown_share",
    }

    name: str = Field(min_length=1)
    type: ColumnType
    role: Role = "feature"
    nullable: bool = False
    range: tuple[float, float] | None = None
    categories: tuple[str | int, ...] | None = None
    max_unknown_share: float = Field(default=0.0, ge=0.0, le=1.0)
    datetime_features: tuple[DatetimeFeature, ...] = DEFAULT_DATETIME_FEATURES
    free_text: bool = False
    unit: str = ""
    description: str = ""
    personal: bool = False
    source: str = ""
    time_zone: str = ""
    parse: Parse = Parse()

    @model_validator(mode="after")
    def _values_fit_type(self) -> Self:
        if self.range is not None:
            if self.type not in ("float", "integer"):
                raise ValueError(f"column '{self.name}': a range needs type float or integer, not {self.type}")
            if self.range[0] > self.range[1]:
                raise ValueError(f"column '{self.name}': the range {list(self.range)} has its ends swapped")
        if self.categories is not None:
            if self.type != "string" and (self.type, self.role) != ("integer", "target"):
                raise ValueError(
                    f"column '{self.name}': categories need type string, not {self.type}; "
                    "only a target's classes may be integers"
                )
            wanted = str if self.type == "string" else int
            if odd := [category for category in self.categories if type(category) is not wanted]:
                raise ValueError(f"column '{self.name}': the category {odd[0]!r} is not of type {self.type}")
            if len(set(self.categories)) != len(self.categories):
                raise ValueError(f"column '{self.name}': a category appears twice")
            if MISSING in self.categories:
                raise ValueError(f"column '{self.name}': the category '{MISSING}' is reserved")
        if self.max_unknown_share and self.categories is None:
            raise ValueError(f"column '{self.name}': 'max_unknown_share' needs categories")
        return self

    @model_validator(mode="after")
    def _features_fit_type(self) -> Self:
        if "datetime_features" in self.model_fields_set and self.type != "datetime":
            raise ValueError(f"column '{self.name}': 'datetime_features' needs type datetime, not {self.type}")
        if len(set(self.datetime_features)) != len(self.datetime_features):
            raise ValueError(f"column '{self.name}': a datetime feature appears twice")
        if self.free_text and (self.type != "string" or self.categories is not None):
            raise ValueError(f"column '{self.name}': 'free_text' needs type string without categories")
        return self

    @model_validator(mode="after")
    def _cells_fit_type(self) -> Self:
        for key, types in _PARSE_KEYS.items():
            if getattr(self.parse, key) != Parse.model_fields[key].default and self.type not in types:
                raise ValueError(f"column '{self.name}': parse.{key} needs type {' or '.join(types)}, not {self.type}")
        if self.time_zone and self.type != "datetime":
            raise ValueError(f"column '{self.name}': time_zone needs type datetime, not {self.type}")
        try:
            timestamps.check_zone(self.time_zone)
        except ValueError as error:
            raise ValueError(f"column '{self.name}': {error}") from None
        if not self.time_zone and (epochs := timestamps.EPOCH_NS.keys() & set(self.parse.date_formats)):
            raise ValueError(f"column '{self.name}': {min(epochs)} counts from UTC; add a time_zone, such as UTC")
        for key, text in (("name", self.name), *(("category", str(value)) for value in self.categories or ())):
            if (composed := unicodedata.normalize("NFC", text)) != text:
                raise ValueError(f"column '{self.name}': the {key} '{text}' is not in NFC; write it as '{composed}'")
        return self

    @model_validator(mode="after")
    def _role_fits_type(self) -> Self:
        if self.role == "weight" and self.type not in ("float", "integer"):
            raise ValueError(f"column '{self.name}': role weight needs type float or integer, not {self.type}")
        if self.role == "time" and self.type != "datetime":
            raise ValueError(f"column '{self.name}': role time needs type datetime, not {self.type}")
        if self.role == "id" and self.type not in ("string", "integer"):
            raise ValueError(f"column '{self.name}': role id needs type string or integer, not {self.type}")
        if self.role in ("id", "time", "weight") and self.nullable:
            raise ValueError(f"column '{self.name}': every row needs its {self.role}; drop 'nullable'")
        if self.name in SCORE_COLUMNS:
            raise ValueError(f"column '{self.name}': scoring adds a column of this name; rename yours")
        return self

    @property
    def limits(self) -> tuple[float, float]:
        """Lowest and highest value of a numeric column: its range, limited to values that every part can represent."""
        most = INTEGER_LIMIT if self.type == "integer" else FLOAT_LIMIT
        low, high = self.range or (-most, most)
        return max(low, -most), min(high, most)

    @property
    def is_numeric(self) -> bool:
        """Whether the column's values are numbers (booleans count as 0 and 1)."""
        return self.type in ("float", "integer", "boolean")


class Contract(config_model.StrictModel):
    """All columns of the table, in order."""

    version: Literal[1] = 1
    name: str = Field(min_length=1)
    description: str = ""
    columns: tuple[Column, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        names = [column.name for column in self.columns]
        if twice := config_model.find_duplicates(names):
            raise ValueError(f"duplicate column '{twice[0]}'")
        for role in ("id", "time", "target", "weight"):
            found = [column.name for column in self.columns if column.role == role]
            if len(found) > 1:
                raise ValueError(f"role {role} is given to {len(found)} columns ({', '.join(found)}); give it to one")
        if not any(column.role == "target" for column in self.columns):
            raise ValueError("no column has role target; give it to the column to predict")
        if not self.inputs:
            raise ValueError("no column has role feature; the model needs at least one")
        if not any(column.type != "datetime" or column.datetime_features for column in self.inputs):
            raise ValueError(
                "no feature is left: the only inputs are datetimes without datetime_features; give one of them some"
            )
        if self.target.type == "datetime" or (self.target.type == "string" and not self.target.categories):
            raise ValueError(
                f"the target '{self.target.name}' is {self.target.type} without categories; list its classes, "
                "or give the role to a boolean or a number"
            )
        if self.target.categories is not None and len(self.target.categories) < 2:
            raise ValueError(f"the target '{self.target.name}' has only one class; classification needs at least two")
        if self.target.max_unknown_share:
            raise ValueError(
                f"the target '{self.target.name}': every row needs a class of the contract; drop 'max_unknown_share'"
            )
        return self

    @classmethod
    def load(cls, path: Path, accept_renamed: bool = False) -> Self:
        """Read contract.yaml; with `accept_renamed`, also one of an older version of this package, in a bundle.

        Raises:
            ConfigError: the file is missing, malformed or contradicts itself.
        """
        return config_model.load(path, cls, accept_renamed)

    def _find_by_role(self, role: Role) -> Column | None:
        return next((column for column in self.columns if column.role == role), None)

    @property
    def id(self) -> Column | None:
        """The column that identifies a row, if there is one."""
        return self._find_by_role("id")

    @property
    def time(self) -> Column | None:
        """The column that says when a row happened, if there is one."""
        return self._find_by_role("time")

    @property
    def weight(self) -> Column | None:
        """The column of sample weights, if there is one."""
        return self._find_by_role("weight")

    @property
    def target(self) -> Column:
        """The column to predict."""
        found = self._find_by_role("target")
        assert found is not None
        return found

    @property
    def inputs(self) -> tuple[Column, ...]:
        """The columns a prediction is made from: features, and the time of the row."""
        return tuple(column for column in self.columns if column.role in ("feature", "time"))

    @property
    def task(self) -> Task:
        """The kind of prediction: binary, multiclass or regression."""
        return {0: "regression", 2: "binary"}.get(len(self.classes), "multiclass")  # type: ignore[return-value]

    @property
    def classes(self) -> tuple[Label, ...]:
        """The target's classes, the positive one of two last; empty for regression."""
        if self.target.type == "boolean":
            return (False, True)
        return self.target.categories or ()

    def to_time_zone(self, timestamp: datetime) -> datetime:
        """Convert a timestamp with an offset to the time zone of the time column.

        Raises:
            ConfigError: it has an offset, and the time column declares no time zone.
        """
        try:
            return timestamps.aware_to_zone(timestamp, self.time.time_zone if self.time else "UTC")
        except ValueError as error:
            raise ConfigError(f"{timestamp.isoformat()} {error}") from None

    def encode_target(self, values: np.ndarray) -> np.ndarray:
        """Encode the target as float64 [n_rows]: the index of its class, or its value.

        A missing value, or one that is not a class of the contract, becomes NaN.
        """
        if self.target.type != "string" and self.target.categories is None:
            return values.astype(np.float64)
        places = {label: at for at, label in enumerate(self.classes)}
        return np.array([places.get(value, np.nan) for value in values.tolist()], dtype=np.float64)

    def __getitem__(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise ConfigError(
            f"contract.yaml has no column '{name}'; "
            f"{config_model.suggest(name, [column.name for column in self.columns])}"
        )

    def fingerprint(self) -> str:
        """sha256 of the contract's content, regardless of layout and comments."""
        content = self.model_dump(mode="json")
        for column, said in zip(self.columns, content["columns"], strict=True):
            # Keys that earlier versions lacked count only if set, so that their bundles still open.
            for key in ("source", "time_zone", "parse"):
                if getattr(column, key) == Column.model_fields[key].default:
                    del said[key]
            # Hashed by the names that these keys had first.
            for old, new in Column.renamed.items():
                said[old] = said.pop(new)
            if "parse" in said:
                said["parse"] = column.parse.model_dump(mode="json", exclude_defaults=True)
        return sha256_text(canonical_json(content))


def to_array(column: Column, values: Sequence[Any]) -> np.ndarray:
    """Convert a column's Python values (None for missing) to its array type in `Columns`."""
    if column.is_numeric:
        return np.array(values, dtype=np.float64)
    if column.type == "datetime":
        # NumPy reads datetimes too, five times as slowly.
        zone = column.time_zone or "UTC"
        return np.array([_to_microseconds(value, zone) for value in values], dtype=np.int64).view("datetime64[us]")
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _to_microseconds(value: str | datetime | None, zone: str) -> int:
    """Microseconds since 1970, as datetime64[us] counts them."""
    if value is None:
        return _NOT_A_TIME
    local = parse_timestamp(value, zone) if isinstance(value, str) else timestamps.aware_to_zone(value, zone)
    since = local - timestamps.EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def is_missing(values: np.ndarray) -> np.ndarray:
    """Return which values of a `Columns` array are missing, bool [n_rows]."""
    if values.dtype.kind == "O":
        absent: np.ndarray = np.equal(values, _NOTHING)
        return absent.astype(bool)
    gaps: np.ndarray = np.isnat(values) if values.dtype.kind == "M" else np.isnan(values)
    return gaps


def columns_from_rows(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Build `Columns` from rows of Python values; an absent key counts as missing."""
    return {column.name: to_array(column, [row.get(column.name) for row in rows]) for column in columns}


def parse_timestamp(text: str, zone: str = "UTC") -> datetime:
    """Parse a timestamp in ISO 8601; a text with an offset is converted to `zone`. The result has no time zone.

    Raises:
        ValueError: the text is not a timestamp.
    """
    if (plain := timestamps.parse_isoformat(text)) is not None:
        return plain
    stamp = timestamps.parse(text, _ISO)
    if stamp is None:
        raise ValueError(NO_TIMESTAMP)
    return timestamps.to_zone(stamp, zone)


def to_naive_utc(value: datetime) -> datetime:
    """Convert a timestamp to UTC and drop its time zone."""
    return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo is not None else value
