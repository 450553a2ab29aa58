"""A resumed training ends with the same bits, and which trainings are not resumed."""

import copy
import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lmk_data.build import BuildOptions, build
from lmk_data.dataset import ShardedDataset
from lmk_data.dataset.format import content_sha256_of
from lmk_data.errors import StorageError, UserError
from lmk_data.options import PlanRule
from lmk_train.cli import train_main
from lmk_train.config.commands import EvalConfig
from lmk_train.evaluation.evaluate import evaluate_run
from lmk_train.models.heads import Classifier
from lmk_train.runtime import precision
from lmk_train.training import loop, record
from lmk_train.training.dry_run import dry_run
from lmk_train.training.loop import train
from tests import forked
from tests.train.networks import network
from tests.train.run_files import Config, lines, weights
from tests.train.training import recorded_training
from tests.train.updates import after_each_update


@pytest.mark.parametrize(
    ("more", "stop"),
    [
        pytest.param(
            "--model resnet32 --epochs 2 --amp off --drw-start 0.6 --mixup 0.4 --cutmix 1",
            "3 SIGINT",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "--model resnet32 --loss arcface --pool gem --neck 16 --epochs 2 --amp bf16 --ema 0.9 --grad-accum 2 "
            "--freeze-backbone-epochs 1",
            "6 SIGKILL",
            marks=pytest.mark.slow,
        ),
        # A processor without 16-bit instructions takes seconds for a step of these.
        pytest.param(
            "--model efficientnet-lite0 --weights none --epochs 1 --amp fp16", "2 SIGTERM", marks=pytest.mark.slow
        ),
    ],
)
def test_interrupted_training_goes_on_to_the_same_bits(
    dataset_path: Path, tmp_path: Path, more: str, stop: str
) -> None:
    """Ctrl-C and SIGTERM after the step in hand, SIGKILL from the last checkpoint before it."""
    words = ["--shards", str(dataset_path), "--batch-size", "10", "--lr", "0.01"]
    words += ["--device", "cpu", "--checkpoint-minutes", "0.000001", *more.split()]
    assert train_main([*words, "--out", str(tmp_path / "whole"), "--quiet"]) == 0
    words += ["--out", str(tmp_path / "parts")]
    code, said = forked.run(recorded_training.main, [str(tmp_path / "log"), stop, *words], tmp_path / "said.txt")
    step, number = int(stop.split(maxsplit=1)[0]), signal.Signals[stop.split()[1]]
    saved = torch.load(tmp_path / "parts" / "checkpoints" / "last.pt", weights_only=True)["progress"]["step"]
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL, said
        assert saved == step - 1
    else:
        assert code == 130, said
        assert f"give the same command with --resume to resume at step {step}" in said
        assert saved == step
    assert "Traceback" not in said
    assert train_main([*words, "--resume", "--quiet", "--workers", "1"]) == 0
    for name in ("last.pt", "best.pt"):
        whole, parts = weights(tmp_path / "whole", name), weights(tmp_path / "parts", name)
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert lines(tmp_path / "whole", "epoch") == lines(tmp_path / "parts", "epoch")
    steps = [line["step"] for line in lines(tmp_path / "parts", "train")]
    assert steps == sorted(set(steps)), "lines after the checkpoint were cut"


