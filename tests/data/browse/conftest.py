"""A small dataset whose classes have names that no page may show as they are, with duplicates and a label conflict."""

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from lmk_data.build import BuildOptions, build
from lmk_data.dataset import ShardedDataset
from lmk_data.options import PlanRule, Recipe
from tests.data.browse.drawn_files import write_quality, write_run
from tests.drawing import make_collection, write_labels

NAMES = {
    138982: '<img src=x onerror="alert(1)">&amp;',
    20409: "כנסיית \u202eevil\u202c\x1b[31m",
    83144: "Bridge of Sighs",
}


@pytest.fixture(scope="session")
def named_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of 3 classes; tests only read it."""
    folder = tmp_path_factory.mktemp("named")
    rows = make_collection(folder, {138982: 9, 20409: 7, 83144: 6})
    path = {key: folder / "train" / key[0] / key[1] / key[2] / f"{key}.jpg" for key, _ in rows}
    for key, label, original in (("copy-same", 138982, rows[0][0]), ("copy-other", 20409, rows[1][0])):
        copied = folder / "train" / key[0] / key[1] / key[2] / f"{key}.jpg"
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path[original], copied)
        rows.append((key, label))
    write_labels(folder / "train.csv", rows)
    with open(folder / "names.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("landmark_id", "category"), *NAMES.items()])
    build(
        BuildOptions(
            images=[str(folder / "train")],
            labels=str(folder / "train.csv"),
            categories=str(folder / "names.csv"),
            out=folder / "shards",
            rule=PlanRule(min_samples=6),
            recipe=Recipe(size=32),
            title="Named <set>",
            workers=1,
            quiet=True,
        )
    )
    return folder / "shards"


@dataclass(frozen=True)
class Judged:
    """A run and an inspection of the dataset; `suspect` is in val, and both say that it shows the Bridge of Sighs."""

    run: Path
    quality: Path
    suspect: str


@pytest.fixture(scope="session")
def judged(named_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Judged:
    folder = tmp_path_factory.mktemp("judged")
    with ShardedDataset.open(named_dataset) as dataset:
        val, train = dataset.index("val"), dataset.index("train")
        suspect = val["key"][val["landmark_id"] == 138982].iloc[0]
        write_run(dataset, folder / "run", {suspect: 83144})
        write_quality(dataset, folder / "quality", {suspect: 83144}, {train["key"].iloc[0]})
    return Judged(folder / "run", folder / "quality", suspect)
