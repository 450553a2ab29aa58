"""Finish the shards of a plan: keep those that have a receipt, make the others in any order on any engine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import pyarrow as pa

from lmk_data.build.publish import BuiltShard
from lmk_data.build.shard import Receipt, receipt_name, receipt_of
from lmk_data.dataset.format import SPLITS, receipt_schema
from lmk_data.dataset.tables import MAX_BYTES, MAX_ROWS
from lmk_data.errors import DatasetError, DeadWorkerError
from lmk_data.system.arrow import arrow_reader
from lmk_data.system.engine import Engine
from lmk_data.system.parquet import TableLimits, open_parquet, read_parquet
from lmk_data.system.storage import Folder
from lmk_data.system.terminal import progress_bar

_RECEIPT = TableLimits(MAX_ROWS, MAX_BYTES)
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


def read_receipt(out: Folder, split: str, number: int, fingerprint: str, sizes: Mapping[str, int]) -> Receipt | None:
    """Return the receipt of a shard that this build finished, or None if the shard has to be built.

    A receipt does not count if it is of another build or version, cannot be read, or its tar is missing or short.

    Args:
        out: the dataset's folder.
        split: the split of the shard.
        number: the number of the shard in its split.
        fingerprint: the fingerprint of the build.
        sizes: the size in bytes of each shard that exists, by name.
    """
    try:
        file = open_parquet(arrow_reader(out.read(receipt_name(split, number))), ["reason"], _RECEIPT)
        if file.schema_arrow.names != receipt_schema(pa.int64()).names:
            return None
        table = file.read(columns=["reason"])
        stated = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if stated.get("fingerprint") != fingerprint:
            return None
        receipt = receipt_of(split, number, table["reason"].to_pylist(), stated)
    except (FileNotFoundError, pa.ArrowException, ValueError, KeyError):
        return None
    if receipt.num_samples and sizes.get(receipt.name) != receipt.num_bytes:
        return None
    return receipt


def read_receipt_table(out: Folder, split: str, number: int, fingerprint: str) -> pa.Table:
    """Return the rows of a receipt of this build: the shard's planned images, written or rejected."""
    name = receipt_name(split, number)
    try:
        table = read_parquet(arrow_reader(out.read(name)), None, _RECEIPT)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DatasetError(
            f"{out.location(name)}: not a readable receipt; delete it and run the build again"
        ) from error
    if (table.schema.metadata or {}).get(b"fingerprint") != fingerprint.encode():
        raise DatasetError(f"{out.location(name)}: the receipt of another build; run the build again")
    return table.replace_schema_metadata(None)