def test_a_run_goes_on_where_auto_takes_another_precision(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """float16 scales gradients, float32 and bfloat16 do not: there is no scale to resume with."""
    for dtype in (None, torch.float16, torch.bfloat16):
        monkeypatch.setattr(precision, "_automatic_dtype", lambda _, dtype=dtype: dtype)
        train(config(model="resnet32", amp="auto", lr=0.01, head_lr=0.01, epochs=1, resume=dtype is not None))


def test_resume_refuses_another_training(config: Config, tmp_path: Path, dataset_path: Path) -> None:
    with pytest.raises(UserError, match="has no checkpoint to resume from"):
        train(config(resume=True))
    train(config(epochs=1))
    with pytest.raises(UserError, match="holds a run; resume it with --resume or name another folder"):
        train(config(epochs=1))
    with pytest.raises(UserError, match="--loss was balanced-softmax, is ce"):
        train(config(epochs=1, resume=True, loss="ce"))
    other = tmp_path / "other"
    shutil.copytree(dataset_path, other)
    manifest = json.loads((other / "dataset.json").read_text())
    manifest["files"]["README.md"]["sha256"] = "0" * 64
    manifest["content_sha256"] = content_sha256_of(manifest["files"])
    (other / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is not the dataset that the run was trained on"):
        train(config(epochs=1, resume=True, shards=str(other)))
    moved = tmp_path / "moved"
    shutil.copytree(dataset_path, moved)
    train(config(epochs=1, resume=True, shards=str(moved)))


def test_a_checkpoint_whose_optimiser_does_not_fit_is_refused(config: Config, tmp_path: Path) -> None:
    """A fused kernel writes where it expects the values of each parameter."""
    train(config(model="resnet32", epochs=1))
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    whole = torch.load(path, weights_only=True)

    def other_shape(state: dict[str, Any]) -> None:
        state["momentum_buffer"] = torch.ones(1)

    def no_number(state: dict[str, Any]) -> None:
        state["momentum_buffer"] = "text"

    def other_name(state: dict[str, Any]) -> None:
        state["exp_avg"] = state.pop("momentum_buffer")

    for damage in (other_shape, no_number, other_name, dict.clear):
        damaged = copy.deepcopy(whole)
        damage(damaged["optimizer"]["state"][0])
        torch.save(damaged, path)
        with pytest.raises(UserError, match=r"last\.pt: its state does not fit its configuration"):
            train(config(model="resnet32", epochs=1, resume=True))
    without = copy.deepcopy(whole)
    without["optimizer"]["param_groups"] = [{} for _ in without["optimizer"]["param_groups"]]
    torch.save(without, path)
    train(config(model="resnet32", epochs=1, resume=True))


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_ended_before_its_first_checkpoint_starts_anew(config: Config, tmp_path: Path, resume: bool) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with after_each_update(killed), pytest.raises(KeyboardInterrupt):
        train(config(model="resnet32"))
    run, said = tmp_path / "run", list[str]()
    (run / "metrics.jsonl").write_text('{"kind": "train", "step": 0}\n')
    (run / "tensorboard" / "events.of.before").touch()
    assert dry_run(config(model="resnet32", resume=resume), lambda _: None).num_steps == 8
    train(config(model="resnet32", resume=resume), said.append)
    assert f"{run}: the training there ended before its first checkpoint; it starts again" in said
    assert [line["step"] for line in lines(run, "train")] == [4, 8]
    assert not (run / "tensorboard" / "events.of.before").exists()
    assert json.loads((run / "config.json").read_text())["resume"] is False


@pytest.mark.slow
def test_a_run_that_ended_between_its_best_and_its_first_checkpoint_starts_anew(
    config: Config, options: Callable[..., BuildOptions], tmp_path: Path
) -> None:
    """The disk is full when the second file is written. Without validation the best weights are the first."""
    build(options(rule=PlanRule(split=(0.8, 0.0, 0.2), samples_per_shard=8)))
    chosen = config(shards=str(options().out))
    save, saved = torch.save, []

    def no_space(state: object, file: object) -> None:
        if saved:
            raise OSError(28, "No space left on device")
        save(state, file)  # type: ignore[arg-type]
        saved.append(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", no_space)
        with pytest.raises(StorageError, match="No space left"):
            train(chosen)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["best.pt"]
    train(replace(chosen, resume=True))
    assert [line["epoch"] for line in lines(tmp_path / "run", "epoch")] == [1, 2]


@pytest.mark.parametrize(
    "fails_at",
    ["validation", pytest.param("best", marks=pytest.mark.slow), pytest.param("last", marks=pytest.mark.slow)],
)
def test_an_epoch_whose_validation_failed_is_resumed_with_it(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    """The updates of the epoch are not lost, its metrics are there once, and the end is the same to the bit."""
    chosen = {"ema": 0.5, "epochs": 2}
    train(config(out=tmp_path / "whole", **chosen), evaluate_test=False)
    updates, saved = list[int](), list[str]()
    save = loop.save_checkpoint

    def failing_save(run: Path, name: str, state: dict[str, object]) -> None:
        saved.append(name)
        if name == fails_at and saved.count(name) == (2 if name == "last" else 1):
            raise StorageError("No space left on device")
        save(run, name, state)

    def failing_prediction(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", failing_save)
        patch.setattr(record, "save_checkpoint", failing_save)
        if fails_at == "validation":
            patch.setattr(loop.Evaluator, "predict", failing_prediction)
        with pytest.raises((torch.OutOfMemoryError, StorageError)):
            train(config(**chosen), evaluate_test=False)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("*.tmp")] == []
    with after_each_update(lambda number, _: updates.append(number)):
        train(config(resume=True, **chosen), evaluate_test=False)
    assert len(updates) == 4, "the second epoch alone"
    assert lines(tmp_path / "run", "epoch") == lines(tmp_path / "whole", "epoch")
    assert lines(tmp_path / "run", "train") == lines(tmp_path / "whole", "train")
    for name in ("last.pt", "best.pt"):
        whole, parts = weights(tmp_path / "whole", name), weights(tmp_path / "run", name)
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    for shown in ("train/loss", "epoch/val_macro_f1"):
        assert [event.step for event in events.Scalars(shown)] == [4, 8]


def test_validation_and_evaluation_have_as_many_pictures_at_once_as_training(
    config: Config, dataset: ShardedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More would run out of memory at the end of the first epoch."""
    sizes: dict[bool, set[int]] = {True: set(), False: set()}
    forward = Classifier.forward

    def counted(self: Classifier, pictures: torch.Tensor) -> torch.Tensor:
        sizes[self.training].add(len(pictures))
        return forward(self, pictures)

    monkeypatch.setattr(Classifier, "forward", counted)
    assert min(dataset.num_samples(split) for split in ("val", "test")) > 3
    train(config(epochs=1, grad_accum=4))
    assert max(sizes[True]) == max(sizes[False]) == 3
    assert evaluate_run(EvalConfig(config().out, device="cpu", amp="off", quiet=True))
    assert max(sizes[False]) == 3


@pytest.mark.slow
def test_only_the_path_of_the_same_weights_may_change_on_resume(config: Config, tmp_path: Path) -> None:
    first, other = (network("resnet32", 3, 64) for _ in range(2))
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


@pytest.mark.slow
def test_tensorboard_shows_no_step_twice_after_a_resume(config: Config, tmp_path: Path) -> None:
    """What was written after the checkpoint is purged, as it is cut from metrics.jsonl."""
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
