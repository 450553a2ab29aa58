"""Flags of torch that decide which kernels a training runs: the one place that sets them."""

import torch


def set_backend_flags(deterministic: bool) -> None:
    """Let cuDNN measure its algorithms and take the fastest; with `deterministic`, fix its choice instead.

    cuDNN measures each shape once. A training has few: a micro-batch of one size, sometimes one picture more, and the
    batches of the evaluation. The fastest algorithm can differ from run to run, and with it the order of sums.
    """
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
