"""Measure a dataset of 1.49 million images: plan, open, view and report, in seconds and megabytes.

    python -m pipelines.bench.full_scale LABELS [--out DIR] [--near 0.04]

LABELS is a table of the size of GLR2020. The dataset is published from a real plan with made-up images. Each shard
holds a few images that all of its samples share; the rest of the file is a hole. Everything except the pixels is as in
the real dataset. 1 % of the samples have the source of another sample. A share `--near` of the samples have a hash up
to 3 bits from that of another sample; half of these also have its image, so that as many pairs are confirmed as
rejected.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image

from lmk_data.build.output import writing
from lmk_data.build.plan import Plan, make_plan, rule_json
from lmk_data.build.publish import BuiltShard, Publication, write_tables
from lmk_data.dataset.format import SPLITS, PlanEntry, SourceEntry, receipt_schema, recipe_json
from lmk_data.dataset.manifest import Provenance
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.mark import Mark
from lmk_data.options import PlanRule, Recipe
from lmk_data.resize import encoder
from lmk_data.sources.labels import read_labels
from lmk_data.system.storage import open_folder
from lmk_data.views.marks import marks_csv

_SAMPLE_BYTES = 20 << 10  # average size of a sample with its headers
_PICTURES = 16  # different images in a shard
_EXACT = 0.01
_MARKS = 10_000


def make_dataset(
    labels_path: str, out: Path, near: float, rule: PlanRule | None = None, recipe: Recipe | None = None
) -> None:
    """Publish a dataset of the size of the label table, with shards that are mostly holes."""
    labels, recipe = read_labels(labels_path), recipe or Recipe()
    plan = make_plan(labels.frame, rule or PlanRule())
    provenance = _provenance(plan, labels.source, recipe)
    publication = Publication(provenance, plan.counts, plan.classes, plan.dropped)
    with writing(open_folder(out), overwrite=True) as output:
        output.begin(provenance)
        shards = [shard for split in SPLITS for shard in _write_shards(plan, split, out, near, recipe.size)]
        output.publish(write_tables(output.folder, publication, shards))


def _write_shards(plan: Plan, split: str, out: Path, near: float, size: int) -> Iterator[BuiltShard]:
    """Write the shards of a split: a few pictures each, then a hole of the right size."""
    rows = plan.samples[plan.samples["split"] == split]
    for number in range(plan.num_shards[split]):
        pictures = _pictures(SPLITS.index(split), number, size)
        shard = _made_up_shard(rows[rows["shard"] == number], split, number, pictures, near)
        path = out / shard.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"".join(pictures))
            file.truncate(shard.num_bytes)
        yield shard


def _provenance(plan: Plan, source: dict[str, object], recipe: Recipe) -> Provenance:
    return Provenance(
        fingerprint="0" * 64,
        source=cast(SourceEntry, source),
        plan=cast(PlanEntry, rule_json(plan.rule, len(plan.samples))),
        recipe=recipe_json(recipe, encoder()),
        title="Made up, at full scale",
        license="",
    )


def _pictures(split: int, number: int, size: int) -> list[bytes]:
    rng = np.random.default_rng([split, number])
    pictures = []
    for _ in range(_PICTURES):
        coarse = Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))
        sink = io.BytesIO()
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(sink, "JPEG", quality=90)
        pictures.append(sink.getvalue())
    return pictures


def _made_up_shard(rows: pd.DataFrame, split: str, number: int, pictures: list[bytes], near: float) -> BuiltShard:
    frame = rows.reset_index(drop=True)
    rng = np.random.default_rng([SPLITS.index(split), number])
    sizes = np.array([len(picture) for picture in pictures])
    chosen = rng.integers(0, _PICTURES, len(frame))
    hashes = rng.integers(0, 2**64, len(frame), dtype=np.uint64)
    sources = np.array([rng.bytes(32) for _ in range(len(frame))], dtype=object)
    copied = rng.permutation(len(frame))[: round(len(frame) * (_EXACT + near)) * 2].reshape(2, -1)
    first, second = copied[:, : round(len(frame) * _EXACT)]
    sources[second], hashes[second], chosen[second] = sources[first], hashes[first], chosen[first]
    first, second = copied[:, round(len(frame) * _EXACT) :]
    flips = np.uint64(1) << rng.integers(0, 64, (3, len(first))).astype(np.uint64)
    hashes[second] = hashes[first] ^ np.bitwise_or.reduce(flips)
    chosen[second[::2]] = chosen[first[::2]]
    width = rng.integers(200, 1600, len(frame)).astype(np.int32)
    columns = {
        "key": frame["key"],
        "label": frame["label"],
        "landmark_id": frame["landmark_id"],
        "position": np.arange(len(frame), dtype=np.int32),
        "jpg_offset": (sizes.cumsum() - sizes)[chosen],
        "jpg_size": sizes[chosen],
        "jpg_crc32": np.array([zlib.crc32(picture) for picture in pictures], dtype=np.uint32)[chosen],
        "original_width": width,
        "original_height": (width * rng.choice([0.67, 0.75, 1.0, 1.33], len(frame))).astype(np.int32),
        "original_bytes": rng.integers(20_000, 400_000, len(frame)).astype(np.int32),
        "source": frame["key"].map(lambda key: f"{key[0]}/{key[1]}/{key[2]}/{key}.jpg"),
        "source_sha256": sources,
        "dhash": hashes,
        "reason": pa.nulls(len(frame), pa.string()),
        "detail": pa.nulls(len(frame), pa.string()),
    }
    schema = receipt_schema(pa.int64())
    table = pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names})
    num_bytes = _SAMPLE_BYTES * len(frame)
    name = f"shards/{split}/{split}-{number:06d}.tar"
    return BuiltShard(name, split, len(frame), num_bytes, f"{number:064x}", lambda: table)


def measure(what: str, words: list[str]) -> dict[str, object]:
    """Run a command and return its seconds and peak MB."""
    started = time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{what}: exit status {status}")
    seconds, cpu_seconds = time.monotonic() - started, usage.ru_utime + usage.ru_stime
    return {
        "what": what,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "peak_mb": usage.ru_maxrss // 1024,
    }


def write_marks(dataset_path: Path, out: Path) -> None:
    """Write marks of 10,000 samples of all splits, seeded: half of them are excluded, half given another class."""
    rng = np.random.default_rng(0)
    with ShardedDataset.open(dataset_path) as dataset:
        keys = np.concatenate([dataset.index(split, ["key"])["key"].to_numpy() for split in dataset.splits])
        ids = [str(landmark_id) for landmark_id in dataset.classes["landmark_id"]]
    marked = rng.choice(len(keys), _MARKS, replace=False)
    marks = {
        str(keys[row]): Mark("relabel", ids[rng.integers(len(ids))]) if number % 2 else Mark("exclude")
        for number, row in enumerate(marked.tolist())
    }
    out.write_bytes(marks_csv(marks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels")
    parser.add_argument("--out", type=Path, default=Path("full-scale"))
    parser.add_argument("--near", type=float, default=0.04, help="share of samples whose hash is near another one")
    parser.add_argument("--only-make", action="store_true", help="make the dataset only, without measuring")
    arguments = parser.parse_args()
    dataset, marks_path = arguments.out / "shards", arguments.out / "marks.csv"
    is_made = (dataset / "dataset.json").exists()
    if arguments.only_make:
        if not is_made:
            make_dataset(arguments.labels, dataset, arguments.near)
        write_marks(dataset, marks_path)
        return
    if not is_made or not marks_path.exists():  # in its own process: the peak of a child starts at that of its parent
        subprocess.run([*sys.orig_argv, "--only-make"], check=True)
    command = [sys.executable, "-m", "lmk_data.cli"]
    opening = "from lmk_data.dataset import ShardedDataset; dataset = ShardedDataset.open({!r})"
    reading = f"{opening}; [dataset.index_table(split) for split in dataset.splits]"
    view, clean = str(arguments.out / "top20"), str(arguments.out / "clean")
    marked, marks = str(arguments.out / "marked"), ["--marks", str(marks_path), "--overwrite"]
    drop = ["--drop-duplicates", "near", "--overwrite", "--quiet"]
    rows = [
        measure("import the reader", [sys.executable, "-c", "import lmk_data.dataset.reader"]),
        measure("open the dataset", [sys.executable, "-c", opening.format(str(dataset))]),
        measure("read its three indexes, checked", [sys.executable, "-c", reading.format(str(dataset))]),
        measure("plan (`build --dry-run`)", [*command, "build", "--labels", arguments.labels, "--dry-run"]),
        measure(
            "view of the 20 largest classes",
            [*command, "subset", str(dataset), "--out", view, "--top", "20", "--overwrite"],
        ),
        measure("open the view", [sys.executable, "-c", opening.format(view)]),
        measure("view of 10,000 marks", [*command, "subset", str(dataset), "--out", marked, *marks]),
        measure("view without near duplicates", [*command, "subset", str(dataset), "--out", clean, *drop]),
        measure("report", [*command, "report", str(dataset), "--out", str(arguments.out / "report")]),
    ]
    print("| step | seconds | peak MB |\n|---|---:|---:|")
    for row in rows:
        print(f"| {row['what']} | {row['seconds']} | {row['peak_mb']} |")
    html = arguments.out / "report" / "index.html"
    print(f"\nThe report has {html.stat().st_size / 1e6:.1f} MB.")
    (arguments.out / "full_scale.json").write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
