"""Measure one reader on one copy of a dataset in one process: samples per second, or the time to the first batch.

    python -m pipelines.bench.readers prepare|rate|start READER DATA [--stage STAGE] [--workers N] [--seconds S]
                                    [--cold] [--ahead]

READER is memory, lmk, webdataset-pil, webdataset-torchvision, mosaic or litdata. DATA is a dataset of lmk or, for the
last two, a copy that `prepare` made of it (`--into`). Every stage returns shuffled batches of 64. `--cold` first drops
the shards from the page cache; with `--ahead`, lmk reads them ahead as in training. Prints JSON.
"""

import argparse
import glob
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.io import decode_jpeg
from torchvision.transforms import v2

from lmk_data.dataset import ShardedDataset
from lmk_train.config.arguments import Cache
from lmk_train.data.augment import Augmentation, Preprocess, augmentation_draws
from lmk_train.data.order import batch_picks, epoch_order, num_batches
from lmk_train.data.reader import SplitReader
from lmk_train.data.stream import BatchStream
from lmk_train.models.registry import Normalization

BATCH = 64
STAGES = ("raw", "decoded", "augmented")
_SHUFFLE_BUFFER = 1000
_SEED = 17
_JITTER = 0.2
_IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

Batches = Iterator[int]  # the length of each batch, once it has been read
Sample = tuple[Any, int]


def usual_pipeline() -> v2.Compose:
    """Return the usual torchvision v2 transforms of one image: a PIL image (1.4 x faster) or a uint8 tensor."""
    jitter = v2.ColorJitter(_JITTER, _JITTER, _JITTER, _JITTER / 4)
    scale, normalize = v2.ToDtype(torch.float32, scale=True), v2.Normalize(_IMAGENET.mean, _IMAGENET.std)
    return v2.Compose([v2.RandomHorizontalFlip(), jitter, v2.ToImage(), scale, normalize])


def with_pil(stage: str) -> Callable[[bytes], Any]:
    """Return the function that converts the JPEG of a sample with Pillow."""
    if stage == "raw":
        return lambda data: data
    finish = usual_pipeline() if stage == "augmented" else v2.PILToTensor()
    return lambda data: finish(Image.open(io.BytesIO(data)).convert("RGB"))


def with_torchvision(stage: str) -> Callable[[bytes], Any]:
    """Return the function that converts the JPEG of a sample with torchvision."""
    if stage == "raw":
        return lambda data: data
    finish = usual_pipeline() if stage == "augmented" else lambda picture: picture
    return lambda data: finish(decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)))


def collate(samples: list[Sample]) -> tuple[Any, torch.Tensor]:
    """Return the samples as a batch: tensors stacked, bytes unchanged."""
    first = [sample[0] for sample in samples]
    labels = torch.tensor([sample[1] for sample in samples])
    return (torch.stack(first) if isinstance(first[0], torch.Tensor) else first), labels


def loaded(dataset: Any, workers: int) -> Batches:
    """Read a map-style or iterable dataset of samples with PyTorch's DataLoader."""
    for images, _ in torch.utils.data.DataLoader(dataset, BATCH, num_workers=workers, collate_fn=collate):
        yield len(images)


def memory(data: Path, stage: str, workers: int) -> Batches:
    """Decode JPEGs that are already in memory, in the order of an epoch: the upper bound of one core."""
    reader, order = _split_reader(data)
    jpegs = list(reader.read(np.arange(len(reader))))
    out = np.empty((BATCH, reader.size, reader.size, 3), np.uint8)
    for number, row in enumerate(order.tolist(), 1):
        simplejpeg.decode_jpeg(jpegs[row], "RGB", buffer=out[number % BATCH])
        if number % BATCH == 0:
            yield BATCH


