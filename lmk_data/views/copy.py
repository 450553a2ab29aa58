"""A subset as a dataset of its own: new shards, labels and counts around the same JPEG bytes, without re-encoding."""

import zlib
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lmk_data.build.output import begin, claim, holding
from lmk_data.build.plan import default_samples_per_shard, plan_fingerprint, shard_sizes
from lmk_data.build.publish import Publication, publish
from lmk_data.build.receipts import PlannedShard, Work, built_shards, finish_shards
from lmk_data.build.shard import PLAN_TABLE, Receipt, write_shard
from lmk_data.dataset.format import Manifest, dropped_classes_schema
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.errors import DatasetError
from lmk_data.options import Selection
from lmk_data.system.engine import local_engine
from lmk_data.system.readahead import read_ahead
from lmk_data.system.storage import Folder, open_folder
from lmk_data.views.selection import Subset, select, subset_counts
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
    """Write a dataset of its own: the same JPEG bytes in shards of their own, with new labels; goes on if interrupted.

    Raises UserError for a selection that makes no sense or an `out` that holds something else, StorageError when
    the storage fails.
    """
    folder = open_folder(out)
    check_apart(folder, dataset)
    with holding(folder):
        subset = select(dataset, selection, by_size=True, workers=workers, quiet=quiet)
        num_samples = sum(table.num_rows for table in subset.rows.values())
        base = dataset.manifest
        subset_of = {
            "content_sha256": dataset.shards_content_sha256,
            "selection": subset.steps,
            "removed": subset.removed,
        }
        inputs: dict[str, Any] = {
            "source": {**base["source"], "subset_of": subset_of},
            "plan": {**base["plan"], "samples_per_shard": default_samples_per_shard(num_samples)},
            "recipe": base["recipe"],
        }
        fingerprint = plan_fingerprint(**inputs)
        finished = claim(folder, {**inputs, "fingerprint": fingerprint}, overwrite=overwrite)
        if finished is not None:
            return finished
        begin(folder, {**inputs, "fingerprint": fingerprint}, overwrite=overwrite)
        shards = _write_copy_plan(folder, subset, inputs["plan"]["samples_per_shard"])
        work = Work(folder, fingerprint, shards, local_engine(workers), "copying", quiet)
        receipts, _ = finish_shards(
            work, _copy_shard, lambda shard: _CopyTask(folder, dataset.shards_folder, shard, fingerprint)
        )
        landmark_id = pa.int64() if pd.api.types.is_integer_dtype(subset.classes["landmark_id"]) else pa.string()
        counts = subset_counts(subset)
        publication = Publication(
            fingerprint=fingerprint,
            title=base["title"],
            license=base["license"],
            counts={name: counts[name] for name in ("listed", "below_min_samples", "outside_top")},
            classes=subset.classes,
            dropped=dropped_classes_schema(landmark_id).empty_table().to_pandas(),
            **inputs,
        )
        return publish(folder, publication, built_shards(folder, fingerprint, receipts))


@dataclass(frozen=True, slots=True)
class _CopyTask:
    out: Folder
    base: Folder
    shard: PlannedShard
    fingerprint: str


def _copy_shard(task: _CopyTask) -> Receipt:
    """Write one shard around JPEG bytes of the base; a task of its own."""
    with task.out.open(PLAN_TABLE) as file:
        rows = pq.ParquetFile(file).read_row_group(task.shard.row_group).to_pylist()

    def read(row: dict[str, Any]) -> bytes:
        data = task.base.read_range(row["shard"], row["jpg_offset"], row["jpg_size"])
        if len(data) != row["jpg_size"] or zlib.crc32(data) != row["jpg_crc32"]:
            where = f"{task.base.location(row['shard'])}: sample {row['key']} at {row['jpg_offset']:,}"
            raise DatasetError(f"{where} is damaged; run `lmk-shard verify` on the dataset")
        return data

    pictures = read_ahead(read, [dict(row) for row in rows])
    written = [{name: value for name, value in row.items() if name != "shard"} for row in rows]
    return write_shard(task.out, task.shard.split, task.shard.number, task.fingerprint, written, pictures)


def _write_copy_plan(out: Folder, subset: Subset, samples_per_shard: int) -> list[PlannedShard]:
    """Write what each shard of a copy will hold, one row group a shard; returns the shards."""
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
