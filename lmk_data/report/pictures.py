"""The images that the page of a dataset shows: of some classes, the odd ones, and groups of duplicates."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lmk_data.dataset.reader import ShardedDataset
from lmk_data.report.census import OddOnes
from lmk_data.report.page import PictureRow, thumbnail
from lmk_data.report.quality import DuplicateGroup
from lmk_data.system.terminal import counted

_MOSAIC_CLASSES, _MOSAIC_PICTURES = 4, 8


class _Sample(Protocol):
    """A sample by its split and its row in the index of the split."""

    @property
    def split(self) -> str: ...

    @property
    def row(self) -> int: ...


@dataclass(frozen=True, slots=True)
class _Stored:
    """A stored image: its place in a shard, and the size of its source in pixels."""

    shard: str
    offset: int
    num_bytes: int
    source_width: int
    source_height: int


def class_rows(dataset: ShardedDataset) -> list[PictureRow]:
    """Return images of up to 4 classes each of head, middle and tail; training images if there are any."""
    classes = dataset.classes
    labels = _mosaic_labels(len(classes))
    index = dataset.index(dataset.splits[0], ["label", "shard", "jpg_offset", "jpg_size"])
    index = index[index["label"].isin(labels)].groupby("label").head(_MOSAIC_PICTURES)
    listed, rows = classes["listed"].tolist(), []
    for i, label in enumerate(labels):
        part = ("head", "middle", "tail")[3 * i // len(labels)]
        samples = index[index["label"] == label]
        places = zip(samples["shard"], samples["jpg_offset"], samples["jpg_size"], strict=True)
        jpegs = [_thumbnail(dataset, str(shard), int(offset), int(size)) for shard, offset, size in places]
        name, landmark_id = str(classes["name"][label]), str(classes["landmark_id"][label])
        note = f"{part}: " + (f"{landmark_id}, " if name != landmark_id else "") + counted(listed[label], "image")
        rows.append(PictureRow(name, note, jpegs))
    return rows


def odd_rows(dataset: ShardedDataset, odd_ones: Sequence[OddOnes]) -> list[PictureRow]:
    """Return the smallest, the longest and the most uniform images, each with what its first one measures."""
    smallest, longest, most_uniform = stored = [_locate(dataset, odd.samples) for odd in odd_ones]
    sides = sorted((longest[0].source_width, longest[0].source_height))
    notes = (
        f"from {smallest[0].source_width}x{smallest[0].source_height} pixels up",
        f"{sides[1] / sides[0]:.3g} : 1 and less",
        f"stored in {most_uniform[0].num_bytes / 1e3:.3g} KB and more",
    )
    return [
        PictureRow(odd.what, note, _thumbnails(dataset, pictures))
        for odd, note, pictures in zip(odd_ones, notes, stored, strict=True)
    ]


def group_rows(dataset: ShardedDataset, groups: Sequence[DuplicateGroup]) -> list[PictureRow]:
    """Return the images of groups of duplicates, each with the names of its classes and its splits."""
    names = dataset.classes["name"]
    stored = iter(_locate(dataset, [sample for group in groups for sample in group.samples]))
    rows = []
    for group in groups:
        jpegs = _thumbnails(dataset, [next(stored) for _ in group.samples])
        caption = ", ".join(dict.fromkeys(str(names[sample.label]) for sample in group.samples))
        splits = ", ".join(dict.fromkeys(sample.split for sample in group.samples))
        rows.append(PictureRow(caption, f"{group.what}; in {splits}", jpegs))
    return rows


def _mosaic_labels(num_classes: int) -> list[int]:
    """Return the labels of the classes to show, the largest first; all of them if there are at most 12."""
    if num_classes <= 3 * _MOSAIC_CLASSES:
        return list(range(num_classes))
    starts = (0, num_classes // 2 - _MOSAIC_CLASSES // 2, num_classes - _MOSAIC_CLASSES)
    return [label for start in starts for label in range(start, start + _MOSAIC_CLASSES)]


def _locate(dataset: ShardedDataset, samples: Sequence[_Sample]) -> list[_Stored]:
    """Return the stored image of each sample."""
    columns = ["shard", "jpg_offset", "jpg_size", "original_width", "original_height"]
    tables = {split: dataset.index_table(split, columns) for split in {sample.split for sample in samples}}
    rows = (tables[sample.split].slice(sample.row, 1).to_pylist()[0] for sample in samples)
    return [_Stored(*(row[column] for column in columns)) for row in rows]


def _thumbnails(dataset: ShardedDataset, pictures: Iterable[_Stored]) -> list[bytes]:
    return [_thumbnail(dataset, picture.shard, picture.offset, picture.num_bytes) for picture in pictures]


def _thumbnail(dataset: ShardedDataset, shard: str, offset: int, num_bytes: int) -> bytes:
    jpeg = dataset.read_bytes(shard, offset, num_bytes)
    return thumbnail(jpeg, dataset.recipe.size, f"{dataset.shards_folder.location(shard)}: the image at {offset:,}")
