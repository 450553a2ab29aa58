"""Checkpoints: `last` holds all that resuming needs, `best` the best weights; plain tensors and values only."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch

from lmk_data.dataset import recipe_of
from lmk_data.errors import StorageError, UserError, one_line
from lmk_data.system.files import atomic_file, make_folder, sync_folder, unfinished_path
from lmk_train.config.training import ResolvedConfig
from lmk_train.runs.folder import RunFolder
from lmk_train.runs.plain_file import checked
from lmk_train.runs.tensor_file import load_tensors, require_tensors
from lmk_train.runtime.oom import is_out_of_memory

FORMAT, VERSION = "lmk-checkpoint", 2
LAST, BEST = "last", "best"
_SIZES, _QUALITIES = range(8, 4097), range(1, 101)
_MAX_PIXELS = 100_000_000  # that a recipe may let a picture have

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class _Trained(msgspec.Struct):
    """What every checkpoint says beside its weights."""

    config: dict[str, Any]
    classes: Annotated[list[int | str], msgspec.Meta(min_length=1)]
    names: list[str | None]
    train_counts: list[Count]
    content_sha256: Sha256
    recipe: dict[str, Any]


class _Progress(msgspec.Struct, forbid_unknown_fields=True):
    step: Count
    best_metric: float
    best_epoch: Count
    seconds: float


class _Sums(msgspec.Struct):
    loss: float
    correct: float
    num_samples: Count
    skipped: Count


class _Resumable(msgspec.Struct):
    """What `last` says besides."""

    progress: _Progress
    epoch_sums: _Sums
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    buffers: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    weights_sha256: Sha256 | None = None


def save_checkpoint(run: Path, name: str, state: dict[str, Any]) -> None:
    """Write the checkpoint `best` or `last` of a run; the earlier one stays whole until this one is.

    Raises StorageError if it cannot be written.
    """
    path = RunFolder(run).checkpoint(name)
    try:
        make_folder(path.parent)
        with atomic_file(path) as file:
            torch.save({"format": FORMAT, "version": VERSION, **state}, file)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        if is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        raise StorageError(f"{path}: cannot be saved ({reason}); the earlier checkpoint is whole") from error


@contextmanager
def earlier_kept(run: Path) -> Iterator[Callable[[], None]]:
    """Keep the checkpoint `last` beside the next one until the block ends; yield a function that brings it back.

    If there was none, that function removes the next one.
    """
    path = RunFolder(run).checkpoint(LAST)
    kept = unfinished_path(path)  # removed by the next training if this one is killed
    with suppress(FileNotFoundError):
        try:
            os.link(path, kept)
        except FileNotFoundError:
            raise
        except OSError:  # a file system without hard links
            shutil.copyfile(path, kept)

    def bring_back() -> None:
        if kept.exists():
            os.replace(kept, path)
        else:
            path.unlink(missing_ok=True)
        sync_folder(path.parent)

    try:
        yield bring_back
    finally:
        kept.unlink(missing_ok=True)


def load_checkpoint(run: Path, name: str) -> dict[str, Any]:
    """Return the checkpoint `best` or `last` of a run: plain tensors and values; nothing in the file is executed.

    Every field has been checked, except that the weights fit the configuration: `restore_weights` does that.

    Raises UserError if it is absent, damaged, or not a checkpoint of lmk-train.
    """
    path = RunFolder(run).checkpoint(name)
    try:
        state = load_tensors(path, only_zip=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; is {run} the folder of a run?") from None
    except ValueError as error:
        raise UserError(f"{path}: not a readable checkpoint ({error}); copy it again from a good copy") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT or state.get("version") != VERSION:
        raise UserError(f"{path}: not a checkpoint of this version of lmk; use the version that trained it")
    try:
        _check_state(state, resumable=name == LAST)
    except (ValueError, UserError) as error:
        raise UserError(f"{path}: damaged checkpoint ({one_line(error)}); copy it again from a good copy") from None
    return state


def weights_to_evaluate(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the state dict of a checkpoint's model: the averaged weights if the training averages them."""
    averaged: dict[str, torch.Tensor] | None = state.get("averaged")
    if averaged is None:
        return dict(state["model"])
    prefix = "module."
    return {name.removeprefix(prefix): value for name, value in averaged.items() if name.startswith(prefix)}


def _check_state(state: dict[str, Any], *, resumable: bool) -> None:
    """Raise ValueError or UserError unless every field of a checkpoint is what `save_checkpoint` was given."""
    trained = checked(state, _Trained)
    ResolvedConfig.from_json(trained.config)
    recipe = recipe_of(trained.recipe)
    if recipe.size not in _SIZES or recipe.quality not in _QUALITIES or not 0 < recipe.max_pixels <= _MAX_PIXELS:
        raise ValueError("recipe: not one that lmk-shard build has")
    if not len(trained.classes) == len(trained.names) == len(trained.train_counts):
        raise ValueError("classes, names and train_counts differ in length")
    if len({*map(type, trained.classes)}) > 1 or any(isinstance(i, int) and abs(i) >= 2**63 for i in trained.classes):
        raise ValueError("classes: neither all text nor all integers of 64 bits")
    "".join([name for name in (*trained.classes, *trained.names) if isinstance(name, str)]).encode()
    if len(set(map(str, trained.classes))) != len(trained.classes):
        raise ValueError("classes: one is repeated")
    require_tensors(state.get("model"), "model")
    if state.get("averaged") is not None:
        require_tensors(state["averaged"], "averaged")
    if resumable:
        for buffers in checked(state, _Resumable).buffers:
            require_tensors(buffers, "buffers")
