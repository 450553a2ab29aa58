"""Bytes as Arrow may read them: in memory of its own, which its threads can keep beyond the interpreter's end."""

import pyarrow as pa


def arrow_reader(data: bytes) -> pa.BufferReader:
    """Return a reader of a copy of `data`, see `arrow_buffer`."""
    return buffer_reader(arrow_buffer(data))


def buffer_reader(buffer: pa.Buffer) -> pa.BufferReader:
    """Return a reader of what `arrow_buffer` returned, or of a part of it."""
    return pa.BufferReader(buffer)


def arrow_buffer(data: bytes) -> pa.Buffer:
    """Return a copy of `data` in Arrow's own memory.

    Arrow's threads may still hold what they read from when the interpreter ends. To let go of bytes or a file of
    Python they then need the interpreter's lock, and the process aborts with "terminate called without an active
    exception": once in 60 commands that end right after a read (apache/arrow#34314). Files of Python are read with
    `use_threads=False` for the same reason.
    """
    buffer = pa.allocate_buffer(len(data))
    memoryview(buffer).cast("B")[:] = data
    return buffer
