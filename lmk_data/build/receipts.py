"""Finish the shards of a plan: keep those that have a receipt, make the others in any order on any engine."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from lmk_data.build.publish import BuiltShard
from lmk_data.build.shard import Receipt, read_receipt, read_receipt_table
from lmk_data.dataset.format import SPLITS
from lmk_data.errors import DeadWorkerError
from lmk_data.system.engine import Engine
from lmk_data.system.storage import Folder
from lmk_data.system.terminal import progress_bar

Task = TypeVar("Task")


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """A shard of a plan; its rows are row group `row_group` of the plan's table."""

    split: str
    number: int
    num_samples: int
    row_group: int


def _give_up(died: DeadWorkerError) -> None:
    raise died


@dataclass(frozen=True)
class Work:
    """The shards to finish, where they go, the engine that makes them, and how progress is shown.

    With `retry_rejected`, shards with rejected images are made again. `after_death` is called when a worker died; if it
    returns, the shards that are still missing are tried again.
    """

    out: Folder
    fingerprint: str
    shards: list[PlannedShard]
    engine: Engine
    description: str
    quiet: bool
    retry_rejected: bool = False
    after_death: Callable[[DeadWorkerError], None] = _give_up


def finish_shards(
    work: Work,
    make_shard: Callable[[Task], Receipt],
    task_of: Callable[[PlannedShard], Task],
    watch: Callable[[Receipt], None] = lambda _: None,
) -> tuple[list[Receipt], int]:
    """Return the receipts of all shards in order of the plan, and the number of images processed by this call.

    `task_of` gives the task of a shard and `make_shard` runs it. `watch` is given every receipt, those of earlier runs
    first; if it raises, the work ends and the receipts are kept.
    """
    out = work.out
    sizes = {name: size for split in SPLITS for name, size in out.sizes(f"shards/{split}").items()}
    receipts: dict[tuple[str, int], Receipt] = {}
    missing: list[PlannedShard] = []
    for shard in work.shards:
        receipt = read_receipt(out, shard.split, shard.number, work.fingerprint, sizes)
        if receipt is None or (work.retry_rejected and receipt.reasons):
            missing.append(shard)
        else:
            receipts[shard.split, shard.number] = receipt
            watch(receipt)
    missing.sort(key=lambda shard: -shard.num_samples)
    total, todo = sum(shard.num_samples for shard in work.shards), sum(shard.num_samples for shard in missing)
    with progress_bar(total, work.description, "images", quiet=work.quiet, initial=total - todo) as bar:
        while missing:
            try:
                for receipt in work.engine.run(make_shard, [task_of(shard) for shard in missing]):
                    receipts[receipt.split, receipt.number] = receipt
                    bar.update(receipt.num_planned)
                    watch(receipt)
            except DeadWorkerError as died:
                work.after_death(died)
            missing = [shard for shard in missing if (shard.split, shard.number) not in receipts]
    return [receipts[shard.split, shard.number] for shard in work.shards], todo


def built_shards(out: Folder, fingerprint: str, receipts: list[Receipt]) -> list[BuiltShard]:
    """Return what publishing needs of each finished shard; its rows are read when they are needed."""
    return [
        BuiltShard(
            r.name,
            r.split,
            r.num_samples,
            r.num_bytes,
            r.sha256,
            partial(read_receipt_table, out, r.split, r.number, fingerprint),
        )
        for r in receipts
    ]
