"""A pass over the pictures of a split that is interrupted and resumed."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError
from lmk_train.config.arguments import CacheOptions
from lmk_train.data import feature_pass
from lmk_train.data.augment import Augmentation, Preprocess
from lmk_train.data.feature_pass import FeatureFile, FeaturePass
from lmk_train.data.reader import SplitReader
from lmk_train.models.registry import ARCHITECTURES
from lmk_train.runtime.precision import Precision

CPU = torch.device("cpu")


class Colours(nn.Module):
    """Mean colours as features; raises at a given picture, as Ctrl-C would."""

    def __init__(self, ends_at: int | None = None) -> None:
        super().__init__()
        self.seen, self.ends_at = 0, ends_at

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        self.seen += len(pictures)
        if self.ends_at is not None and self.seen > self.ends_at:
            raise KeyboardInterrupt
        return pictures.mean(dim=(2, 3))


@pytest.fixture
def reader(dataset_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SplitReader]:
    monkeypatch.setattr(feature_pass, "BATCH_SIZE", 8)
    with (
        ShardedDataset.open(dataset_path) as dataset,
        closing(SplitReader(dataset, "train", CacheOptions().resolved())) as opened,
    ):
        yield opened


def write(file: FeatureFile, reader: SplitReader, network: Colours) -> None:
    preprocess = Preprocess(ARCHITECTURES["resnet32"].normalization, Augmentation(), CPU)
    file.write(FeaturePass(network.eval(), preprocess, Precision(CPU, None), 1), reader)


def feature_file(folder: Path, reader: SplitReader, **source: object) -> FeatureFile:
    folder.mkdir(exist_ok=True)
    return FeatureFile(folder / "train.npy", (len(reader), 3), np.float32, {"model": "colours", **source})


def test_an_interrupted_pass_resumes_where_it_was(reader: SplitReader, tmp_path: Path) -> None:
    whole = feature_file(tmp_path / "whole", reader)
    write(whole, reader, Colours())
    features = whole.read()
    assert features.shape == (len(reader), 3)
    np.save(tmp_path / "saved.npy", features)
    assert (tmp_path / "saved.npy").read_bytes() == whole.path.read_bytes()

    resumed = feature_file(tmp_path / "resumed", reader)
    with pytest.raises(KeyboardInterrupt):
        write(resumed, reader, Colours(ends_at=20))
    assert resumed.num_done() == 16
    assert not resumed.path.exists()
    partial = resumed.path.with_suffix(".tmp")
    partial.write_bytes(partial.read_bytes() + b"what a killed process wrote behind its record")
    network = Colours()
    write(resumed, reader, network)
    assert network.seen == len(reader) - 16
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    write(resumed, reader, network)
    assert network.seen == len(reader) - 16, "nothing that is finished is computed twice"


@pytest.mark.parametrize("lost", ["source", "record", "partial"])
def test_rows_that_are_not_surely_there_are_computed_again(reader: SplitReader, tmp_path: Path, lost: str) -> None:
    file = feature_file(tmp_path / "f", reader)
    with pytest.raises(KeyboardInterrupt):
        write(file, reader, Colours(ends_at=20))
    if lost == "source":
        file = feature_file(tmp_path / "f", reader, weights="others")
    elif lost == "record":
        file.path.with_suffix(".json").write_text("{}")
    else:
        file.path.with_suffix(".tmp").write_bytes(b"\x93NUMPY")
    assert file.num_done() == 0
    network = Colours()
    write(file, reader, network)
    assert network.seen == len(reader)


def test_a_pass_killed_before_its_last_step_does_not_leave_older_features(
    reader: SplitReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, network = feature_file(tmp_path / "f", reader), Colours()
    write(older, reader, network)
    np.save(older.path, np.zeros(older.shape, older.dtype))
    newer = feature_file(tmp_path / "f", reader, weights="others")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write(newer, reader, network)
    write(newer, reader, network)
    assert newer.read().any(), "the features of the other weights"
    assert network.seen == 2 * len(reader), "nothing that is finished is computed twice"


def test_nothing_is_written_through_a_link(reader: SplitReader, tmp_path: Path) -> None:
    file = feature_file(tmp_path / "f", reader)
    (tmp_path / "mine").write_text("mine")
    file.path.with_suffix(".tmp").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="symbolic link"):
        write(file, reader, Colours())
    assert (tmp_path / "mine").read_text() == "mine"