def lmk(data: Path, stage: str, workers: int, start: float = 0.0, ahead: bool = False) -> Batches:
    """Read with this project; without workers, one decoding thread shares the core with everything else."""
    reader, order = _split_reader(data, SplitReader if ahead else _WithoutReadAhead)
    steps = num_batches(len(order), BATCH, drop_last=True)
    batches = (batch_picks(order, step, BATCH) for step in range(int(start * steps), steps))
    if stage == "raw":
        reader.expect(order)
        for picks in batches:
            yield len(list(reader.read(picks)))
        return
    preprocess = Preprocess(_IMAGENET, Augmentation(hflip=0.5, color_jitter=_JITTER), torch.device("cpu"))
    stream = BatchStream(reader, torch.device("cpu"), BATCH, max(1, workers))
    with closing(stream(batches)) as decoded:
        for batch in decoded:
            if stage == "augmented":
                preprocess(batch.pixels, augmentation_draws(batch.picks, _SEED, 0))
            yield len(batch.labels)


class _WithoutReadAhead(SplitReader):
    def expect(self, picks: NDArray[np.int64]) -> None:
        """Do not read ahead."""


def _split_reader(data: Path, kind: type[SplitReader] = _WithoutReadAhead) -> tuple[SplitReader, NDArray[np.int64]]:
    reader = kind(ShardedDataset.open(data), "train", Cache(data / "cache", 0))
    return reader, epoch_order(reader.labels, reader.shard_of_row, _SEED, 0)


def webdataset(data: Path, stage: str, workers: int, convert: Callable[[str], Callable[[bytes], Any]]) -> Batches:
    """Read with webdataset, shuffled as in its documentation."""
    import webdataset as wds

    shards = sorted(glob.glob(f"{data}/shards/train/*.tar"))
    samples = wds.WebDataset(shards, shardshuffle=100, empty_check=False)
    pairs = samples.shuffle(_SHUFFLE_BUFFER).to_tuple("jpg", "cls").map_tuple(convert(stage), int)
    return loaded(pairs, workers)


