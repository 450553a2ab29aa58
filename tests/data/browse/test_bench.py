"""The benchmark of the browser draws files of today's format."""

from pathlib import Path

from lmk_data.browse.catalogue import Catalogue
from lmk_data.browse.records import PictureQuery
from lmk_data.dataset import ShardedDataset
from lmk_data.views.marks import MarksFile
from pipelines.bench.browse import write_quality, write_run


def test_what_is_drawn_opens(dataset_64: Path, tmp_path: Path) -> None:
    with ShardedDataset.open(dataset_64) as dataset:
        write_run(dataset, tmp_path / "run")
        write_quality(dataset, tmp_path / "quality", dim=8)
        marks = MarksFile(tmp_path / "marks.csv")
        catalogue = Catalogue.open(dataset, run=tmp_path / "run", quality=tmp_path / "quality", marks=marks)
        page = catalogue.pictures(PictureQuery())
        assert page.total == len(dataset)
        assert any(picture.prediction for picture in page.items)
        assert all(queue.count is not None for queue in catalogue.queue_names())
