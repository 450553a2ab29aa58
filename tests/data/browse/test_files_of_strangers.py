"""Files of a run and of an inspection that anybody may have written: joined by key, or refused in one line."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmk_data.browse.catalogue import Catalogue
from lmk_data.browse.records import PictureQuery
from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError
from lmk_data.views.marks import MarksFile
from tests.data.browse.drawn_files import DIM, edit, write_quality, write_run

FEATURES = "features/drawn-key/train.npy"


@pytest.fixture(scope="module")
def files(dataset_64: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a run and of an inspection."""
    dataset, out = ShardedDataset.open(dataset_64), tmp_path_factory.mktemp("files")
    for split in ("val", "test"):
        write_run(dataset, out / "run", {}, split)
    write_quality(dataset, out / "quality", {}, set())
    return out


@pytest.fixture
def own(files: Path, tmp_path: Path) -> Path:
    """A copy of the files to damage."""
    shutil.copytree(files, tmp_path / "files")
    return tmp_path / "files"


def opened(dataset: Path, folder: Path, kind: str) -> Catalogue:
    run, quality = (folder / name if kind == name else None for name in ("run", "quality"))
    return Catalogue.open(ShardedDataset.open(dataset), run=run, quality=quality, marks=MarksFile(folder / "m.csv"))


def put(path: Path, name: str, value: object, row: int = 0) -> None:
    edit(path, lambda columns: columns[name].__setitem__(row, value))


def without(path: Path, name: str) -> None:
    edit(path, lambda columns: columns.pop(name))


def retyped(path: Path, name: str, kind: pa.DataType) -> None:
    table = pq.read_table(path)
    column = pa.array([None] * len(table), kind)
    pq.write_table(table.set_column(table.column_names.index(name), name, column), path)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def stated(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def other_keys(path: Path) -> None:
    edit(path, lambda columns: columns["key"].__setitem__(slice(None), [f"x{i}" for i in range(len(columns["key"]))]))


RUN: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no such folder": ("no such folder", shutil.rmtree),
    "no predictions": ("has no predictions", lambda run: [path.unlink() for path in run.glob("predictions-*")]),
    "no classes": ("no such file", lambda run: (run / "per-class-val.parquet").unlink()),
    "a label of no class": ("out of range", lambda run: put(run / "predictions-val.parquet", "label_1", 6)),
    "a probability of 2": ("out of range", lambda run: put(run / "predictions-val.parquet", "probability_1", 2.0)),
    "an F1 of -1": ("out of range", lambda run: put(run / "per-class-test.parquet", "f1", -1.0)),
    "no label_1": ("label_1", lambda run: without(run / "predictions-val.parquet", "label_1")),
    "text for labels": ("is string", lambda run: retyped(run / "predictions-val.parquet", "label_1", pa.string())),
    "no key": ("empty places", lambda run: put(run / "predictions-val.parquet", "key", None)),
    "no table": ("not a table", lambda run: (run / "predictions-val.parquet").write_bytes(b"PAR1" * 9)),
    "a FIFO": ("not a table", lambda run: fifo(run / "predictions-val.parquet")),
    "labels not in order": ("0, 1, 2", lambda run: put(run / "per-class-val.parquet", "label", 1)),
    "a class twice": ("occurs twice", lambda run: put(run / "per-class-val.parquet", "landmark_id", 138982)),
    "two runs": ("other classes", lambda run: put(run / "per-class-val.parquet", "landmark_id", 3)),
}
QUALITY: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no such folder": ("not an inspection", shutil.rmtree),
    "no JSON": ("not the description", lambda out: (out / "quality.json").write_text("{")),
    "deep JSON": ("not the description", lambda out: (out / "quality.json").write_text("[" * 100_000)),
    "an odd split": ("is no split", lambda out: stated(out / "quality.json", splits={"../x": 1})),
    "counts that differ": ("not those", lambda out: stated(out / "quality.json", splits={"train": 1})),
    "labels of another": ("its labels", lambda out: put(out / "quality.parquet", "label", 4)),
    "a label of no class": ("out of range", lambda out: put(out / "quality.parquet", "other_label", 5)),
    "a score of 2": ("out of range", lambda out: put(out / "quality.parquet", "wrong_label_score", 2.0)),
    "splits mixed": ("not those", lambda out: put(out / "quality.parquet", "split", "val")),
    "no flags": ("empty places", lambda out: put(out / "quality.parquet", "outlier", None)),
    "text for flags": ("is string", lambda out: retyped(out / "quality.parquet", "outlier", pa.string())),
    "no samples": ("no such file", lambda out: (out / "quality.parquet").unlink()),
    "no classes": ("no such file", lambda out: (out / "classes-quality.parquet").unlink()),
    "a twin of no class": ("out of range", lambda out: put(out / "classes-quality.parquet", "twin_label", 5)),
    "a key that leads out": (
        "no name of a folder",
        lambda out: stated(out / "quality.json", features=features("../x")),
    ),
    "features of objects": ("not the features", lambda out: (out / FEATURES).write_bytes(pickled())),
    "other features": ("float16", lambda out: np.save(out / FEATURES, np.zeros((3, DIM), np.float16))),
    "features of 32 bits": ("float16", lambda out: np.save(out / FEATURES, np.load(out / FEATURES).astype(np.float32))),
    "features that end early": ("not the features", lambda out: os.truncate(out / FEATURES, 200)),
    "features in a zip": ("not the features", lambda out: (out / FEATURES).write_bytes(b"PK\x03\x04" * 100)),
    "features of another version": ("another version", lambda out: (out / FEATURES).write_bytes(b"\x93NUMPY\x03\x00")),
    "a FIFO": ("not the features", lambda out: fifo(out / FEATURES)),
}


