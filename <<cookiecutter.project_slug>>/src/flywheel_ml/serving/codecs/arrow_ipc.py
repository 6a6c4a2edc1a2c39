"""Inspects the messages of an Arrow IPC stream before it is decoded.

A small compressed buffer may announce any size, and pyarrow allocates that memory before it decompresses. The format is
https://arrow.apache.org/docs/format/Columnar.html; its messages are FlatBuffers, and this module reads two fields.
"""

import struct

from flywheel_ml.serving.errors.problems import Problem

RECORD_BATCH, DICTIONARY = "record batch", "dictionary"


def count_announced_rows(body: bytes) -> int:
    """Return the number of rows that the record batches of a stream announce.

    Raises:
        Problem: 415 if a batch is compressed.
        pyarrow.ArrowException, OSError: the body is not an IPC stream.
    """
    import pyarrow as pa

    rows = 0
    for message in pa.ipc.MessageReader.open_stream(body):
        if message.type not in (RECORD_BATCH, DICTIONARY):
            continue
        metadata = message.metadata.to_pybytes()
        try:
            batch = _find_table(metadata, _find_table(metadata, 0, None), 2)
            if message.type == DICTIONARY:
                batch = _find_table(metadata, batch, 1)
            if _find_field(metadata, batch, 3):
                raise Problem(415, "unsupported-media-type", "send the Arrow stream without compression")
            if message.type == RECORD_BATCH and (at := _find_field(metadata, batch, 0)):
                rows += max(0, struct.unpack_from("<q", metadata, at)[0])
        except struct.error:
            raise pa.ArrowInvalid("a message ends before its header does") from None
    return rows


def _find_table(buffer: bytes, table: int, field: int | None) -> int:
    """Return the offset of the table that a field (None: the buffer itself) points to."""
    at = table if field is None else _find_field(buffer, table, field)
    return int(at + struct.unpack_from("<I", buffer, at)[0])


def _find_field(buffer: bytes, table: int, field: int) -> int:
    """Return the offset of a table's field; 0 if the field is absent."""
    form = table - struct.unpack_from("<i", buffer, table)[0]
    size = struct.unpack_from("<H", buffer, form)[0]
    entry = 4 + 2 * field
    if form < 0 or entry >= size:
        return 0
    offset = struct.unpack_from("<H", buffer, form + entry)[0]
    return int(table + offset) if offset else 0
