"""NumPy's arrays from Arrow's and back, by their buffers.

pyarrow's own conversions would do as well, but they load pandas wherever that is installed: 40 MB and a third of a
second, in a server too. The layout is https://arrow.apache.org/docs/format/Columnar.html.
"""

from typing import Any

import numpy as np

from flywheel_ml.core.contract import missing


def array_of(values: np.ndarray) -> Any:
    """A `pyarrow.Array` [n_rows] of booleans, int64, float64, microseconds or texts; NaN, NaT and None become null."""
    import pyarrow as pa

    kind, count = values.dtype.kind, len(values)
    if kind == "b":
        return pa.Array.from_buffers(pa.bool_(), count, [None, _bits(values)])
    if kind == "i":
        return pa.Array.from_buffers(pa.int64(), count, [None, pa.py_buffer(np.ascontiguousarray(values, np.int64))])
    present = _bits(~missing(values))
    if kind == "f":
        numbers = pa.py_buffer(np.ascontiguousarray(values, np.float64))
        return pa.Array.from_buffers(pa.float64(), count, [present, numbers])
    if kind == "M":
        moments = pa.py_buffer(values.astype("datetime64[us]").view(np.int64))
        return pa.Array.from_buffers(pa.timestamp("us"), count, [present, moments])
    texts = [b"" if text is None else text.encode() for text in values.tolist()]
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    buffers = [present, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))]
    return pa.Array.from_buffers(pa.large_string(), count, buffers)


def _bits(truths: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.py_buffer(np.packbits(truths, bitorder="little"))


def present(values: Any) -> np.ndarray:
    """Which values of a `pyarrow.Array` are not null, bool [n_rows]."""
    buffer = values.buffers()[0]
    return np.ones(len(values), dtype=np.bool_) if buffer is None else _truths(buffer, values)


def truths(values: Any) -> np.ndarray:
    """A `pyarrow.BooleanArray` as bool [n_rows]; null is False."""
    found: np.ndarray = _truths(values.buffers()[1], values) & present(values)
    return found


def fixed(values: Any, dtype: str) -> np.ndarray:
    """An array whose values are all of one width, [n_rows]; what stands where one is null means nothing."""
    return _part(values.buffers()[1], np.dtype(dtype), values.offset, len(values))


def numbers(values: Any) -> np.ndarray:
    """An array of numbers or booleans as float64 [n_rows]; null is NaN."""
    import pyarrow as pa

    made = values.cast(pa.float64(), safe=False)
    found: np.ndarray = np.where(present(made), fixed(made, "f8"), np.nan)
    return found


def moments(values: Any) -> np.ndarray:
    """An array of timestamps or dates as datetime64 [n_rows] of its own unit, in UTC; null is NaT."""
    import pyarrow as pa

    if pa.types.is_date32(values.type):
        found = fixed(values, "i4").astype(np.int64).view("M8[D]")
    else:
        found = fixed(values, f"M8[{'ms' if pa.types.is_date64(values.type) else values.type.unit}]")
    return np.where(present(values), found, np.datetime64("NaT"))


def texts(values: Any) -> np.ndarray:
    """A `pyarrow.LargeStringArray` as object [n_rows]; null is None. Equal texts are one object."""
    coded = values.dictionary_encode()
    known = np.array([*coded.dictionary.to_pylist(), None], dtype=object)
    found: np.ndarray = known[np.where(present(coded.indices), fixed(coded.indices, "i4"), -1)]
    return found


def lengths(values: Any) -> np.ndarray:
    """Bytes of each text of an array, int64 [n_rows]; 0 for null."""
    import pyarrow as pa

    count, at = len(values), values.offset
    if pa.types.is_string_view(values.type):
        # Sixteen bytes for each text, of which the first four are its length.
        found = _part(values.buffers()[1], np.dtype("i4"), at * 4, count * 4)[::4]
    else:
        width = np.dtype("i8" if pa.types.is_large_string(values.type) else "i4")
        found = np.diff(_part(values.buffers()[1], width, at, count + 1)) if count else np.zeros(0)
    return np.where(present(values), found, 0).astype(np.int64)


def _truths(buffer: Any, values: Any) -> np.ndarray:
    last = values.offset + len(values)
    bits = np.unpackbits(np.frombuffer(buffer, np.uint8), count=last, bitorder="little")
    return bits[values.offset :].astype(np.bool_)


def _part(buffer: Any, dtype: np.dtype[Any], at: int, count: int) -> np.ndarray:
    if count == 0:
        return np.zeros(0, dtype)
    return np.frombuffer(buffer, dtype, count, at * dtype.itemsize)
