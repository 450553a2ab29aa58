"""A process that decodes records into memory that it shares with the process that trains.

It is started by `lmk_train.data.decoders`, is told which shards there are, and then decodes parts of batches until the
other end of its connection closes. It imports neither torch nor pyarrow, so that it starts quickly.
"""

import json
import mmap
from functools import lru_cache
from multiprocessing.connection import Connection

import numpy as np

from lmk_train.data.records import OpenShard, Record, decode_record

DONE, FAILED = b"\0", b"\1"
_OPEN_FILES = 256


def serve(connection_descriptor: int, memory_descriptor: int) -> None:
    """Decode what is asked for until the connection closes; an answer is `DONE` or `FAILED`.

    The first message is a JSON object: `shards`, the paths of the shards, and `shape`, that of the memory, uint8
    [batches, B, H, W, 3]. The others are int64 arrays: batch and first sample in the memory, then the four fields of
    each `Record`. What fails is decoded again by the other end, which knows how to report it.
    """
    connection = Connection(connection_descriptor)
    try:
        work = json.loads(connection.recv_bytes())
        shards: list[str] = work["shards"]
        batches = np.frombuffer(mmap.mmap(memory_descriptor, 0), np.uint8).reshape(work["shape"])

        @lru_cache(_OPEN_FILES)
        def opened(shard: int) -> OpenShard:
            return OpenShard(shards[shard])

        while True:
            batch, first, *fields = np.frombuffer(connection.recv_bytes(), np.int64).tolist()
            records = [Record(*fields[start : start + 4]) for start in range(0, len(fields), 4)]
            try:
                for record, out in zip(records, batches[batch, first:], strict=False):
                    decode_record(opened(record.shard).read(record.offset, record.num_bytes), record, out)
            except (MemoryError, OSError, ValueError):
                connection.send_bytes(FAILED)
            else:
                connection.send_bytes(DONE)
    except (EOFError, OSError):  # the other end is done, or was killed
        pass
