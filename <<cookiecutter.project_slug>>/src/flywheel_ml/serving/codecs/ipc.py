"""What an Arrow IPC stream says of itself, before anything of it is unpacked.

A compressed buffer, however small, may announce any size, and memory for it is taken before it is read. The format is
https://arrow.apache.org/docs/format/Columnar.html; its messages are FlatBuffers, of which two fields are read here.
"""

import struct

from flywheel_ml.serving.errors.problems import Problem

RECORD_BATCH, DICTIONARY = "record batch", "dictionary"


def inspect(body: bytes) -> int:
    """How many rows the record batches of a stream announce.

    Raises:
        Problem: 415 when one is compressed.
        pyarrow.ArrowException, OSError: it is no stream.
    """
    import pyarrow as pa

    rows = 0
    for message in pa.ipc.MessageReader.open_stream(body):
        if message.type not in (RECORD_BATCH, DICTIONARY):
            continue
        metadata = message.metadata.to_pybytes()
        try:
            batch = _child(metadata, _child(metadata, 0, None), 2)
            if message.type == DICTIONARY:
                batch = _child(metadata, batch, 1)
            if _place(metadata, batch, 3):
                raise Problem(415, "unsupported-media-type", "send the Arrow stream without compression")
            if message.type == RECORD_BATCH and (at := _place(metadata, batch, 0)):
                rows += max(0, struct.unpack_from("<q", metadata, at)[0])
        except struct.error:
            raise pa.ArrowInvalid("a message ends before its header does") from None
    return rows


def _child(buffer: bytes, table: int, field: int | None) -> int:
    """Where the table begins that a field (None: the buffer itself) points to."""
    at = table if field is None else _place(buffer, table, field)
    return int(at + struct.unpack_from("<I", buffer, at)[0])


def _place(buffer: bytes, table: int, field: int) -> int:
    """Where a field of a table stands; 0 if it has none."""
    form = table - struct.unpack_from("<i", buffer, table)[0]
    size = struct.unpack_from("<H", buffer, form)[0]
    entry = 4 + 2 * field
    if form < 0 or entry >= size:
        return 0
    offset = struct.unpack_from("<H", buffer, form + entry)[0]
    return int(table + offset) if offset else 0
