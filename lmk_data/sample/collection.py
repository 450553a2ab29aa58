"""A long-tailed collection of synthetic landmarks in the layout of GLR2020, to try everything offline.

Like the real set it has a few large classes, a long tail, classes too small to learn, a file that is not a picture and
a file that is missing.
"""

import contextlib
import json
import os
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd

from lmk_data.errors import StorageError, UserError
from lmk_data.leftovers import is_leftover
from lmk_data.sample.buildings import design_landmark
from lmk_data.sample.photograph import photograph
from lmk_data.system.engine import LocalEngine, local_engine
from lmk_data.system.files import open_regular
from lmk_data.system.terminal import progress_bar

_RECEIPT = "sample.json"
_MAX_OWN_BYTES = 256 << 20  # of a file that a sample holds
_LABELS, _CATEGORIES = "train.csv", "train_label_to_category.csv"
_NUM_REAL_IDS = 203_094  # the landmark ids of GLR2020 are below
_SMALL = 6  # a default build leaves out smaller classes
_MEAN_OF_LARGE = 9  # fewer images per class leave no room for a tail
_BATCH = 8
_Batch = tuple[int, list[tuple[int, Path]]]  # number of the class; number and path of each shot
_NOT_A_PICTURE = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>Not Found</body></html>\n"
_PLACES = (
    "Alder Avon Beacon Birchwood Calder Carrow Castell Cedar Clifton Copper Coral Dunmore Eastgate Falcon Fenwick "
    "Glen Granite Hallow Harbour Hazel Heron Ivory Juniper Lantern Larkspur Linden Maren Meadow Mill Northgate Orchard "
    "Osprey Otter Pearl Raven River Rowan Saffron Silver Solan St_Ansgar St_Corvin Swan Tern Thistle Union Vale Yarrow"
)


@dataclass(frozen=True)
class Sample:
    """The collection that was drawn."""

    folder: Path
    num_images: int  # listed in train.csv
    num_classes: int
    unreadable: str  # id of the file that is not a picture
    missing: str  # id of the file that is not there


def draw_sample(
    out: Path,
    *,
    num_classes: int = 24,
    num_images: int = 900,
    seed: int = 0,
    workers: int | None = None,
    quiet: bool = False,
) -> Sample:
    """Draw a sample into `out`: train.csv, train_label_to_category.csv and train/a/b/c/<id>.jpg.

    The same arguments give the same bytes, whatever `workers` is. A finished sample is left alone, an interrupted one
    is completed.

    Args:
        out: the folder, new or empty.
        num_classes: number of landmarks.
        num_images: number of photographs, over all landmarks; 800 pixels wide or high.
        seed: 0 or more; decides the buildings, the photographs and the ids.
        workers: number of processes; None is one per core.
        quiet: show no progress bar.

    Raises:
        UserError: the arguments allow no long tail, or `out` holds something else.
        StorageError: a file could not be written.
        BuildError: a worker process was killed.
    """
    sizes = class_sizes(num_classes, num_images)
    if seed < 0:
        raise UserError(f"--seed {seed}: must be 0 or more")
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    arguments = {"num_classes": num_classes, "num_images": num_images, "seed": seed}
    listing = _listing(sizes, seed)
    ids = listing.sort_values(["number", "shot"])["id"]
    sample = Sample(out, num_images, num_classes, unreadable=ids.iloc[sizes[0] - 1], missing=ids.iloc[sizes[0]])
    labels = listing[["id", "landmark_id"]].to_csv(index=False, lineterminator="\n").encode()
    if _is_finished(out, arguments, labels):
        return sample
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write(out / _LABELS, labels)  # first: it identifies an interrupted sample
        _write(out / _CATEGORIES, _categories(listing, seed))
        _draw(listing[listing["id"] != sample.missing], sample, seed, local_engine(workers), quiet)
        receipt = {**arguments, "unreadable": sample.unreadable, "missing": sample.missing}
        _write(out / _RECEIPT, (json.dumps(receipt, indent=2) + "\n").encode())
    except OSError as error:
        raise StorageError(f"{out}: cannot write the sample ({error}); run again to complete it") from error
    return sample


