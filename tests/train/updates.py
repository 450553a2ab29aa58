"""What happens right after an update of the weights, by PyTorch's own hook on optimisers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


@contextmanager
def after_each_update(act: Callable[[int, Optimizer], None]) -> Iterator[None]:
    """Call `act` after each update with its number, from 1, and the optimiser."""
    numbers = count(1)

    def hook(optimizer: Optimizer, *_: Any) -> None:
        act(next(numbers), optimizer)

    handle = register_optimizer_step_post_hook(hook)
    try:
        yield
    finally:
        handle.remove()
