"""Tables written a row group at a time."""

import hashlib
import tempfile

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk_data.dataset import parquet_files
from lmk_data.dataset.parquet_files import parquet_bytes, write_table
from lmk_data.system.storage import open_folder


@given(st.lists(st.lists(st.tuples(st.text(max_size=3), st.integers(0, 9)), max_size=20), max_size=8))
def test_a_table_written_in_parts_has_the_bytes_of_the_whole(parts: list[list[tuple[str, int]]]) -> None:
    schema = pa.schema([("key", pa.string()), ("label", pa.int32())])
    tables = [pa.table([[key for key, _ in part], [n for _, n in part]], schema=schema) for part in parts]
    whole = parquet_bytes(pa.concat_tables([schema.empty_table(), *tables]).combine_chunks(), row_group_rows=7)
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patched:
        patched.setattr(parquet_files, "_ROW_GROUP_ROWS", 7)
        folder = open_folder(root)
        entry = write_table(folder, "a.parquet", schema, iter(tables))
        written = folder.read("a.parquet")
    assert entry == {"sha256": hashlib.sha256(written).hexdigest(), "num_bytes": len(written)}
    if sum(map(len, parts)):
        assert written == whole
