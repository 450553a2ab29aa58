"""Devices and their precision."""

import pytest
import torch

from lmk_data.errors import UserError
from lmk_train.runtime.precision import Precision, resolve_device


def test_float32_is_not_rounded_to_tf32() -> None:
    """Whatever was chosen before, by a variable of the environment too."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    resolve_device("cpu")
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A Tesla T4 under a torch that was built for it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    return monkeypatch


def test_bfloat16_on_a_card_without_it_is_a_line_that_names_float16(card: pytest.MonkeyPatch) -> None:
    device = resolve_device("cuda")
    with pytest.raises(UserError, match=r"--amp bf16: Tesla T4 has compute capability 7\.5, .* give --amp fp16"):
        Precision.resolve("bf16", device)
    assert Precision.resolve("auto", device).dtype == torch.float16
    card.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert Precision.resolve("bf16", device).dtype == Precision.resolve("auto", device).dtype == torch.bfloat16
    assert Precision.resolve("bf16", torch.device("cpu")).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("code", "runs_on", "not_on"),
    [
        ("sm_75 sm_80 sm_86 sm_90", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0)], [(6, 1), (7, 0), (10, 0), (12, 0)]),
        ("sm_86 compute_86", [(8, 6), (8, 9), (9, 0), (12, 0)], [(8, 0)]),
        ("sm_90a", [(9, 0)], [(8, 9), (10, 0)]),
        ("sm_100f sm_120", [(10, 0), (10, 3), (12, 1)], [(9, 0), (11, 0)]),
        ("compute_90a", [(9, 0)], [(10, 0)]),
        ("", [(7, 0)], []),
    ],
)
def test_a_card_that_torch_has_no_code_for_is_a_line(
    card: pytest.MonkeyPatch, code: str, runs_on: list[tuple[int, int]], not_on: list[tuple[int, int]]
) -> None:
    """Instead of "no kernel image is available for execution on the device" at the first operation."""
    card.setattr(torch.cuda, "get_arch_list", code.split)
    for capability in runs_on:
        card.setattr(torch.cuda, "get_device_capability", lambda _, its=capability: its)
        assert resolve_device("auto") == torch.device("cuda", 0)
    for capability in not_on:
        card.setattr(torch.cuda, "get_device_capability", lambda _, its=capability: its)
        with pytest.raises(UserError, match=f"has code for {code} only; install a torch that has it, or give --device"):
            resolve_device("auto")


@pytest.mark.parametrize(("has_it", "dtype"), [(True, torch.bfloat16), (False, None)])
def test_an_older_torch_knows_bfloat16_of_the_cpu_too(
    monkeypatch: pytest.MonkeyPatch, has_it: bool, dtype: torch.dtype | None
) -> None:
    """torch 2.8 has no `torch.cpu.get_capabilities`."""
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_it)
    assert Precision.resolve("auto", torch.device("cpu")).dtype == dtype
