"""Compiled modules: how they are compiled for a device, and what that asks of those who call them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lmk_data.errors import TrainingError
from lmk_train.runtime.oom import is_out_of_memory

_COMPILER = ("torch._dynamo", "torch._inductor")  # importing them for their errors takes seconds


def compile_in_place(module: nn.Module, device: torch.device) -> None:
    """Let a module compile itself when it is first called; its parameters, buffers and their names stay.

    Each shape of its input is compiled by itself. On CUDA its kernels are then replayed as one graph, which saves their
    launches; the graph owns the memory of what it returns, until the module is called again.
    """
    if device.type == "cuda":
        module.compile(dynamic=False, mode="reduce-overhead")
    else:
        module.compile(dynamic=False)


def is_compiled(module: nn.Module) -> bool:
    """Return whether `compile_in_place` was called with a module."""
    return module._compiled_call_impl is not None


def begin_call(module: nn.Module) -> None:
    """Say, before a module is called, that nobody needs what it returned earlier: its CUDA graph overwrites that."""
    if is_compiled(module) and torch.cuda.is_available():
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def clear_gradients(module: nn.Module) -> None:
    """Set the gradients of a compiled module to zero, in memory of their own, before several backward passes add up.

    A gradient that a CUDA graph returned would be overwritten by its next replay.
    """
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if gradients := [parameter.grad for parameter in module.parameters() if parameter.grad is not None]:
        torch._foreach_zero_(gradients)


@contextmanager
def compiler_failures() -> Iterator[None]:
    """Turn what torch's compiler raises into a TrainingError of one line: most often there is no C compiler."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(_COMPILER) or is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split("\n\n", 1)[0].split())
        raise TrainingError(
            f"--compile: torch could not compile the backbone ({reason}); it needs a C compiler, and Triton on CUDA: "
            "install them, or leave --compile out, with --resume if the run has a checkpoint"
        ) from error
