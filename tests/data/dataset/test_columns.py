"""Rows as an Arrow table: equal to what pyarrow makes of them, and pandas stays out."""

import subprocess
import sys
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk_data.dataset.columns import table_of

_SCHEMA = pa.schema(
    [
        ("small", pa.int32()),
        ("large", pa.int64()),
        ("checksum", pa.uint32()),
        ("hash", pa.uint64()),
        ("text", pa.string()),
        ("digest", pa.binary(3)),
    ]
)
_values = {
    "small": st.integers(-(2**31), 2**31 - 1),
    "large": st.integers(-(2**63), 2**63 - 1),
    "checksum": st.integers(0, 2**32 - 1),
    "hash": st.integers(0, 2**64 - 1),
    "text": st.text(),
    "digest": st.binary(min_size=3, max_size=3),
}
_rows = st.lists(st.fixed_dictionaries({}, optional={name: st.none() | one for name, one in _values.items()}))


@given(_rows)
def test_the_table_is_the_one_that_pyarrow_makes(rows: list[dict[str, Any]]) -> None:
    found = table_of(rows, _SCHEMA)
    found.validate(full=True)
    assert found.equals(pa.Table.from_pylist(rows, _SCHEMA))


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"small": 2**31}, OverflowError),
        ({"hash": -1}, OverflowError),
        ({"digest": b"1234"}, ValueError),
        ({"text": "\ud800"}, UnicodeEncodeError),
    ],
)
def test_what_a_column_cannot_hold_is_an_error(row: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        table_of([row], _SCHEMA)


def test_pandas_is_not_imported() -> None:
    script = (
        "import sys, pyarrow as pa\n"
        "from lmk_data.dataset.columns import table_of\n"
        "from lmk_data.dataset.format import receipt_schema\n"
        "from lmk_data.dataset.parquet_files import parquet_bytes\n"
        "parquet_bytes(table_of([{'key': 'a', 'landmark_id': 1}], receipt_schema(pa.int64())))\n"
        "print('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
