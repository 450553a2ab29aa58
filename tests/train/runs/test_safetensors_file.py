"""Files in the format safetensors, of the library and damaged ones."""

import json
from pathlib import Path

import pytest
import torch

from lmk_train.runs.safetensors_file import load_safetensors


def test_what_the_library_writes_is_read_back(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch", reason="the extra `interop` is not installed")
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    state = {str(kind): torch.arange(6).reshape(2, 3).to(kind) for kind in kinds}
    state |= {"scalar": torch.tensor(3), "empty": torch.zeros(0, 5)}
    library.save_file(state, tmp_path / "weights.safetensors", metadata={"format": "pt"})
    found = load_safetensors(tmp_path / "weights.safetensors")
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def entry(kind: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"a": entry("F32", [2], 0, 8)}, b"1234", "do not fill the file"),
        ({"a": entry("F32", [2], 0, 8)}, b"0" * 12, "do not fill the file"),
        ({"a": entry("F32", [10**12], 0, 8)}, b"0" * 8, "shape is not that of its values"),
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, b"0" * 12, "overlap or leave gaps"),
        ({"a": entry("F32", [1], 4, 8)}, b"0" * 8, "overlap or leave gaps"),
        ({"a": entry("F32", [-2], 0, 8)}, b"0" * 8, "Expected `int` >= 0"),
        ({"a": entry("F8_E4M3", [8], 0, 8)}, b"0" * 8, "numbers of the kind F8_E4M3"),
        ({"a": {"dtype": "F32"}}, b"", "missing required field"),
        ({"a": entry("F32", [0, 10**30], 0, 0)}, b"", "."),
        ([1, 2], b"", "no list of tensors"),
    ],
)
def test_a_damaged_or_hostile_file_is_one_line(header: object, data: bytes, said: str, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    with pytest.raises(ValueError, match=said):
        load_safetensors(path)


@pytest.mark.parametrize("content", [b"", b"12", (1 << 40).to_bytes(8, "little") + b"{}", b"\x02" + bytes(7) + b"{x"])
def test_a_file_whose_header_is_not_one_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"header is longer than the file|property name"):
        load_safetensors(tmp_path / "a.safetensors")
