"""Which classes and images a selection keeps."""

from pathlib import Path

import pandas as pd
import pytest

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError
from lmk_data.options import Selection
from lmk_data.views.lists import read_class_list
from lmk_data.views.view import write_view


def test_what_is_no_class_list_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"other": [1]}).to_parquet(tmp_path / "list.parquet")
    (tmp_path / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    (tmp_path / "quote.txt").write_text('7" wide\n"quoted\n')
    for name, said in (("list.parquet", "no column landmark_id; found other"), ("latin.txt", "utf-8")):
        with pytest.raises(UserError, match=f"--classes .*{name}: not a list of classes: .*{said}"):
            read_class_list(str(tmp_path / name))
    assert read_class_list(str(tmp_path / "quote.txt")) == ('7" wide', '"quoted')


def test_a_class_list_in_any_form(dataset_path: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame({"landmark_id": [7, 20409], "other": ["x", "y"]})
    (tmp_path / "plain.txt").write_text("7\n\n20409 \n")
    frame.to_csv(tmp_path / "list.csv", index=False)
    frame.to_parquet(tmp_path / "list.parquet")
    (tmp_path / "quoted.csv").write_text('"","landmark_id"\n"1"," 7"\n"2","20409"\n')
    (tmp_path / "utf16.csv").write_bytes("x;landmark_id\n1;7\n2;20409\n".encode("utf-16"))
    for name in ("plain.txt", "list.csv", "list.parquet", "quoted.csv", "utf16.csv"):
        assert read_class_list(str(tmp_path / name)) == ("7", "20409")
    with ShardedDataset.open(dataset_path) as dataset:
        write_view(dataset, Selection(classes=("7", "20409")), str(tmp_path / "view"))
        assert ShardedDataset.open(tmp_path / "view").classes["landmark_id"].tolist() == [20409, 7]
        with pytest.raises(UserError, match=r"1 are not in .*, such as 8"):
            write_view(dataset, Selection(classes=("7", "8")), str(tmp_path / "other"))
        with pytest.raises(UserError, match="leaves no class; the largest has 24 images"):
            write_view(dataset, Selection(min_samples=1000), str(tmp_path / "other"))
        with pytest.raises(UserError, match="choose something"):
            write_view(dataset, Selection(), str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()
