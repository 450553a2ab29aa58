"""What a training writes into its run: metrics.jsonl, TensorBoard events and checkpoints; cut on resume."""

import json
import time
from typing import Any, TextIO

import torch
from torch.utils.tensorboard import SummaryWriter

from lmk_data.system.files import make_folder, write_bytes
from lmk_train.runs.checkpoint import LAST, save_checkpoint
from lmk_train.runs.classes import dataset_state
from lmk_train.runs.folder import RunFolder
from lmk_train.runs.metrics_file import MAX_METRICS_BYTES
from lmk_train.runs.plain_file import read_bounded
from lmk_train.training.trainer import Trainer

_STEPS_BETWEEN_LINES = 50


class Record:
    """metrics.jsonl, TensorBoard and checkpoints of a run; on resume they are cut to the step of the checkpoint.

    Every rank has one and calls it at the same steps; only the first rank writes.

    Attributes:
        postfix: a summary of the last line, for the progress bar.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._line_started = self._saved = self._counted = time.monotonic()
        self._waited = self._copied = 0.0
        self.postfix = ""

    def __enter__(self) -> "Record":
        folder, step = RunFolder(self._trainer.run), self._trainer.progress.step
        path = folder.metrics
        self._file: TextIO | None = None
        if self._trainer.world.is_first:
            if path.exists():
                lines = read_bounded(path, MAX_METRICS_BYTES).decode(errors="replace").splitlines()
                kept = [line for line in lines if _step_of(line) <= step]
                write_bytes(path, "".join(f"{line}\n" for line in kept).encode())
            self._file = open(path, "a", encoding="utf-8")
            make_folder(folder.events)
            self._board = SummaryWriter(str(folder.events), purge_step=step + 1 if step else None)
        self._before = self._trainer.sums()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._board.close()

    def after_step(self, epoch: int, waited_seconds: float, copied_seconds: float) -> None:
        """Read the sums from the device, check them and write a line, every 50 updates and at the end of an epoch.

        The line has the shares of waiting and copying in the time since the last line; the rest is computing. Saving
        and validating are not part of that time.

        Args:
            epoch: counted from 0.
            waited_seconds: the total time that this rank has waited for data.
            copied_seconds: the total time of its copies to the device.
        """
        trainer, now = self._trainer, time.monotonic()
        if trainer.progress.step % _STEPS_BETWEEN_LINES and trainer.progress.step % trainer.steps_per_epoch:
            return
        sums = trainer.sums()
        number = sums["num_samples"] - self._before["num_samples"]
        loss = (sums["loss"] - self._before["loss"]) / number
        accuracy = (sums["correct"] - self._before["correct"]) / number
        seconds = now - self._line_started
        rate, waiting = number / seconds, (waited_seconds - self._waited) / seconds
        copying = (copied_seconds - self._copied) / seconds
        computing = max(0.0, 1 - waiting - copying)
        line = {"kind": "train", "epoch": epoch + 1, "step": trainer.progress.step, "loss": loss, "accuracy": accuracy}
        rate_now = trainer.learning_rate(trainer.progress.step - 1)
        line |= {"lr": rate_now, "images_per_second": rate, "data_share": waiting}
        line |= {"copy_share": copying, "compute_share": computing}
        self.postfix = (
            f"loss {loss:.3f} acc {accuracy:.3f} lr {rate_now:.2g} {rate:.0f} img/s, waiting {waiting:.0%} "
            f"copying {copying:.0%} computing {computing:.0%}"
        )
        if trainer.scaler.is_enabled():
            line |= {"grad_scale": trainer.scaler.get_scale(), "skipped_updates": sums["skipped"]}
            self.postfix += f", {sums['skipped']} updates skipped" if sums["skipped"] else ""
        self.line(line)
        self._before = sums if trainer.progress.step % trainer.steps_per_epoch else dict.fromkeys(sums, 0)
        self._line_started, self._waited, self._copied = now, waited_seconds, copied_seconds

    def line(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl, and its floating-point numbers to TensorBoard."""
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            for name, value in line.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{line['kind']}/{name}", value, line["step"])
        if line["kind"] == "epoch":
            self._line_started = time.monotonic()
            self.postfix = f"val macro F1 {line['val_macro_f1']:.3f}" if "val_macro_f1" in line else self.postfix

    def checkpoint_due(self) -> bool:
        """Return whether the interval between checkpoints is over."""
        return time.monotonic() - self._saved > 60 * self._trainer.config.checkpoint_minutes

    def save(self) -> None:
        """Save everything that resuming needs.

        Raises:
            TrainingError: the weights are not finite; the earlier checkpoint stays.
        """
        trainer, now = self._trainer, time.monotonic()
        trainer.require_finite_weights()
        trainer.progress.seconds += now - self._counted
        self._counted = self._saved = now
        state = {
            "model": trainer.model.state_dict(),
            "averaged": None if trainer.averaged is None else trainer.averaged.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "scaler": trainer.scaler.state_dict(),
            "progress": vars(trainer.progress),
            "epoch_sums": trainer.sums(),
            "buffers": trainer.world.gather({name: buffer.cpu() for name, buffer in buffers(trainer).items()}),
            "config": trainer.config.public_json(),
            "weights_sha256": trainer.weights_sha256,
            **dataset_state(trainer.dataset),
        }
        if trainer.world.is_first:
            save_checkpoint(trainer.run, LAST, state)
            self._board.flush()
        trainer.world.barrier()
        self._line_started += time.monotonic() - now  # saving is in none of the shares


def buffers(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return the running statistics of this rank by name, those of the averaged weights included, on the device."""
    models = {"model": trainer.model, "averaged": trainer.averaged}
    return {
        f"{of}.{name}": buffer
        for of, model in models.items()
        if model is not None
        for name, buffer in model.named_buffers()
    }


def _step_of(line: str) -> int:
    """Return the step of a line of metrics.jsonl; a step that is never reached for a line that a crash cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return 2**63
