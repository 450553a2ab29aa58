"""Random numbers of a training: the generators of the host and of its device."""

import torch


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the host and of the device, as `torch.manual_seed` does.

    That one costs a hundred times as much in each step: it looks for every kind of device, and without CUDA keeps the
    stack of its caller.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