def features(key: str) -> dict[str, object]:
    return {"key": key, "dim": DIM}


def pickled() -> bytes:
    return (
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}".ljust(117)
        + (b"\n" + pickle.dumps([print]))
    )


@pytest.mark.parametrize("name", RUN)
def test_a_damaged_run_is_refused(dataset_64: Path, own: Path, name: str) -> None:
    what, damage = RUN[name]
    damage(own / "run")
    with pytest.raises(UserError, match=what) as caught:
        opened(dataset_64, own, "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", QUALITY)
def test_a_damaged_inspection_is_refused(dataset_64: Path, own: Path, name: str) -> None:
    what, damage = QUALITY[name]
    damage(own / "quality")
    with pytest.raises(UserError, match=what) as caught:
        opened(dataset_64, own, "quality").facts()
    assert "\n" not in str(caught.value)


def test_files_about_other_pictures_are_refused(dataset_64: Path, own: Path) -> None:
    for split in ("val", "test"):
        other_keys(own / "run" / f"predictions-{split}.parquet")
    with pytest.raises(UserError, match="of no picture"):
        opened(dataset_64, own, "run")
    other_keys(own / "quality" / "quality.parquet")
    stated(own / "quality" / "quality.json", dataset="another")
    with pytest.raises(UserError, match="no picture"):
        opened(dataset_64, own, "quality")


def test_an_inspection_of_another_version_is_joined_by_key(dataset_64: Path, own: Path) -> None:
    table = pq.read_table(own / "quality" / "quality.parquet")
    keys = table["key"].to_pylist()
    train = table["split"].to_pylist().count("train")
    order = [*range(train)[::-1], *range(train, len(keys))]
    pq.write_table(table.take(pa.array(order)), own / "quality" / "quality.parquet")
    put(own / "quality" / "quality.parquet", "key", "gone", train - 1)  # the first picture of train
    put(own / "quality" / "quality.parquet", "wrong_label", True, 5)
    stated(own / "quality" / "quality.json", dataset="an earlier version")
    catalogue = opened(dataset_64, own, "quality")
    assert catalogue.facts().inspected == len(keys) - 1
    assert catalogue.keys(PictureQuery(queue="suspects")) == [keys[train - 1 - 5]]
    assert catalogue.picture(keys[0]).own_similarity is None
    assert catalogue.picture(keys[0]).own_neighbours == []
    assert catalogue.picture(keys[1]).own_similarity is not None


def test_predictions_that_were_written_again_are_noticed(dataset_64: Path, own: Path) -> None:
    catalogue = opened(dataset_64, own, "run")
    path = own / "run" / "predictions-val.parquet"
    key = pq.read_table(path)["key"][0].as_py()
    assert len(catalogue.picture(key).predictions) == 5
    edit(path, lambda columns: columns["label_1"].__setitem__(0, 5 - columns["label_1"][0]))
    with pytest.raises(UserError, match="written again"):
        catalogue.picture(key)


def test_features_that_were_deleted_are_not_missed(dataset_64: Path, own: Path) -> None:
    shutil.rmtree(own / "quality" / "features")
    catalogue = opened(dataset_64, own, "quality")
    assert not catalogue.facts().features
    assert catalogue.picture(catalogue.keys(PictureQuery())[0]).own_neighbours == []
