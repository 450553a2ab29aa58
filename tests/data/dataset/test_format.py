import hashlib
import tempfile

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk_data.dataset import format as dataset_format
from lmk_data.dataset.format import canonical_json, content_sha256_of, is_safe_key, make_key, parquet_bytes, write_table
from lmk_data.system.storage import open_folder


@given(st.text(min_size=1, max_size=300))
def test_every_name_gets_a_safe_key(name: str) -> None:
    key = make_key(name)
    assert is_safe_key(key)
    assert not key.startswith("__"), "Hugging Face datasets leaves those out"
    assert key == name or key.endswith(hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16])


def test_keys_stay_readable() -> None:
    assert make_key("6a27932af6051721") == "6a27932af6051721"
    assert make_key("Eiffel Tower/été 1.jpg").startswith("Eiffel-Tower-t-1-")
    assert make_key("a.b") != make_key("a-b")
    assert make_key("日本.jpg").startswith("image-")
    assert make_key("__misc/a b.jpg").startswith("misc-a-b-")
    assert make_key("_one") == "_one"


def test_canonical_json_is_canonical() -> None:
    assert (
        canonical_json({"b": 1, "a": [1.5, "é"]})
        == canonical_json({"a": [1.5, "é"], "b": 1})
        == '{"a":[1.5,"é"],"b":1}'.encode()
    )


def test_content_hash_covers_names_and_bytes() -> None:
    files = {"a": {"sha256": "00", "num_bytes": 1}, "b": {"sha256": "11", "num_bytes": 2}}
    swapped = {"a": files["b"], "b": files["a"]}
    assert content_sha256_of(files) == content_sha256_of(dict(reversed(files.items())))  # type: ignore[arg-type]
    assert content_sha256_of(files) != content_sha256_of(swapped)  # type: ignore[arg-type]


@given(st.lists(st.lists(st.tuples(st.text(max_size=3), st.integers(0, 9)), max_size=20), max_size=8))
def test_a_table_written_in_parts_has_the_bytes_of_the_whole(parts: list[list[tuple[str, int]]]) -> None:
    schema = pa.schema([("key", pa.string()), ("label", pa.int32())])
    tables = [pa.table([[key for key, _ in part], [n for _, n in part]], schema=schema) for part in parts]
    whole = parquet_bytes(pa.concat_tables([schema.empty_table(), *tables]).combine_chunks(), row_group_rows=7)
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patched:
        patched.setattr(dataset_format, "_ROW_GROUP_ROWS", 7)
        folder = open_folder(root)
        entry = write_table(folder, "a.parquet", schema, iter(tables))
        written = folder.read("a.parquet")
    assert entry == {"sha256": hashlib.sha256(written).hexdigest(), "num_bytes": len(written)}
    if sum(map(len, parts)):
        assert written == whole
