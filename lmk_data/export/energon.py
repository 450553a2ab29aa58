"""Megatron-Energon: `.nv-meta` and a `.tar.idx` beside each tar, in the format of `energon prepare`."""

import sqlite3
import struct

from lmk_data.dataset.format import write_file
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.dataset.tar import BLOCK_BYTES, end_of_members, sample_members
from lmk_data.export.rows import IndexByShard, Write, all_shards, dataset_uuid, json_file
from lmk_data.system.storage import LocalFolder


def energon(dataset: ShardedDataset) -> dict[str, Write]:
    """Return `.nv-meta` and a `.tar.idx` for each tar, in the format of `energon prepare`."""
    index = IndexByShard(dataset)

    def write_offsets(folder: LocalFolder, name: str) -> None:
        starts, end = [], 0
        for row in index.rows(name.removesuffix(".idx")):
            members = sample_members(row)
            starts.append(members[0].offset - BLOCK_BYTES)
            end = end_of_members(members)
        write_file(folder, name, struct.pack(f"<{len(starts) + 1}Q", *starts, end))

    sample = {"__module__": "megatron.energon", "__class__": "ImageClassificationSample"}
    counts = {shard["name"]: shard["num_samples"] for shard in all_shards(dataset)}
    shards = list(counts)
    splits = {split: [shard["name"] for shard in dataset.shards(split)] for split in dataset.splits}
    # JSON is valid YAML.
    return {
        **{f"{shard}.idx": write_offsets for shard in shards},
        ".nv-meta/.info.json": json_file({"energon_version": "7.4.1", "shard_counts": counts}),
        ".nv-meta/split.yaml": json_file({"split_parts": splits, "exclude": []}),
        ".nv-meta/dataset.yaml": json_file({"sample_type": sample, "field_map": {"image": "jpg", "label": "cls"}}),
        ".nv-meta/index.sqlite": lambda folder, name: _write_energon_index(shards, index, folder, name),
        ".nv-meta/index.uuid": lambda folder, name: write_file(folder, name, dataset_uuid(dataset).encode()),
    }


def _write_energon_index(shards: list[str], index: IndexByShard, folder: LocalFolder, name: str) -> None:
    """Write the SQLite tables by which Energon finds every sample and every part of one."""
    with folder.atomic(name) as file, sqlite3.connect(file.name) as database:
        database.executescript(
            """
            PRAGMA journal_mode = OFF;
            PRAGMA synchronous = OFF;
            CREATE TABLE samples (
                tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, sample_index INTEGER NOT NULL,
                byte_offset INTEGER, byte_size INTEGER);
            CREATE TABLE sample_parts (
                tar_file_id INTEGER, sample_index INTEGER, part_name TEXT,
                content_byte_offset INTEGER, content_byte_size INTEGER);
            """
        )
        for number, shard in enumerate(shards):
            samples, parts = [], []
            for position, row in enumerate(index.rows(shard)):
                members = sample_members(row)
                start = members[0].offset - BLOCK_BYTES
                samples.append((number, row["key"], position, start, end_of_members(members) - start))
                parts += [(number, position, m.extension, m.offset, m.num_bytes) for m in members]
            database.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", samples)
            database.executemany("INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", parts)
        database.executescript(
            """
            CREATE INDEX idx_samples_by_tar_and_idx ON samples (tar_file_id, sample_index);
            CREATE INDEX idx_sample_parts_seq ON sample_parts (tar_file_id, sample_index, content_byte_offset);
            CREATE INDEX idx_sample_parts_full
                ON sample_parts (tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size);
            """
        )
    database.close()
