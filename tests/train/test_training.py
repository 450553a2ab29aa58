"""Whole training runs on a small dataset: what is written, that it goes on exactly, and what is refused."""

import copy
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet

from lmk_data.build import BuildOptions, build
from lmk_data.dataset import ShardedDataset
from lmk_data.errors import TrainingError, UserError
from lmk_data.format import Recipe
from lmk_data.plan import PlanRule
from lmk_data.subset import Selection, write_view
from lmk_train import bottleneck, precision, record, trainer
from lmk_train.assembly import make_trainer
from lmk_train.augment import augmentation_draws
from lmk_train.checkpoint import weights_to_evaluate
from lmk_train.cli import eval_main, train_main
from lmk_train.config import TrainConfig
from lmk_train.evaluation import evaluate_run
from lmk_train.loop import batch_stream, micro_batches, train, training_step
from lmk_train.losses import drw_weights
from lmk_train.models import build_model, load_weights, num_parameters
from lmk_train.optim import lr_factor, make_optimizer
from lmk_train.options import EvalConfig
from lmk_train.precision import Precision, resolve_device
from lmk_train.rehearsal import rehearse
from lmk_train.stream import Batch, SplitReader
from lmk_train.trainer import Trainer
from lmk_train.world import ALONE, World

Config = Callable[..., TrainConfig]


@pytest.fixture
def config(dataset_path: Path, tmp_path: Path) -> Config:
    """A training of seconds; keywords change it."""

    def make(**changes: object) -> TrainConfig:
        chosen: dict[str, object] = {
            "shards": str(dataset_path),
            "out": tmp_path / "run",
            "model": "efficientnet-lite0",
            "weights": "none",
            "epochs": 2,
            "batch_size": 10,
            "device": "cpu",
            "amp": "off",
            "workers": 2,
            "quiet": True,
        }
        return TrainConfig(**{**chosen, **changes})  # type: ignore[arg-type]

    return make


@contextmanager
def put_together(config: TrainConfig, dataset: ShardedDataset, run: Path) -> Iterator[tuple[Trainer, Iterator[Batch]]]:
    """A trainer before its first step, and its micro-batches."""
    trainer = make_trainer(config.resolved(), run, dataset, torch.device("cpu"), ALONE, lambda _: None)
    with closing(batch_stream(trainer)(micro_batches(trainer, 0, 0))) as batches:
        yield trainer, batches
    trainer.train.close()


def lines(run: Path, kind: str) -> list[dict[str, float]]:
    """metrics.jsonl, without what depends on the clock."""
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = {"images_per_second", "data_share", "copy_share", "compute_share"}
    return [{k: v for k, v in line.items() if k not in timed} for line in read if line["kind"] == kind]


def weights(run: Path, name: str = "last.pt") -> dict[str, torch.Tensor]:
    model: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / name, weights_only=True)["model"]
    return model


def test_a_view_trains_as_a_dataset_does(config: Config, dataset: ShardedDataset, tmp_path: Path) -> None:
    """Its labels, counts and margins are its own, though the tars carry the base's labels."""
    write_view(dataset, Selection(classes=("83144", "113209", "7")), str(tmp_path / "view"))
    train(config(shards=str(tmp_path / "view"), epochs=1))
    with ShardedDataset.open(tmp_path / "view") as view:
        predictions = pd.read_parquet(tmp_path / "run" / "predictions-test.parquet")
        index = view.index("test")
        assert predictions.set_index("key")["target"].to_dict() == index.set_index("key")["label"].to_dict()
        per_class = pd.read_parquet(tmp_path / "run" / "per-class-test.parquet")
        assert per_class["support"].tolist() == view.classes["test"].tolist()
        assert weights(tmp_path / "run")["head.weight"].shape[0] == view.num_classes == 3


def test_run_folder_holds_what_is_promised(config: Config, dataset: ShardedDataset, tmp_path: Path) -> None:
    result = train(config(model="efficientnet-lite0", weights="imagenet", epochs=3))
    run = tmp_path / "run"
    assert json.loads((run / "config.json").read_text())["lr"] == 3e-4
    epochs = lines(run, "epoch")
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    assert list((run / "tensorboard").glob("events.*"))
    metrics = json.loads((run / "eval-test.json").read_text())
    assert result.test is not None
    assert metrics == {**result.test.metrics, **result.test.source}
    assert metrics["num_samples"] == dataset.num_samples("test")
    predictions = pd.read_parquet(run / "predictions-test.parquet")
    assert set(predictions["key"]) == set(dataset.index("test")["key"])
    assert (predictions["target"] == predictions["label_1"]).mean() == pytest.approx(metrics["accuracy"])
    per_class = pd.read_parquet(run / "per-class-test.parquet")
    assert per_class["support"].tolist() == dataset.classes["test"].tolist()
    confusion = pd.read_parquet(run / "confusion-test.parquet")
    assert confusion["count"].sum() == metrics["num_samples"]
    assert confusion.loc[confusion["target"] == confusion["prediction"], "count"].sum() == per_class["correct"].sum()
    best = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    assert best["classes"] == dataset.classes["landmark_id"].tolist()
    assert best["content_sha256"] == dataset.manifest["content_sha256"]
    assert {"optimizer", "progress"}.isdisjoint(best)
    (again,) = evaluate_run(EvalConfig(run, split="test", device="cpu", quiet=True, batch_size=3))
    assert again.metrics["accuracy"] == metrics["accuracy"]