def class_sizes(num_classes: int, num_images: int) -> list[int]:
    """Return the images per class in descending order: they fall geometrically to 6, then comes a tail below 6.

    Raises:
        UserError: fewer than 2 classes, or too few images for a tail.
    """
    if not 2 <= num_classes <= _NUM_REAL_IDS:
        raise UserError(f"--classes {num_classes}: must be from 2 to {_NUM_REAL_IDS:,}")
    num_small = min(max(2, round(num_classes / 8)), num_classes - 2)
    small = [round(s) for s in np.linspace(_SMALL - 1, 2, num_small)]
    num_large = num_classes - num_small
    least = sum(small) + _MEAN_OF_LARGE * num_large
    if num_images < least:
        raise UserError(f"--images {num_images}: {num_classes} classes need {least} or more; ask for fewer classes")
    wanted = num_images - sum(small)
    fall = np.linspace(1, 0, num_large)
    low, high = 1.0, float(wanted)
    for _ in range(80):  # bisect the largest class, as a multiple of the smallest
        ratio = (low + high) / 2
        low, high = (ratio, high) if (_SMALL * ratio**fall).sum() < wanted else (low, ratio)
    large = np.floor(_SMALL * low**fall + 1e-9).astype(int)
    # Rounding took some images: the largest classes get them back, where it shows least.
    for k in range(wanted - int(large.sum())):
        large[k % max(1, num_large // 2)] += 1
    return [*large.tolist(), *small]


def _listing(sizes: list[int], seed: int) -> pd.DataFrame:
    """Return one row per image in the shuffled order of train.csv: id, landmark_id, number of its class, shot in it."""
    rng = np.random.default_rng([seed, 3])
    landmark_ids = rng.choice(_NUM_REAL_IDS, len(sizes), replace=False)
    number = np.repeat(np.arange(len(sizes)), sizes)
    shot = np.concatenate([np.arange(size) for size in sizes])
    names = (f"{seed}/{n}/{s}" for n, s in zip(number.tolist(), shot.tolist(), strict=True))
    ids = [sha256(name.encode()).hexdigest()[:16] for name in names]
    listing = pd.DataFrame({"id": ids, "landmark_id": landmark_ids[number], "number": number, "shot": shot})
    return listing.iloc[rng.permutation(len(listing))].reset_index(drop=True)


def _categories(listing: pd.DataFrame, seed: int) -> bytes:
    """Return the table of names as Kaggle publishes it: one Wikimedia Commons category per landmark."""
    classes = listing.drop_duplicates("number").sort_values("number")
    places, rng, taken, rows = _PLACES.split(), np.random.default_rng([seed, 4]), set[str](), []
    for number, landmark_id in zip(classes["number"].tolist(), classes["landmark_id"].tolist(), strict=True):
        name = f"{places[rng.integers(len(places))]}_{design_landmark(seed, number).noun.replace(' ', '_')}"
        name = f"{name}_({number})" if name in taken else name
        taken.add(name)
        rows.append((landmark_id, f"http://commons.wikimedia.org/wiki/Category:{name}"))
    table = pd.DataFrame(sorted(rows), columns=["landmark_id", "category"])
    return table.to_csv(index=False, lineterminator="\n").encode()


def _is_finished(out: Path, arguments: dict[str, int], labels: bytes) -> bool:
    """Return whether `out` holds this sample, finished. Raises UserError if it holds something else."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise UserError(f"{out}: is a file; give a new folder")
    receipt, listed = out / _RECEIPT, out / _LABELS
    if receipt.exists():
        with contextlib.suppress(ValueError, AttributeError):
            if arguments.items() <= json.loads(_content(receipt)).items():
                return True
        raise UserError(f"{out}: holds a sample drawn with other arguments; give a new folder, or delete this one")
    begun = listed.is_file() and _content(listed) == labels
    if not begun and any(path.suffix != ".tmp" and not is_leftover(path.name) for path in out.iterdir()):
        raise UserError(f"{out}: holds something else than this sample; give a new or an empty folder")
    return False


def _content(path: Path) -> bytes:
    """Return the content of a file of a sample."""
    with open_regular(path) as file:
        return file.read(_MAX_OWN_BYTES)


def _draw(listing: pd.DataFrame, sample: Sample, seed: int, engine: LocalEngine, quiet: bool) -> None:
    """Draw the pictures that are missing, in batches of one class: a building is designed once per batch."""
    batches: list[_Batch] = []
    for number, rows in listing.sort_values("shot").groupby("number"):
        shots = list(zip(rows["shot"].tolist(), (_path(sample.folder, key) for key in rows["id"]), strict=True))
        batches += [(int(str(number)), shots[k : k + _BATCH]) for k in range(0, len(shots), _BATCH)]
    draw = partial(_draw_batch, seed, _path(sample.folder, sample.unreadable))
    with progress_bar(len(listing), "drawing", "images", quiet=quiet) as bar:
        for done in engine.run(draw, batches):
            bar.update(done)


def _draw_batch(seed: int, unreadable: Path, batch: _Batch) -> int:
    number, shots = batch
    landmark = design_landmark(seed, number)
    for shot, path in shots:
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if path == unreadable:
            _write(path, _NOT_A_PICTURE)
            continue
        photo = BytesIO()
        photograph(landmark, np.random.default_rng([seed, 5, number, shot])).save(photo, "JPEG", quality=85)
        _write(path, photo.getvalue())
    return len(shots)


def _path(folder: Path, key: str) -> Path:
    return folder / "train" / key[0] / key[1] / key[2] / f"{key}.jpg"


def _write(path: Path, data: bytes) -> None:
    """Write a whole file or none. It is not synced, because a lost picture is drawn again."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
