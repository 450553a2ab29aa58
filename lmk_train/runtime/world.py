"""The processes that train together: how many, which of them this is, and what they tell each other."""

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from lmk_data.errors import TrainingError, UserError

Rows = np.ndarray[tuple[int], np.dtype[np.int64]]
Value = TypeVar("Value")
# gloo has no exception of its own; this is how it begins when a connection breaks.
_LOST = re.compile(r"gloo|Connection (closed|reset) by|connection (closed|reset)")


@dataclass(frozen=True)
class World:
    """One of `size` processes that torchrun started; alone, every method is a no-op."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def first_only(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """`say` in the first process, nothing in the others."""
        return say if self.is_first else lambda _: None

    def share(self, picks: Rows) -> Rows:
        """This process's contiguous part of a global batch."""
        return share(picks, self.rank, self.size)

    def largest_share(self, batch_size: int) -> int:
        """Samples of a global batch that the process with most of them has."""
        return -(-batch_size // self.size)

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model whose gradients are averaged over the processes."""
        if self.size == 1:
            return model
        devices = [device.index or 0] if device.type == "cuda" else None
        with warnings.catch_warnings():
            # What is to replace it copies the first process's running statistics to all others here.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            # Without looking for unused parameters, the first step would rearrange the buckets: sums of three and more
            # processes would then round otherwise after a resume, which begins with the first arrangement again.
            return DistributedDataParallel(
                model, device_ids=devices, broadcast_buffers=False, find_unused_parameters=True
            )

    def add(self, *values: float) -> list[float]:
        """Sums over the processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(total)
        return [float(value) for value in total]

    def most(self, value: int) -> int:
        """The largest value of any process."""
        if self.size == 1:
            return value
        largest = torch.tensor(value)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return int(largest)

    def least(self, value: int) -> int:
        """The smallest value of any process."""
        return -self.most(-value)

    def gather(self, value: Value) -> list[Value]:
        """Every process's value, in order of rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def average_buffers(self, model: nn.Module) -> None:
        """Make the running statistics of batch normalisation those of all processes together."""
        if self.size == 1:
            return
        for buffer in model.buffers():
            if buffer.is_floating_point():
                mean = buffer.detach().to("cpu", torch.float64)
                distributed.all_reduce(mean)
                buffer.copy_(mean / self.size)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            distributed.barrier()


ALONE = World()


def local_rank() -> int:
    """This process's number on its machine, which is the number of its CUDA device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def under_torchrun() -> bool:
    """Whether torchrun, or what sets its variables, started this process."""
    return "WORLD_SIZE" in os.environ


@contextmanager
def joined_world(device: torch.device) -> Iterator[World]:
    """The processes that torchrun started, or this one alone. Gradients go by NCCL on CUDA, all else by gloo.

    Raises UserError where torchrun's variables do not make sense.
    """
    if not under_torchrun():
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        distributed.init_process_group(backend)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the processes of torchrun did not find each other: {error}") from error
    try:
        yield World(distributed.get_rank(), distributed.get_world_size())
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and not _LOST.search(str(error)):
            raise
        raise TrainingError(
            "another process of the training ended or cannot be reached; what it said tells why. "
            "Start them all again with --resume to go on from the last checkpoint"
        ) from error
    finally:
        distributed.destroy_process_group()


def share(picks: Rows, part: int, parts: int) -> Rows:
    """Part `part` of `parts` near-equal contiguous parts: a rank's of a global batch, a micro-batch of a rank's."""
    return picks[len(picks) * part // parts : len(picks) * (part + 1) // parts]
