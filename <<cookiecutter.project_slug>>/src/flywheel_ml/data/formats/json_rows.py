"""Reads rows of JSON: one object per line, or one list of objects."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl

from flywheel_ml.utils.errors import DataError

_MAX_SHOWN = 60
_REMEDY = "write one object a line, or one list of them (pandas: to_json(path, orient='records', lines=True))"


def scan(readable: Path, path: Path, scratch: Path) -> pl.LazyFrame:
    """Scan UTF-8 JSON; errors name `path`. NaN and infinities, which are not valid JSON, become missing.

    Raises:
        DataError: it is not JSON, or does not contain rows.
    """
    with readable.open("rb") as stream:
        first = stream.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if first not in (b"[", b"{"):
        raise DataError(f"{path} is not JSON with rows (it starts with {first!r}); {_REMEDY}")
    is_list = first == b"["
    rows = None
    if _is_plain(readable, is_list):
        # On failure Python reads it again, to report the position or to succeed where Polars cannot.
        with suppress(pl.exceptions.PolarsError):
            rows = _scan_regular(readable, is_list)
    if rows is None:
        rows = _rewrite(readable, path, scratch, is_list)
    kinds = rows.collect_schema().dtypes()
    if not kinds:
        raise DataError(f"{path} holds no rows; there is nothing to read")
    if all(kind.is_nested() for kind in kinds):
        raise DataError(f"{path} holds one object of lists or objects, not rows; {_REMEDY}")
    return rows


def _scan_regular(readable: Path, is_list: bool) -> pl.LazyFrame:
    if is_list:
        return pl.read_json(readable, infer_schema_length=None).lazy()
    rows = pl.scan_ndjson(readable, infer_schema_length=None)
    rows.collect_schema()
    return rows


def _is_plain(readable: Path, is_list: bool) -> bool:
    """Whether every line begins an object, and none contains NaN or Infinity, which are not valid JSON."""
    with readable.open("rb") as stream:
        return all(
            b"NaN" not in line and b"Infinity" not in line and (is_list or line.lstrip()[:1] in b"{\xef")
            for line in stream
        )


def _rewrite(readable: Path, path: Path, scratch: Path, is_list: bool) -> pl.LazyFrame:
    copy = scratch / "rows.ndjson"
    objects = _read_list(readable, path) if is_list else _read_lines(readable, path)
    with copy.open("w", encoding="utf-8") as target:
        for where, row in objects:
            if not isinstance(row, dict):
                raise DataError(f"{path}, {where} is not an object ({_abbreviate(json.dumps(row))}); {_REMEDY}")
            target.write(json.dumps(row, ensure_ascii=False) + "\n")
    return _scan_regular(copy, is_list=False)


def _read_list(readable: Path, path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with readable.open(encoding="utf-8-sig") as stream:
            rows = json.load(stream, parse_constant=_to_none)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno:,}, column {error.colno}: not valid JSON ({error.msg}); {_REMEDY}"
        ) from None
    yield from ((f"item {at:,}", row) for at, row in enumerate(rows, start=1))


def _read_lines(readable: Path, path: Path) -> Iterator[tuple[str, Any]]:
    with readable.open(encoding="utf-8-sig") as stream:
        for at, line in enumerate(stream, start=1):
            if line.strip():
                try:
                    yield f"line {at:,}", json.loads(line, parse_constant=_to_none)
                except json.JSONDecodeError as error:
                    raise DataError(
                        f"{path}, line {at:,} is not a JSON object ({error.msg}: {_abbreviate(line)}); {_REMEDY}"
                    ) from None


def _to_none(_: str) -> None:
    return None


def _abbreviate(text: str) -> str:
    line = text.strip()
    return repr(line if len(line) <= _MAX_SHOWN else f"{line[:_MAX_SHOWN]}…")
