"""A copy: a subset as an independent dataset, with new shards and labels around the same JPEG bytes."""

import zlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmk_data.build.output import writing
from lmk_data.build.plan import default_samples_per_shard, plan_fingerprint, shard_sizes
from lmk_data.build.publish import Publication, landmark_id_type, write_tables
from lmk_data.build.receipts import PlannedShard, Work, built_shards, finish_shards
from lmk_data.build.shard import Receipt, ShardPlace, write_shard
from lmk_data.dataset.format import Manifest, dropped_classes_schema
from lmk_data.dataset.manifest import Provenance
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.errors import DatasetError
from lmk_data.options import Selection
from lmk_data.system.engine import local_engine
from lmk_data.system.readahead import read_ahead
from lmk_data.system.storage import PLAN_TABLE, Folder, open_folder, retrying
from lmk_data.views.selection import Subset, select
from lmk_data.views.view import check_apart


def write_copy(
    dataset: ShardedDataset,
    selection: Selection,
    out: str,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Manifest:
    """Write an independent dataset: the same JPEG bytes in new shards, with new labels. The same call resumes.

    Raises UserError for a selection that leaves nothing or an `out` that holds something else, StorageError when the
    storage fails.

    Args:
        dataset: the dataset or view to select from.
        selection: which classes and images to keep.
        out: the folder or URL to write to.
        workers: processes that write shards and threads that compare pictures; by default one per core.
        overwrite: replace whatever build `out` holds.
        quiet: show no progress.
    """
    folder = open_folder(out)
    check_apart(folder, dataset)
    with writing(folder, overwrite=overwrite) as output:
        subset = select(dataset, selection, by_size=True, workers=workers, quiet=quiet)
        provenance = _provenance(dataset, subset)
        finished = output.finished(provenance)
        if finished is not None:
            return finished
        output.begin(provenance)
        fingerprint = provenance.fingerprint
        shards = _write_plan(folder, subset, provenance.plan["samples_per_shard"])
        dropped = dropped_classes_schema(landmark_id_type(subset.classes)).empty_table().to_pandas()
        counts = {"listed": int(subset.classes["listed"].sum()), "below_min_samples": 0, "outside_top": 0}
        publication = Publication(provenance, counts, subset.classes, dropped)
        del subset  # its rows are in the table of the plan
        pa.default_memory_pool().release_unused()
        work = Work(folder, fingerprint, shards, local_engine(workers), "copying", quiet)

        def task_of(shard: PlannedShard) -> _CopyTask:
            place = ShardPlace(folder, shard.split, shard.number, fingerprint)
            return _CopyTask(place, dataset.shards_folder, shard.row_group)

        receipts, _ = finish_shards(work, _copy_shard, task_of)
        return output.publish(write_tables(folder, publication, built_shards(folder, fingerprint, receipts)))


def _provenance(dataset: ShardedDataset, subset: Subset) -> Provenance:
    """Return what the manifest of a copy states of its base and of the selection."""
    base = dataset.manifest
    subset_of = {"content_sha256": dataset.shards_content_sha256, **subset.origin()}
    num_samples = sum(table.num_rows for table in subset.rows.values())
    inputs: dict[str, Any] = {
        "source": {**base["source"], "subset_of": subset_of},
        "plan": {**base["plan"], "samples_per_shard": default_samples_per_shard(num_samples)},
        "recipe": base["recipe"],
    }
    return Provenance(plan_fingerprint(**inputs), **inputs, title=base["title"], license=base["license"])


@dataclass(frozen=True, slots=True)
class _CopyTask:
    """A shard to copy: where it goes, the folder of the base, and the row group of the plan's table."""

    place: ShardPlace
    base: Folder
    row_group: int


def _copy_shard(task: _CopyTask) -> Receipt:
    """Write a shard around JPEG bytes of the base.

    Raises DatasetError for a picture whose checksum differs from the index, StorageError if it cannot be read.
    """
    with task.place.out.open(PLAN_TABLE) as file:
        rows = pq.ParquetFile(file).read_row_group(task.row_group, use_threads=False).to_pylist()

    def read(row: dict[str, Any], max_bytes: int) -> bytes | None:
        if row["jpg_size"] > max_bytes:
            return None
        location = task.base.location(row["shard"])
        place = row["shard"], row["jpg_offset"], row["jpg_size"]
        data = retrying(partial(task.base.read_range, *place), location)
        if len(data) != row["jpg_size"] or zlib.crc32(data) != row["jpg_crc32"]:
            where = f"sample {row['key']} at {row['jpg_offset']:,}"
            raise DatasetError(f"{location}: {where} is damaged; run `lmk-shard verify` on the dataset")
        return data

    planned = [{name: value for name, value in row.items() if name != "shard"} for row in rows]
    return write_shard(task.place, planned, read_ahead(read, rows))


def _write_plan(out: Folder, subset: Subset, samples_per_shard: int) -> list[PlannedShard]:
    """Write what each shard of a copy will hold, one row group per shard; return the shards."""
    shards: list[PlannedShard] = []
    schema = next(iter(subset.rows.values())).schema
    schema = schema.set(schema.get_field_index("shard"), pa.field("shard", pa.string())).remove_metadata()
    with out.atomic(PLAN_TABLE) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for split, rows in subset.rows.items():
            table, start = rows.cast(schema), 0
            for number, size in enumerate(shard_sizes(table.num_rows, samples_per_shard)):
                writer.write_table(table.slice(start, size), row_group_size=size)
                shards.append(PlannedShard(split, number, size, len(shards)))
                start += size
    return shards
