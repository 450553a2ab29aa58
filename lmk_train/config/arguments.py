"""The arguments that several commands take: precision, device, threads, dataset, cache."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lmk_train.config.option import Limits, OptionInfo, check_limits

OF_COMMAND = OptionInfo(decides_training=False, may_change_on_resume=True)
"""Where and how a command runs, which does not change what is trained."""
Amp = Annotated[
    Literal["auto", "fp16", "bf16", "off"],
    tyro.conf.arg(
        help="Mixed precision: auto takes bfloat16 where the device has it, otherwise float16 on CUDA (training scales "
        "the gradients), otherwise float32."
    ),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], tyro.conf.arg(help="Device to compute on; auto takes CUDA if there is one.")
]
Workers = Annotated[
    int | None,
    tyro.conf.arg(
        metavar="N",
        help="Threads that read and decode, or processes where the device is CUDA; by default one per core (under "
        "torchrun, per core of the rank's share), at most 8; 64 where single pictures are fetched from a URL.",
    ),
    Limits(at_least=1),
]
Quiet = Annotated[bool, tyro.conf.arg(help="Print no progress and no summary.")]
DatasetLocation = Annotated[
    str, tyro.conf.arg(metavar="DATASET", help="Dataset that `lmk-shard build` wrote: a path or a URL.")
]
DatasetBase = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="DIR_OR_URL",
        help="Dataset that has the pictures of a view; by default the one that the view names. Needed if that is on "
        "another host, because nothing that only a file names is opened there.",
    ),
]


def default_cache_folder() -> Path | None:
    """Return `~/.cache/lmk`, or `lmk` below XDG_CACHE_HOME; None for a user without a home folder."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "lmk"
    try:
        return Path.home() / ".cache" / "lmk"
    except RuntimeError:  # no HOME, and a uid that is not in passwd, as in many containers
        return None


@dataclass(frozen=True)
class Cache:
    """A folder for fetched shards and how much may lie in it; shared by all datasets, processes and ranks.

    `folder` is None if none was named and there is no home folder for it: nothing can be fetched then.
    """

    folder: Path | None
    max_bytes: int


@dataclass(frozen=True)
class CacheOptions:
    """Cache for the shards of a dataset behind a URL."""

    cache: Annotated[Path | None, tyro.conf.arg(metavar="DIR"), OF_COMMAND] = None
    """Folder for fetched shards; by default ~/.cache/lmk."""
    cache_gb: Annotated[float, tyro.conf.arg(metavar="GB"), Limits(above=0, at_most=1_000_000_000), OF_COMMAND] = 100.0
    """Largest size of the cache; the least recently used shards are removed first."""

    def __post_init__(self) -> None:
        check_limits(self)

    def resolved(self) -> Cache:
        """Return the folder and its limit in bytes."""
        return Cache(self.cache or default_cache_folder(), int(self.cache_gb * 1e9))
