"""Checkpoints and metrics as a stranger may have written them: a line that says what is wrong, and nothing runs."""

import copy
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lmk_data.errors import UserError
from lmk_train.config.training import TrainConfig
from lmk_train.runs.checkpoint import BEST, load_checkpoint, save_checkpoint
from lmk_train.runs.metrics_file import read_metrics_file
from lmk_train.runs.tensor_file import restore_weights

State = dict[str, Any]
RECIPE = {
    "size": 32,
    "fit": "squash",
    "quality": 90,
    "subsampling": "4:2:0",
    "filter": "bicubic",
    "exif_transpose": True,
    "max_pixels": 100_000_000,
}


def honest() -> State:
    return {
        "config": TrainConfig("shards", model="resnet32").resolved().json(),
        "classes": [7, 9],
        "names": ["tower", None],
        "train_counts": [3, 4],
        "content_sha256": "0" * 64,
        "recipe": dict(RECIPE),
        "model": {"weight": torch.zeros(2, 3)},
    }


def changed(*path: str, to: object) -> Callable[[], State]:
    def change() -> State:
        state = copy.deepcopy(honest())
        at = state
        for name in path[:-1]:
            at = at[name]
        at[path[-1]] = to
        return state

    return change


def nested() -> list[Any]:
    value: list[Any] = []
    for _ in range(200):
        value = [value]
    return value


def test_an_honest_checkpoint_is_read(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, BEST, honest())
    assert load_checkpoint(tmp_path, BEST)["classes"] == [7, 9]


@pytest.mark.parametrize(
    "make",
    [
        *(changed(name, to=value) for name in honest() for value in (3, None, "x", [[1]], {"a": 1})),
        changed("config", "epochs", to="x"),
        changed("config", "epochs", to=-1),
        changed("config", "shards", to="a\0b"),
        changed("config", "shards", to=None),
        changed("config", "model", to=["resnet32"]),
        changed("config", "lr", to=None),
        changed("config", "ldam_max_margin", to=float("nan")),
        changed("config", "more", to=1),
        changed("classes", to=[7, 7]),
        changed("classes", to=[7, "9"]),
        changed("classes", to=[7, 2**70]),
        changed("names", to=["tower"]),
        changed("names", to=["\ud800", None]),
        changed("names", to=nested()),
        changed("train_counts", to=[-1, 4]),
        changed("train_counts", to=[2**70, 4]),
        changed("recipe", "size", to=10**6),
        changed("recipe", "quality", to=0),
        changed("recipe", "max_pixels", to=10**12),
        changed("model", to={"weight": "x"}),
        changed("model", to={"weight": torch.zeros(1).expand(10**12)}),
        changed("model", to={"weight": torch.empty(10**12, device="meta")}),
        changed("model", to={"weight": torch.sparse_coo_tensor([[0]], [1.0], (10**9,), check_invariants=True)}),
        changed("averaged", to={"module.weight": 1}),
    ],
)
def test_a_checkpoint_with_a_wrong_field_is_refused(tmp_path: Path, make: Callable[[], State]) -> None:
    save_checkpoint(tmp_path, BEST, make())
    with pytest.raises(UserError, match=r"best\.pt: (damaged|not a readable) checkpoint \(.*\); copy it again"):
        load_checkpoint(tmp_path, BEST)


@pytest.mark.parametrize("name", list(honest()))
def test_a_checkpoint_without_a_field_is_refused(tmp_path: Path, name: str) -> None:
    save_checkpoint(tmp_path, BEST, {key: value for key, value in honest().items() if key != name})
    with pytest.raises(UserError, match=r"best\.pt: damaged checkpoint"):
        load_checkpoint(tmp_path, BEST)


class Gadget:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("executed",))


def saved(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def compressed() -> bytes:
    """A checkpoint whose records are deflated, as torch reads but does not write them."""
    source, out = zipfile.ZipFile(io.BytesIO(saved({**honest(), "x": torch.zeros(1_000_000)}))), io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for record in source.infolist():
            archive.writestr(record.filename, source.read(record))
    return out.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"",
        lambda: b"PK\x03\x04" + bytes(100),
        lambda: b"\x80\x02K\x01.",
        lambda: saved({**honest(), "x": Gadget()}),
        lambda: saved(honest(), _use_new_zipfile_serialization=False),
        lambda: saved(honest())[:1000],
        compressed,
    ],
)
def test_what_is_no_checkpoint_is_refused_and_not_executed(
    tmp_path: Path, make: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.pt").write_bytes(make())
    with pytest.raises(UserError, match=r"best\.pt: not a readable checkpoint \([^\x1b]+\); copy it again"):
        load_checkpoint(tmp_path, BEST)
    assert not (tmp_path / "executed").exists()


def test_a_pipe_in_place_of_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    os.mkfifo(tmp_path / "checkpoints" / "best.pt")
    with pytest.raises(UserError, match="not a regular file"):
        load_checkpoint(tmp_path, BEST)


@pytest.mark.parametrize(
    ("weights", "what"),
    [
        ({}, "weight is missing"),
        ({"weight": torch.zeros(3, 2)}, r"weight is torch.float32 \[3, 2\], not \[2, 3\]"),
        ({"weight": torch.zeros(2, 3, dtype=torch.int64)}, "weight is torch.int64"),
        ({"weight": torch.zeros(2, 3), "more": torch.zeros(1)}, "nothing is called 'more'"),
    ],
)
def test_weights_of_another_network_are_refused(weights: dict[str, torch.Tensor], what: str) -> None:
    with pytest.raises(UserError, match=rf"x\.pt: its weights are not those of its configuration: {what}"):
        restore_weights(torch.nn.Linear(3, 2, bias=False), weights, Path("x.pt"))


EPOCH = {"kind": "epoch", "epoch": 1, "step": 5, "train_loss": 0.5, "train_accuracy": 0.5, "val_loss": None}


def test_metrics_are_read_without_a_line_that_was_cut(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(EPOCH) + "\n" + json.dumps(EPOCH)[:20])
    assert read_metrics_file(tmp_path / "metrics.jsonl") == [EPOCH]


@pytest.mark.parametrize(
    "line",
    [
        [],
        5,
        {},
        {**EPOCH, "kind": 3},
        {**EPOCH, "kind": "train"},
        {**EPOCH, "step": -1},
        {**EPOCH, "epoch": 10**30},
        {**EPOCH, "train_loss": "x"},
        {**EPOCH, "val_loss": []},
        {**EPOCH, "val_loss": "x"},
    ],
)
def test_metrics_that_no_training_writes_are_refused(tmp_path: Path, line: object) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(EPOCH) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is not one of a training"):
        read_metrics_file(tmp_path / "metrics.jsonl")