def mosaic(data: Path, stage: str, workers: int) -> Batches:
    """Read with MosaicML streaming; Pillow decodes the samples, as in its own vision datasets."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    convert = with_pil(stage)

    class Pictures(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, number: int) -> Sample:
            sample = super().__getitem__(number)
            return convert(sample["jpg"]), sample["cls"]

    clean_stale_shared_memory()
    return loaded(Pictures(local=str(data), shuffle=True, batch_size=BATCH), workers)


def litdata(data: Path, stage: str, workers: int) -> Batches:
    """Read with litData, which decodes JPEGs with torchvision."""
    from litdata import StreamingDataLoader, StreamingDataset

    convert = with_torchvision(stage)

    class Pictures(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, number: Any) -> Sample:
            sample = super().__getitem__(number)
            return convert(sample["jpg"]), sample["cls"]

    dataset = Pictures(str(data), shuffle=True, drop_last=True)
    for images, _ in StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=collate):
        yield len(images)


READERS: dict[str, Callable[[Path, str, int], Batches]] = {
    "memory": memory,
    "lmk": lmk,
    "webdataset-pil": partial(webdataset, convert=with_pil),
    "webdataset-torchvision": partial(webdataset, convert=with_torchvision),
    "mosaic": mosaic,
    "litdata": litdata,
}


def prepare(reader: str, data: Path, into: Path) -> None:
    """Write the training split in the format of another reader."""
    split, _ = _split_reader(data)
    if reader == "mosaic":
        from streaming import MDSWriter

        with MDSWriter(out=str(into), columns={"jpg": "bytes", "cls": "int"}) as out:
            for row, jpeg in enumerate(split.read(np.arange(len(split)))):
                out.write({"jpg": jpeg, "cls": int(split.labels[row])})
    elif reader == "litdata":
        from litdata import optimize

        rows = list(range(len(split)))
        optimize(partial(_lit_sample, split), rows, str(into), chunk_bytes="64MB", num_workers=1, start_method="fork")


def _lit_sample(split: SplitReader, row: int) -> dict[str, Any]:
    return {"jpg": next(split.read(np.array([row]))), "cls": int(split.labels[row])}


def grow(reader: str, data: Path, into: Path, num_samples: int) -> None:
    """Make a copy whose index has at least `num_samples` samples: its shards are repeated as hard links."""
    into.mkdir(parents=True)
    if reader == "mosaic":
        index = json.loads((data / "index.json").read_text())
        parts, key, size = index["shards"], "raw_data", "samples"
    elif reader == "litdata":
        index = json.loads((data / "index.json").read_text())
        parts, key, size = index["chunks"], "", "chunk_size"
    else:
        (into / "shards" / "train").mkdir(parents=True)
        tars = sorted((data / "shards" / "train").glob("*.tar"))
        for number in range(num_samples // 1024):
            os.link(tars[number % len(tars)], into / "shards" / "train" / f"train-{number:06d}.tar")
        return
    full = [part for part in parts if part[size] >= 0.9 * parts[0][size]]
    grown: list[dict[str, Any]] = []
    while sum(part[size] for part in grown) < num_samples:
        part = json.loads(json.dumps(full[len(grown) % len(full)]))
        entry, name = (part[key], "basename") if key else (part, "filename")
        new = f"chunk-0-{len(grown)}.bin" if reader == "litdata" else f"shard.{len(grown):05d}.mds"
        os.link(data / entry[name], into / new)
        entry[name] = new
        grown.append(part)
    index["shards" if key else "chunks"] = grown
    (into / "index.json").write_text(json.dumps(index))


def rate(batches: Batches, seconds: float) -> float:
    """Return samples per second after the first batch, until the time or the epoch is over."""
    next(batches)
    started, samples = time.perf_counter(), 0
    for length in batches:
        samples += length
        if time.perf_counter() - started > seconds:
            break
    return samples / (time.perf_counter() - started)


def drop_from_page_cache(data: Path) -> None:
    """Drop the shards from the page cache, so that the next reader reads them from disk."""
    for path in data.rglob("*.tar"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak_mb(process: str = "self") -> int:
    """Return the peak resident memory of a process in MB."""
    with open(f"/proc/{process}/status") as file:
        return next(int(line.split()[1]) >> 10 for line in file if line.startswith("VmHWM"))


def children() -> list[str]:
    """Return the process ids of the children of this process."""
    found = [Path(path).read_text().split() for path in glob.glob("/proc/self/task/*/children")]
    return [process for processes in found for process in processes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "grow", "rate", "start"))
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("data", type=Path)
    parser.add_argument("--into", type=Path)
    parser.add_argument("--samples", type=int, default=1_490_153)
    parser.add_argument("--stage", choices=STAGES, default="decoded")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--at", type=float, default=0.0, help="start at this fraction of the epoch (lmk)")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--ahead", action="store_true")
    arguments = parser.parse_args()
    if arguments.what == "prepare":
        prepare(arguments.reader, arguments.data, arguments.into)
        return
    if arguments.what == "grow":
        grow(arguments.reader, arguments.data, arguments.into, arguments.samples)
        return
    if not arguments.workers:  # all threads on one core
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        torch.set_num_threads(1)
    if arguments.cold:
        drop_from_page_cache(arguments.data)
    own = partial(lmk, start=arguments.at, ahead=arguments.ahead)
    read = own if arguments.reader == "lmk" else READERS[arguments.reader]
    imported, started = peak_mb(), time.perf_counter()
    batches = read(arguments.data, arguments.stage, arguments.workers)
    found: dict[str, float] = {}
    if arguments.what == "start":
        next(batches)
        found["seconds"] = time.perf_counter() - started
    else:
        found["samples_per_second"] = rate(batches, arguments.seconds)
    found["beyond_imports_mb"] = peak_mb() - imported
    found["worker_mb"] = max(map(peak_mb, children()), default=0)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
