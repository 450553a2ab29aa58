"""Run a split through a model: predictions for every sample exactly once, on any number of ranks."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lmk_data.system.terminal import progress_bar
from lmk_train.data.order import batch_picks, num_batches
from lmk_train.data.reader import Reader
from lmk_train.data.stream import BatchStream
from lmk_train.evaluation.predictions import TOP_K, Predictions
from lmk_train.models.heads import Classifier
from lmk_train.runtime.compiling import is_compiled
from lmk_train.runtime.precision import Precision
from lmk_train.runtime.transfer import ToHost, to_device
from lmk_train.runtime.world import SINGLE, World


@dataclass(frozen=True)
class Evaluator:
    """A model, and how splits are run through it.

    Attributes:
        model: on the device of `precision`.
        preprocess: turns a batch's pixels (and no draws) into network input.
        precision: device and dtype of the forward pass.
        batch_size: samples of a batch of all ranks together.
        workers: threads that decode; the reader's default if None.
        world: the ranks that share the split.
    """

    model: Classifier
    preprocess: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
    precision: Precision
    batch_size: int
    workers: int | None = None
    world: World = SINGLE

    def predict(
        self,
        reader: Reader,
        *,
        label_map: NDArray[np.int64] | None = None,
        post_hoc: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        temperature: float | None = None,
        quiet: bool = True,
    ) -> Predictions:
        """Return the predictions for all samples of a split, in row order, on every rank; each runs its share.

        Leaves the model in training mode.

        Args:
            reader: of the split, which has at least one sample.
            label_map: the model's label of each of the dataset's labels, int64, -1 for none; None if they are the same.
            post_hoc: more answers, int64 [B, C], of what the head takes, float32 [B, D], and its logits, [B, K].
            temperature: that the logits are divided by for the calibrated probabilities; None for none of these.
            quiet: no progress bar.
        """
        targets = reader.labels if label_map is None else label_map[reader.labels]
        self.model.eval()
        with (
            torch.inference_mode(),
            progress_bar(len(reader), f"evaluating {reader.split}", "images", quiet=quiet) as bar,
        ):
            own = self._predict_share(reader, targets, _Also(post_hoc, temperature), bar.update)
        self.model.train()
        gathered = self.world.gather(own)
        all_seen = np.concatenate([rank_seen for rank_seen, _ in gathered])
        order = np.argsort(all_seen)
        assert np.array_equal(all_seen[order], np.arange(len(reader))), "every sample is evaluated exactly once"
        return Predictions.concatenate([predictions for _, predictions in gathered]).select(order)

    def _predict_share(
        self,
        reader: Reader,
        targets: NDArray[np.int64],
        also: "_Also",
        progress: Callable[[int], object],
    ) -> tuple[NDArray[np.int64], Predictions]:
        """Return this rank's rows and their predictions; `progress` is told how many samples all ranks have done."""
        rows, keys = np.arange(len(reader), dtype=np.int64), reader.keys()
        seen: list[NDArray[np.int64]] = []
        parts: list[Predictions] = []
        pending: _Pending | None = None
        for picks, output in self._share_of(reader, rows, self.model if also.post_hoc is None else self.model.describe):
            logits, answers = output, None
            if also.post_hoc is not None:
                logits = self.model.classify(output)
                answers = also.post_hoc(output, logits)
            current = _Pending.of(logits, answers, keys[picks], targets[picks], also.temperature)
            if pending is not None:  # the device is at work on this batch while the last one is fetched
                parts.append(pending.predictions())
            pending = current
            seen.append(picks)
            progress(len(picks) * self.world.size)
        assert pending is not None, "a split has at least one sample"
        parts.append(pending.predictions())
        return np.concatenate(seen), Predictions.concatenate(parts)

    def describe(self, reader: Reader, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return what the head takes, float32 [n, D], and the logits, float32 [n, K], of chosen rows, on every rank.

        Leaves the model in training mode.

        Args:
            reader: of the split.
            rows: of the split, int64 [n], ascending; at least one.
        """
        self.model.eval()
        seen, described, logits = [], [], []
        with torch.inference_mode():
            for picks, batch in self._share_of(reader, rows, self.model.describe):
                seen.append(picks)
                described.append(batch.cpu().numpy())
                logits.append(self.model.classify(batch).float().cpu().numpy())
        self.model.train()
        gathered = self.world.gather(tuple(np.concatenate(parts) for parts in (seen, described, logits)))
        all_seen, all_described, all_logits = (np.concatenate(parts) for parts in zip(*gathered, strict=True))
        order = np.argsort(all_seen)
        return all_described[order], all_logits[order]

    def class_sums(
        self, reader: Reader, label_map: NDArray[np.int64], num_classes: int, quiet: bool = True
    ) -> torch.Tensor:
        """Return the sum of what the head takes of each class's samples, float32 [K, D] on the host, on every rank.

        Leaves the model in training mode.

        Args:
            reader: of the split.
            label_map: the model's label of each of the dataset's labels, int64, -1 for none.
            num_classes: K of the model.
            quiet: no progress bar.
        """
        targets, rows = label_map[reader.labels], np.arange(len(reader), dtype=np.int64)
        sums: torch.Tensor | None = None
        self.model.eval()
        with (
            torch.inference_mode(),
            progress_bar(len(rows), f"class means of {reader.split}", "images", quiet=quiet) as bar,
        ):
            for picks, described in self._share_of(reader, rows, self.model.describe):
                if sums is None:
                    sums = described.new_zeros(num_classes, described.shape[1])
                known = torch.from_numpy(targets[picks])
                chosen = to_device((known >= 0).nonzero().squeeze(1), described.device)
                sums.index_add_(0, to_device(known[known >= 0], described.device), described[chosen])
                bar.update(len(picks) * self.world.size)
        self.model.train()
        assert sums is not None, "a split has at least one sample"
        return self.world.sum_tensor(sums.cpu())

    def _share_of(
        self, reader: Reader, rows: NDArray[np.int64], network: Callable[[torch.Tensor], torch.Tensor]
    ) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
        """Yield this rank's share of the rows, int64 [B], and what a network makes of their pictures, [B, ...]."""
        compiled, device = is_compiled(self.model.backbone), self.precision.device
        batch_size = self.batch_size if compiled else min(self.batch_size, len(rows))
        steps, largest = num_batches(len(rows), batch_size, drop_last=False), self.world.largest_share(batch_size)
        shares = (self.world.share(batch_picks(rows, step, batch_size)) for step in range(steps))
        with closing(BatchStream(reader, device, largest, self.workers)(shares)) as batches:
            for batch in batches:
                fixed = compiled or device.type == "cuda"
                pixels = _lengthened(batch.pixels, largest) if fixed else batch.pixels
                with self.precision.autocast():
                    output = network(self.preprocess(pixels, None))[: len(batch.picks)]
                yield batch.picks, output


@dataclass(frozen=True)
class _Also:
    """What is wanted beside the best labels: see `Evaluator.predict`."""

    post_hoc: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None
    temperature: float | None


@dataclass(frozen=True)
class _Pending:
    """The predictions of a batch while the device computes them; keys and targets int64 [B] are on the host."""

    keys: NDArray[np.object_]
    targets: NDArray[np.int64]
    results: ToHost
    also: tuple[str, ...]

    @classmethod
    def of(
        cls,
        logits: torch.Tensor,
        answers: torch.Tensor | None,
        keys: NDArray[np.object_],
        targets: NDArray[np.int64],
        temperature: float | None,
    ) -> "_Pending":
        """Queue the predictions of a batch, without waiting: logits float32 [B, K], post-hoc answers int64 [B, C]."""
        top = logits.softmax(dim=1).topk(min(TOP_K, logits.shape[1]), dim=1)
        losses = _losses(logits, to_device(torch.from_numpy(targets), logits.device))
        more: dict[str, torch.Tensor] = {}
        if answers is not None:
            more["adjusted"] = answers
        if temperature is not None:
            more["calibrated"] = (logits.float() / temperature).softmax(dim=1).amax(dim=1)
        return cls(keys, targets, ToHost([top.indices, top.values, losses, *more.values()]), tuple(more))

    def predictions(self) -> Predictions:
        """Wait for the batch and return its predictions."""
        labels, probabilities, losses, *more = self.results.arrays()
        also = dict(zip(self.also, more, strict=True))
        return Predictions(self.keys, self.targets, labels, probabilities, losses, **also)


def _lengthened(pixels: torch.Tensor, number: int) -> torch.Tensor:
    """Return a batch with zeros after its samples, [number, ...]: a device measures and compiles each shape anew."""
    missing = number - len(pixels)
    return torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])]) if missing else pixels


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return minus the logarithm of each target's probability, float32 [B]; NaN where the target is -1."""
    losses = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none", ignore_index=-1)
    return torch.where(targets < 0, torch.nan, losses)