def test_training_twice_gives_the_same_weights(config: Config, tmp_path: Path) -> None:
    train(config(out=tmp_path / "a"))
    train(config(out=tmp_path / "b", workers=1))
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert lines(tmp_path / "a", "epoch") == lines(tmp_path / "b", "epoch")


@pytest.mark.parametrize(
    ("more", "signal_number"),
    [
        ("--model resnet32 --epochs 8 --amp off --drw-start 0.4", signal.SIGINT),
        # A processor without 16-bit instructions takes seconds for a step of these.
        pytest.param(
            "--model efficientnet-lite0 --weights none --epochs 2 --amp fp16", signal.SIGTERM, marks=pytest.mark.slow
        ),
        pytest.param(
            "--model resnet32 --epochs 3 --amp bf16 --ema 0.9 --grad-accum 2 --freeze-backbone-epochs 1",
            signal.SIGKILL,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_interrupted_training_goes_on_to_the_same_bits(
    config: Config, tmp_path: Path, more: str, signal_number: signal.Signals
) -> None:
    """Ctrl-C and SIGTERM after the step in hand, SIGKILL from the last checkpoint before it."""
    words = ["--shards", config().shards, "--batch-size", "10", "--lr", "0.01"]
    words += ["--device", "cpu", "--checkpoint-minutes", "0.0001", *more.split()]
    assert train_main([*words, "--out", str(tmp_path / "whole"), "--quiet"]) == 0
    words += ["--out", str(tmp_path / "parts")]
    process = subprocess.Popen(
        [sys.executable, "-m", "lmk_train.cli", *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    saved = tmp_path / "parts" / "checkpoints" / "last.pt"
    deadline = time.monotonic() + 240
    while not saved.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal_number)
    _, said = process.communicate(timeout=240)
    if signal_number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL, said
    else:
        assert process.returncode == 130, said
        assert "give the same command with --resume to go on at step" in said
    assert "Traceback" not in said
    stopped = torch.load(saved, weights_only=True)["progress"]["step"]
    assert 0 < stopped < 4 * int(words[words.index("--epochs") + 1])
    assert train_main([*words, "--resume", "--quiet", "--workers", "1"]) == 0
    for name in ("last.pt", "best.pt"):
        whole, parts = weights(tmp_path / "whole", name), weights(tmp_path / "parts", name)
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert lines(tmp_path / "whole", "epoch") == lines(tmp_path / "parts", "epoch")
    steps = [line["step"] for line in lines(tmp_path / "parts", "train")]
    assert steps == sorted(set(steps)), "lines after the checkpoint were cut"


def test_sigterm_that_comes_twice_saves_all_the_same(config: Config, tmp_path: Path) -> None:
    """As from a scheduler that signals every process of a job, and again from torchrun."""
    from lmk_train import loop

    step = loop.training_step

    def interrupting(trainer: Trainer, batches: Iterator[Batch]) -> None:
        step(trainer, batches)
        if trainer.progress.step == 2:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_step", interrupting)
        words = ["--model", "resnet32", "--epochs", "2", "--batch-size", "10", "--device", "cpu", "--quiet"]
        assert train_main(["--shards", config().shards, "--out", str(tmp_path / "run"), *words]) == 130
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert saved["progress"]["step"] == 2


def test_a_run_goes_on_where_auto_takes_another_precision(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """float16 scales gradients, float32 and bfloat16 do not: there is no scale to go on with."""
    for dtype in (None, torch.float16, torch.bfloat16):
        monkeypatch.setattr(precision, "_automatic", lambda _, dtype=dtype: dtype)
        train(config(model="resnet32", amp="auto", lr=0.01, head_lr=0.01, epochs=1, resume=dtype is not None))


def test_stopping_at_the_end_of_an_epoch_keeps_its_validation(config: Config, tmp_path: Path) -> None:
    """A request that comes within the last step of an epoch is heeded after its validation."""
    from lmk_train import loop

    train(config(out=tmp_path / "whole"))
    step = loop.training_step
    calls = []

    def interrupting(*arguments: object) -> None:
        step(*arguments)  # type: ignore[arg-type]
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_step", interrupting)
        with pytest.raises(KeyboardInterrupt, match="step 4"):
            train(config(out=tmp_path / "parts"))
    assert [line["epoch"] for line in lines(tmp_path / "parts", "epoch")] == [1]
    train(config(out=tmp_path / "parts", resume=True))
    assert lines(tmp_path / "whole", "epoch") == lines(tmp_path / "parts", "epoch")


def timed_lines(run: Path) -> list[dict[str, float]]:
    """The training lines of a run, whose shares of the time are sound."""
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in read if line["kind"] == "train"]
    for line in found:
        shares = [line[f"{what}_share"] for what in ("data", "copy", "compute")]
        assert all(0 <= share <= 1 for share in shares)
        assert sum(shares) == pytest.approx(1, abs=0.01)
        assert line["images_per_second"] > 0
    return found


def test_each_line_says_what_the_time_went_into(config: Config, tmp_path: Path) -> None:
    """Waiting for a slow reader or for the order is waiting; saving is in no share and in no rate."""

    slept = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + slept[0])

    def save(*_: object) -> None:
        slept[0] += 1000

    def slowed(owner: object, name: str, slow: Callable[..., object]) -> dict[str, float]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, slow)
            patch.setattr(record, "time", clock)
            run = tmp_path / name
            train(config(out=run, model="resnet32", weights=None, workers=1, epochs=1, checkpoint_minutes=1e-6))
        (line,) = timed_lines(run)
        return line

    def late(called: Callable[..., object]) -> Callable[..., object]:
        return lambda *arguments: (time.sleep(0.5), called(*arguments))[1]

    for owner, name in ((SplitReader, "decode"), (trainer, "epoch_order")):
        line = slowed(owner, name, late(getattr(owner, name)))
        assert line["data_share"] * 40 / line["images_per_second"] >= 0.49, "seconds of the first batch"
    assert slowed(record, "save_checkpoint", save)["images_per_second"] > 40 / 1000


def test_a_metric_of_no_class_is_refused_before_anything_is_written(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--best-by many_accuracy: the validation split has no class that it is"):
        train(config(best_by="many_accuracy"))
    assert not (tmp_path / "run").exists()


def test_resume_refuses_another_training(config: Config, tmp_path: Path, dataset_path: Path) -> None:
    with pytest.raises(UserError, match="has no checkpoint to go on from"):
        train(config(resume=True))
    train(config(epochs=1))
    with pytest.raises(UserError, match="holds a run; go on with --resume or name another folder"):
        train(config(epochs=1))
    with pytest.raises(UserError, match=r"--lr was 0\.0003, is 0\.1; --loss was ldam, is ce|--loss was ldam, is ce"):
        train(config(epochs=1, resume=True, loss="ce", head="cosine"))
    other = tmp_path / "other"
    shutil.copytree(dataset_path, other)
    manifest = (other / "dataset.json").read_text()
    digest = json.loads(manifest)["content_sha256"]
    (other / "dataset.json").write_text(
        manifest.replace(f'"content_sha256":"{digest}"', f'"content_sha256":"{"0" * 64}"')
    )
    with pytest.raises(UserError, match="is not the dataset that the run was trained on"):
        train(config(epochs=1, resume=True, shards=str(other)))
    moved = tmp_path / "moved"
    shutil.copytree(dataset_path, moved)
    train(config(epochs=1, resume=True, shards=str(moved)))


@pytest.mark.parametrize("model", [pytest.param("resnet50", marks=pytest.mark.slow), "efficientnet-b0"])
@pytest.mark.parametrize("loss", ["ce", "ldam"])
def test_every_model_learns_from_scratch(config: Config, tmp_path: Path, model: str, loss: str) -> None:
    train(config(model=model, loss=loss, epochs=4, warmup_epochs=0.0, amp="auto"))
    losses = [line["train_loss"] for line in lines(tmp_path / "run", "epoch")]
    assert losses[-1] < losses[0]


def test_the_papers_network_learns_with_every_remedy(config: Config, tmp_path: Path) -> None:
    chosen = {"model": "resnet32", "weights": None, "lr": 0.02, "head_lr": 0.02, "warmup_epochs": 0.0, "epochs": 6}
    remedies = {"drw_start": 0.5, "ema": 0.5, "sampling": "repeat-factor", "clip_grad": 5.0, "drop_rate": 0.1}
    train(config(loss="balanced-softmax", **chosen, **remedies))
    losses = [line["train_loss"] for line in lines(tmp_path / "run", "epoch")]
    assert losses[-1] < losses[0]


def test_a_loss_that_is_not_finite_stops_with_the_step_the_rate_and_the_pictures(
    config: Config, tmp_path: Path, dataset: ShardedDataset
) -> None:
    changes = {"optimizer": "sgd", "lr": 1e30, "head_lr": 1e30, "warmup_epochs": 0.0, "loss": "ce", "batch_size": 4}
    with pytest.raises(
        TrainingError, match=r"not finite at step [12] \(learning rate 9\.\d+e\+29, pictures "
    ) as caught:
        train(config(**changes))
    named = str(caught.value).split("pictures ")[1].split(")")[0].split(", ")
    assert len(named) == 4
    assert set(named) <= set(dataset.index("train")["key"])
    assert not (tmp_path / "run" / "checkpoints").exists(), "nothing that is not finite is kept"
    assert f"{tmp_path}/run/nonfinite.json names them all" in str(caught.value)
    assert json.loads((tmp_path / "run" / "nonfinite.json").read_text())["keys"] == named


DIVERGING = {"model": "resnet32", "loss": "ce", "optimizer": "sgd", "lr": 1e30, "head_lr": 1e30, "warmup_epochs": 0.0}


def test_nonfinite_json_has_the_pictures_that_the_line_has_no_room_for(config: Config, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"not finite at step \d+ .* and 2 more\)"):
        train(config(**DIVERGING))
    assert len(set(json.loads((tmp_path / "run" / "nonfinite.json").read_text())["keys"])) == 10


@pytest.mark.parametrize(("rate", "what"), [(1e30, "the validation loss is"), (1e60, "the weights are")])
def test_an_epochs_last_update_that_diverges_is_found_by_validation(
    config: Config, dataset: ShardedDataset, tmp_path: Path, rate: float, what: str
) -> None:
    """With one step an epoch no loss of the epoch shows it."""
    changes = {**DIVERGING, "lr": rate, "head_lr": rate, "batch_size": dataset.num_samples("train")}
    with pytest.raises(TrainingError, match=f"{what} not finite at step 0 "):
        train(config(**changes))
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_weights_that_are_not_finite_never_replace_a_checkpoint(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save is due after every step; the third one's update is not finite though its loss was."""
    from lmk_train import loop

    step = loop.training_step

    def breaking(trainer: Trainer, batches: Iterator[Batch]) -> None:
        step(trainer, batches)
        if trainer.progress.step == 3:
            next(trainer.model.backbone.parameters()).data[0, 0, 0, 0] = torch.nan

    monkeypatch.setattr(loop, "training_step", breaking)
    with pytest.raises(TrainingError, match="the weights are not finite at step 2 "):
        train(config(model="resnet32", checkpoint_minutes=1e-8))
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert last["progress"]["step"] == 2
    assert all(value.isfinite().all() for value in last["model"].values())


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_ended_before_its_first_checkpoint_starts_anew(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    from lmk_train import loop

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config(model="resnet32"))
    run, said = tmp_path / "run", list[str]()
    (run / "metrics.jsonl").write_text('{"kind": "train", "step": 0}\n')
    (run / "tensorboard" / "events.of.before").touch()
    assert rehearse(config(model="resnet32", resume=resume), lambda _: None).num_steps == 8
    train(config(model="resnet32", resume=resume), said.append)
    assert f"{run}: the training there ended before its first checkpoint; it starts anew" in said
    assert [line["step"] for line in lines(run, "train")] == [4, 8]
    assert not (run / "tensorboard" / "events.of.before").exists()
    assert json.loads((run / "config.json").read_text())["resume"] is False


def test_two_trainings_never_share_a_folder(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmk_train import loop

    step, refused = loop.training_step, []

    def beside_others(trainer: Trainer, batches: Iterator[Batch]) -> None:
        for resume in (False, True):  # before the first checkpoint both would start anew
            with pytest.raises(UserError, match="run: another training is at work there") as error:
                train(config(model="resnet32", seed=1, resume=resume))
            refused.append(error)
        step(trainer, batches)

    monkeypatch.setattr(loop, "training_step", beside_others)
    train(config(model="resnet32", seed=2))
    assert len(refused) == 16
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 2
    monkeypatch.undo()
    train(config(model="resnet32", seed=2, resume=True))


def test_a_run_that_ended_between_its_best_and_its_first_checkpoint_starts_anew(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmk_train import record

    def no_space(run: Path, name: str, state: dict[str, object]) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "save_checkpoint", no_space)
        with pytest.raises(OSError, match="No space left"):
            train(config(model="resnet32"))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["best.pt"]
    train(config(model="resnet32", resume=True))
    assert [line["epoch"] for line in lines(tmp_path / "run", "epoch")] == [1, 2]


def test_a_signal_while_the_processes_agree_is_heeded() -> None:
    from lmk_train.stopping import Stop

    class Asking(World):
        def most(self, value: int) -> int:
            stop.requested = True  # the handler runs as soon as the call returns
            return value

    stop = Stop()
    assert not stop.agreed(Asking(), False)
    stop.heed(3)  # the others know nothing of it yet
    assert stop.agreed(Asking(), False)
    with pytest.raises(KeyboardInterrupt, match="at step 4"):
        stop.heed(4)


def test_running_out_of_memory_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dataset_path: Path, tmp_path: Path
) -> None:
    from lmk_train import loop

    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.\nand more")

    monkeypatch.setattr(loop, "training_step", out_of_memory)
    words = ["--shards", str(dataset_path), "--out", str(tmp_path / "run"), "--model", "resnet32", "--batch-size", "9"]
    assert train_main([*words, "--device", "cpu", "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        "lmk-train: error: out of memory (CUDA out of memory. Tried to allocate 8.00 GiB.); a smaller"
    )
    assert error.count("\n") == 1


def test_a_folder_of_something_else_is_never_started_in(config: Config, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.write_text("a file")
    with pytest.raises(UserError, match="run: is not a folder"):
        train(config())
    run.unlink()
    run.mkdir()
    (run / "config.json").write_text('{"architectures": ["another tool\'s"]}')
    for refused in (train, lambda config: rehearse(config, lambda _: None)):
        with pytest.raises(UserError, match="run: is not empty; name another"):
            refused(config())
    with pytest.raises(UserError, match="has no checkpoint to go on from"):
        train(config(resume=True))
    (run / "config.json").unlink()
    train(config(model="resnet32", epochs=1))
    (run / "checkpoints" / "last.pt").unlink()
    with pytest.raises(UserError, match="run: is not empty; name another"):
        train(config(model="resnet32", epochs=1))
    assert (run / "checkpoints" / "best.pt").exists()


def test_only_the_path_of_the_same_weights_may_change_on_resume(config: Config, tmp_path: Path) -> None:
    first, other = (build_model("resnet32", 3, head="linear", scale=None, picture_size=64) for _ in range(2))
    torch.save(first.state_dict(), tmp_path / "first.pt")
    torch.save(other.state_dict(), tmp_path / "other.pt")
    chosen = {"model": "resnet32", "epochs": 1}
    train(config(**chosen, weights=str(tmp_path / "first.pt")))
    for changed in (str(tmp_path / "other.pt"), "none", str(tmp_path / "absent.pt")):
        with pytest.raises(UserError, match=rf"--resume: --weights was .*first\.pt, is {changed}; give"):
            train(config(**chosen, weights=changed, resume=True))
    (tmp_path / "first.pt").rename(tmp_path / "moved.pt")
    for path in ("first.pt", "moved.pt"):
        train(config(**chosen, weights=str(tmp_path / path), resume=True))


def test_a_frozen_backbone_stays_as_it_is_until_it_thaws(config: Config, tmp_path: Path) -> None:
    frozen = {"weights": "imagenet", "freeze_backbone_epochs": 1}
    train(config(out=tmp_path / "frozen", epochs=1, **frozen))
    train(config(out=tmp_path / "thawed", epochs=2, **frozen))
    start = build_model("efficientnet-lite0", 5, head="cosine", scale=30.0, picture_size=64)
    load_weights(start, "efficientnet-lite0", "imagenet")
    before, after, thawed = start.state_dict(), weights(tmp_path / "frozen"), weights(tmp_path / "thawed")
    backbone = [name for name in before if name.startswith("backbone.")]
    assert all(torch.equal(before[name], after[name]) for name in backbone)
    moved = [name for name in backbone if not torch.equal(before[name], thawed[name])]
    assert any("running_mean" in name for name in moved)
    assert any("_conv_stem.weight" in name for name in moved)


def test_averaged_weights_are_the_formula_and_are_what_is_kept(config: Config, tmp_path: Path) -> None:
    from lmk_train import loop

    step, decay = loop.training_step, 0.3
    expected: dict[str, torch.Tensor] = {}

    def recording(trainer: Trainer, batches: Iterator[Batch]) -> None:
        done = trainer.progress.step
        step(trainer, batches)
        kept = min(decay, (1 + done) / (10 + done))
        for name, value in trainer.model.state_dict().items():
            if not done or not value.is_floating_point():
                expected[name] = value.clone()
            else:
                expected[name] = kept * expected[name] + (1 - kept) * value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_step", recording)
        train(config(ema=decay, epochs=1))
    for name, value in weights(tmp_path / "run", "best.pt").items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert all(
        torch.equal(weights_to_evaluate(last)[name], value)
        for name, value in weights(tmp_path / "run", "best.pt").items()
    )


@pytest.mark.parametrize(
    ("loss", "head"),
    [("ce", "linear"), ("ce", "cosine"), ("ldam", "cosine"), ("ldam", "linear"), ("balanced-softmax", "linear")],
)
def test_a_dry_run_says_the_loss_that_training_starts_with_and_writes_nothing(
    config: Config, tmp_path: Path, loss: str, head: str
) -> None:
    found = rehearse(config(loss=loss, head=head, dry_run=True, batch_size=20, weights="imagenet"), lambda _: None)
    assert found.first_loss == pytest.approx(found.expected_loss, rel=0.15)
    assert found.head_parameters == 1280 * 5 + (5 if head == "linear" else 0)
    library = EfficientNet.from_name("efficientnet-lite0")
    assert found.backbone_parameters == num_parameters(library) - num_parameters(library._fc)
    assert found.weights_bytes == 16 * (found.head_parameters + found.backbone_parameters)
    assert found.activations_bytes > 20 * 64 * 64 * 3
    assert not (tmp_path / "run").exists()


def test_a_dry_run_counts_what_the_largest_step_takes(config: Config) -> None:
    """A backbone that thaws is trained in the end; one that never does has no gradients."""
    frozen = [rehearse(config(freeze_backbone_epochs=epochs), lambda _: None) for epochs in (0, 1, 2)]
    assert frozen[1].weights_bytes == frozen[0].weights_bytes > frozen[2].weights_bytes
    assert frozen[1].activations_bytes == frozen[0].activations_bytes > frozen[2].activations_bytes


def test_micro_batches_as_large_as_the_last_of_validation(config: Config, options: Callable[..., BuildOptions]) -> None:
    """What validation preprocessed, in inference mode, is not written over for training."""
    out = build(options(rule=PlanRule(split=(0.5, 0.3, 0.2), samples_per_shard=8)))
    rest = out.manifest["splits"]["val"]["num_samples"] % 12
    assert rest == 6
    train(config(shards=str(options().out), model="resnet32", batch_size=12, grad_accum=2))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_update_that_overflows_leaves_no_trace(name: str) -> None:
    def updated(overflows: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = build_model("resnet32", 3, head="linear", scale=None, picture_size=32)
        optimizer = make_optimizer(model, name, lr=0.1, head_lr=0.1, weight_decay=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0, backoff_factor=1.0 - 2**-20)
        dirty = [torch.full_like(parameter, torch.nan) for parameter in model.parameters()]
        del dirty  # what is allocated next is most often this memory
        for step in range(overflows + 2):
            loss = sum((p * p).sum() for p in model.parameters()) * (torch.inf if step < overflows else 1.0)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return model.state_dict()

    expected, found = updated(0), updated(3)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_updates_that_overflow_in_float16_are_skipped_and_counted(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """A scale that is far too large overflows until it has been halved often enough."""
    monkeypatch.setattr(Precision, "grad_scaler", lambda _: torch.amp.GradScaler("cpu", init_scale=2.0**40))
    train(config(amp="fp16", epochs=1, optimizer=optimizer))
    last = lines(tmp_path / "run", "train")[-1]
    assert last["step"] == 4
    assert last["skipped_updates"] >= 3
    assert last["grad_scale"] == 2.0 ** (40 - last["skipped_updates"])
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())


@pytest.mark.parametrize("grad_accum", [1, 3])
def test_a_weighted_loss_is_the_sum_of_w_l_over_the_sum_of_w(
    config: Config, dataset: ShardedDataset, tmp_path: Path, grad_accum: int
) -> None:
    """The gradient of one step's head against float64 over the whole batch at once."""
    chosen = {"loss": "ce", "head": "linear", "drw_start": 0.0, "freeze_backbone_epochs": 2, "drop_rate": 0.0}
    with put_together(config(weights="imagenet", grad_accum=grad_accum, **chosen), dataset, tmp_path) as (
        trainer,
        batches,
    ):
        head = copy.deepcopy(trainer.model.head).double()
        training_step(trainer, batches)
        picks = trainer.global_batch(0)
        pixels = np.empty((len(picks), *trainer.train.shape), np.uint8)
        trainer.train.decode(picks, pixels)
        with torch.no_grad():
            draws = augmentation_draws(picks, trainer.config.seed, 0)
            features = trainer.model.backbone(trainer.preprocess(torch.from_numpy(pixels), draws)).double()
        labels = torch.from_numpy(trainer.train.labels[picks])
        w = drw_weights(dataset.classes["train"].to_numpy()).double()[labels]
        assert len(w.unique()) > 1, "the samples do not all weigh the same"
        losses = torch.nn.functional.cross_entropy(head(features), labels, reduction="none")
        ((w * losses).sum() / w.sum()).backward()
        for ours, exact in zip(trainer.model.head.parameters(), head.parameters(), strict=True):
            assert ours.grad is not None
            assert exact.grad is not None
            torch.testing.assert_close(ours.grad.double(), exact.grad, atol=1e-6, rtol=1e-4)


def test_gradients_are_unscaled_before_they_are_clipped(
    config: Config, dataset: ShardedDataset, tmp_path: Path
) -> None:
    """One float16 step, its gradients scaled by 65,536, moves the head as a float32 step does."""
    chosen = {"freeze_backbone_epochs": 2, "drop_rate": 0.0, "optimizer": "sgd", "head_lr": 1.0}
    chosen |= {"weights": "imagenet", "weight_decay": 0.0, "clip_grad": 0.01}
    moves = []
    for amp in ("off", "fp16"):
        with put_together(config(amp=amp, **chosen), dataset, tmp_path) as (trainer, batches):
            assert trainer.scaler.get_scale() == (65536 if amp == "fp16" else 1)
            before = trainer.model.head.weight.detach().clone()
            training_step(trainer, batches)
            moves.append(trainer.model.head.weight.detach() - before)
    rate = 1.9 * trainer.rate_factor(0)  # Nesterov's first step is 1 + 0.9 gradients long
    assert [float(move.norm()) for move in moves] == pytest.approx([0.01 * rate] * 2, rel=1e-3)
    assert torch.nn.functional.cosine_similarity(moves[0].flatten(), moves[1].flatten(), dim=0) > 0.99


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_norms_and_biases_do_not_decay_and_the_head_has_its_own_rate(name: str) -> None:
    model = build_model("resnet50", 3, head="linear", scale=None, picture_size=64)
    optimizer = make_optimizer(model, name, lr=0.1, head_lr=0.2, weight_decay=0.3)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(found)
    expected = {}
    for module_name, module in model.named_modules():
        plain = isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        for parameter_name, parameter in module.named_parameters(recurse=False):
            decay = 0.0 if plain or parameter_name == "bias" else 0.3
            expected[id(parameter)] = (0.2 if module_name.startswith("head") else 0.1, decay)
    assert found == expected
    assert set(expected.values()) == {(rate, decay) for rate in (0.1, 0.2) for decay in (0.0, 0.3)}


def test_the_earlier_of_two_epochs_as_good_is_the_best(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmk_train import loop

    scores = iter([0.5, 0.75, 0.75, 0.25])
    summarize = loop.summarize
    monkeypatch.setattr(loop, "summarize", lambda *given: {**summarize(*given), "macro_f1": next(scores)})
    result = train(config(model="resnet32", epochs=4), evaluate_test=False)
    assert (result.best_epoch, result.best_metric) == (2, 0.75)


def test_tensorboard_shows_no_step_twice_after_a_resume(config: Config, tmp_path: Path) -> None:
    """What was written after the checkpoint is purged, as it is cut from metrics.jsonl."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    chosen = {"model": "resnet32", "epochs": 3}
    train(config(**chosen))
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    state["progress"]["step"] = 4
    state["epoch_sums"] = dict.fromkeys(state["epoch_sums"], 0)
    torch.save(state, run / "checkpoints" / "last.pt")
    train(config(**chosen, resume=True))
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [4, 8, 12]
    assert [event.step for event in events.Scalars("epoch/val_macro_f1")] == [4, 8, 12]


@pytest.mark.slow
def test_a_compiled_backbone_computes_the_same_and_its_weights_load_anywhere(config: Config, tmp_path: Path) -> None:
    """With rates so small that rounding cannot grow."""
    chosen = {"model": "resnet32", "weights": None, "epochs": 1, "lr": 1e-6, "head_lr": 1e-6, "warmup_epochs": 0.0}
    train(config(compile=True, **chosen))
    train(config(out=tmp_path / "eager", **chosen))
    compiled, eager = (lines(tmp_path / name, "epoch")[-1] for name in ("run", "eager"))
    assert compiled["train_loss"] == pytest.approx(eager["train_loss"], rel=1e-4)
    assert weights(tmp_path / "run").keys() == weights(tmp_path / "eager").keys()


def test_a_full_disk_keeps_the_last_good_checkpoint(config: Config, tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for the disk: the second save does not fit any more."""
    train(config(epochs=1))
    saved = (tmp_path / "run" / "checkpoints" / "last.pt").read_bytes()
    code = (
        "import resource, signal, sys; from lmk_train.cli import train_main;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, -1));"
        "sys.exit(train_main())"
    )
    shutil.rmtree(tmp_path / "run" / "tensorboard")
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    state["progress"]["step"] -= 1
    torch.save(state, tmp_path / "run" / "checkpoints" / "last.pt")
    saved = (tmp_path / "run" / "checkpoints" / "last.pt").read_bytes()
    words = [
        "--shards",
        config().shards,
        "--out",
        str(tmp_path / "run"),
        "--model",
        "efficientnet-lite0",
        "--epochs",
        "1",
    ]
    words += ["--batch-size", "10", "--device", "cpu", "--amp", "off", "--weights", "none", "--quiet", "--resume"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot be saved" in done.stderr
    assert "the earlier checkpoint is whole" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "last.pt").read_bytes() == saved


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cosine-scale", "20", "--loss", "ce"], "a linear head's logits are not scaled"),
        (["--label-smoothing", "0.1"], "--label-smoothing goes with --loss ce"),
        (["--ldam-max-margin", "0.3", "--loss", "ce"], "--ldam-max-margin goes with --loss ldam, not with ce"),
        (["--warmup-epochs", "3", "--epochs", "2"], "--warmup-epochs 3: more than the 2 epochs of the training"),
        (["--sync-bn", "--device", "cpu"], "--sync-bn: works on CUDA only"),
        (["--drw-start", "1"], "--drw-start 1.0: must be from 0, below 1"),
        (["--ema", "1"], "--ema 1.0: must be between 0 and 1"),
        (["--dry-run", "--profile-input"], "give one of them"),
        (["--epochs", "0"], "--epochs 0: must be at least 1"),
        (["--lr", "-1"], "--lr -1.0: must be above 0"),
        (["--batch-size", "1000"], "--batch-size 1000: more than the"),
        (["--weights", "nowhere.pt"], "--weights nowhere.pt: no such file"),
        (["--shards", "nowhere"], "nowhere/dataset.json: no such file"),
        *([] if torch.cuda.is_available() else [(["--device", "cuda"], "no CUDA device is there")]),
    ],
)
def test_mistakes_are_one_line_and_exit_1(
    words: list[str], said: str, dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    given = ["--shards", str(dataset_path), "--out", str(run), "--model", "efficientnet-lite0", *words]
    assert train_main(given) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not run.exists()


def test_one_picture_of_one_place_is_nothing_to_normalise(
    config: Config, options: Callable[..., BuildOptions], tmp_path: Path
) -> None:
    """32 pixels are one place of the last map; a frozen backbone does not normalise by the batch."""
    build(options(recipe=Recipe(size=32)))
    small = config(shards=str(tmp_path / "shards"), batch_size=3, grad_accum=2, epochs=1)
    with pytest.raises(UserError, match="--batch-size 3: leaves micro-batches of one picture, whose 32 pixels"):
        train(small)
    assert not (tmp_path / "run").exists()
    train(replace(small, freeze_backbone_epochs=1))
    train(config(out=tmp_path / "larger", batch_size=3, grad_accum=2, epochs=1))


def test_the_default_warm_up_is_at_most_an_eighth_of_the_training() -> None:
    found = [TrainConfig("shards", epochs=epochs).resolved().warmup_epochs for epochs in (None, 16, 2)]
    assert found == [1.0, 1.0, 0.25]
    paper = [TrainConfig("shards", model="resnet32", epochs=epochs).resolved().warmup_epochs for epochs in (None, 8)]
    assert paper == [5.0, 1.0]


def test_evaluation_refuses_what_does_not_fit(
    config: Config, tmp_path: Path, dataset_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert eval_main([str(tmp_path)]) == 1
    assert "is " in capsys.readouterr().err
    train(config(epochs=1))
    other = tmp_path / "other"
    shutil.copytree(dataset_path, other)
    classes = pd.read_parquet(other / "classes.parquet")
    classes["landmark_id"] += 1_000_000
    classes.to_parquet(other / "classes.parquet")
    assert eval_main([str(tmp_path / "run"), "--shards", str(other)]) == 1
    assert "has none of the 5 classes of the run" in capsys.readouterr().err
    assert eval_main([str(tmp_path / "run"), "--split", "val"]) == 0
    assert "val (" in capsys.readouterr().out


def test_profiling_says_what_limits_and_writes_nothing(
    dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bottleneck, "_SECONDS", 0.3)
    given = ["--shards", str(dataset_path), "--out", str(tmp_path / "run"), "--model", "resnet32", "--device", "cpu"]
    assert train_main([*given, "--batch-size", "10", "--profile-input"]) == 0
    said = capsys.readouterr().out
    for what in ("images a second of one process:", "reader alone", "model alone", "both"):
        assert what in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("reader", "model", "both", "said"),
    [
        (1000, 100, 96, "the model limits; the reader could feed 10.0 times as much"),
        (50, 100, 48, "the reader limits: give it more --workers, or shards on a faster disk"),
        (150, 100, 80, "each alone is faster than training is (20% lost)"),
    ],
)
def test_what_a_profile_says(reader: float, model: float, both: float, said: str) -> None:
    assert bottleneck.InputProfile(0, reader, model, both).verdict().endswith(said)


def test_float32_is_not_rounded_to_tf32() -> None:
    """Whatever was chosen before, by a variable of the environment too."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    resolve_device("cpu")
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


def test_learning_rate_schedules() -> None:
    cosine = [lr_factor(step, 100, 10, "cosine") for step in range(100)]
    assert np.all(np.diff(cosine[:11]) > 0)
    assert cosine[10] == 1.0
    assert np.all(np.diff(cosine[10:]) < 0)
    assert 0 < cosine[-1] < 0.001
    steps = [lr_factor(step, 100, 0, "step") for step in range(100)]
    assert steps[:80] == [1.0] * 80
    assert steps[80:90] == pytest.approx([0.01] * 10)
    assert steps[90:] == pytest.approx([0.0001] * 10)
    assert math.isclose(lr_factor(0, 100, 4, "cosine"), 0.2)


def test_commands_start_without_torch() -> None:
    """`--help` of every command is quick, and lmk_data never needs torch."""
    check = "import sys; import lmk_data.cli, lmk_data.build, lmk_data.dataset; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
    check = "import sys; import lmk_train.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
