"""Deletes the rows of an entity from Parquet files, and finds remains of deleted rows in SQLite files."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flywheel_ml.utils.errors import DataError
from flywheel_ml.utils.files import replacing

ROWS_PER_BATCH = 50_000
READ_BYTES = 4_000_000
_ID_BYTES = 32
_LARGEST_ROOT_PAGE = slice(52, 56)
"""Bytes of a SQLite file's header that are zero if its unused pages stay in it (sqlite.org/fileformat.html)."""


def delete_from_parquet(path: Path, column: str, key: str) -> int:
    """Delete the rows whose column equals a key as text; returns how many there were.

    The file is replaced atomically, and only if it has such rows. A file without the column is left alone.

    Raises:
        DataError: the file cannot be read or written, or pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(f"'{path}' cannot be read without pyarrow; install the extra 'arrow'") from None
    try:
        with pq.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                return 0
            found = sum(_mask(batch.column(0), key)[1] for batch in file.iter_batches(ROWS_PER_BATCH, columns=[column]))
            if not found:
                return 0
            at = file.schema_arrow.names.index(column)
            codec = file.metadata.row_group(0).column(0).compression
            options = {"compression": "NONE" if codec == "UNCOMPRESSED" else codec}
            mode = path.stat().st_mode & 0o777
            with replacing(path) as part, pq.ParquetWriter(part, file.schema_arrow, **options) as writer:
                for batch in file.iter_batches(ROWS_PER_BATCH):
                    writer.write_batch(batch.filter(_mask(batch.column(at), key)[0]))
            path.chmod(mode)
            return found
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
        raise DataError(f"'{path}' cannot be changed: {reason}") from None


def _mask(values: Any, key: str) -> tuple[Any, int]:
    """Return which values to keep, and the number of others."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_floating(values.type):
        number = float("nan")
        with suppress(ValueError):
            number = float(key)
        equal = pc.equal(values, pa.scalar(number, pa.float64()))
    else:
        equal = pc.equal(pc.cast(values, pa.string()), key)
    equal = pc.fill_null(equal, False)
    return pc.invert(equal), pc.sum(equal).as_py() or 0


def find_remains(paths: Sequence[Path], ids: Sequence[str]) -> list[Path]:
    """Return the files whose bytes contain one of the ids, also in their unused parts."""
    wanted = {one.encode() for one in ids if len(one) == _ID_BYTES}
    if not wanted:
        return []
    # Overlapping, because the byte before an id may be a hex digit too.
    pattern = re.compile(b"|".join(wanted)) if len(wanted) <= 20 else re.compile(rb"(?=([0-9a-f]{32}))")

    def contains(block: bytes) -> bool:
        return any(not one.re.groups or one[1] in wanted for one in pattern.finditer(block))

    found = []
    for path in paths:
        with suppress(FileNotFoundError), path.open("rb") as stream:
            rest = b""
            while block := stream.read(READ_BYTES):
                if contains(rest + block):
                    found.append(path)
                    break
                rest = block[-_ID_BYTES:]
    return found


def keeps_unused_bytes(path: Path) -> bool:
    """Whether an older version of this package created a SQLite file: deleted rows may have left bytes in it."""
    with path.open("rb") as stream:
        return not any(stream.read(100)[_LARGEST_ROOT_PAGE])
