"""Flags of torch that decide which kernels a training runs: the one place that sets them."""

import os

import torch

_CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def set_backend_flags(deterministic: bool) -> None:
    """Let cuDNN measure its algorithms and take the fastest; with `deterministic`, allow none that varies instead.

    cuDNN measures each shape once. A training has few: a micro-batch of one size, sometimes one picture more, and the
    batches of the evaluation. The fastest algorithm can differ from run to run, and with it the order of sums; so can
    sums by atomic additions. Where an operation has no other way, torch raises an error with `deterministic`.
    """
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    if deterministic:
        os.environ[_CUBLAS_WORKSPACE] = ":4096:8"  # torch asks for it: one workspace for each stream
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # none is read
    if deterministic != torch.are_deterministic_algorithms_enabled():  # to set it imports the compiler
        torch.use_deterministic_algorithms(deterministic)
