import hashlib

from hypothesis import given
from hypothesis import strategies as st

from lmk_data.dataset.format import canonical_json, content_sha256_of, is_safe_key, make_key


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
