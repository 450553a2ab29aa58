"""Answers of a finished model without training it again: logit adjustment, tau-normalised heads, nearest class mean.

All of them are answered in the pass of an evaluation, and judged by the same figures. Of a method with a tau, the
validation split picks the value.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from lmk_train.evaluation.metrics import ClassCounts, band_accuracies
from lmk_train.models.losses import log_prior

TAUS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
ADJUSTMENT, NORMALISED, NEAREST_MEAN = "logit adjustment", "tau-normalised head", "nearest class mean"
METRICS = ("accuracy", "macro_f1", "macro_recall", "many_accuracy", "medium_accuracy", "few_accuracy")
Row = dict[str, float | None]  # `tau`, None for a method without one, and METRICS
_SMALLEST_NORM = 1e-12


@dataclass(frozen=True)
class PostHoc:
    """The methods that a model is asked for.

    Attributes:
        adjustments: added to the logits, float32 [T, K].
        factors: of the weights' rows of a linear head, float32 [T, K]; None for another head.
        bias: of that head, float32 [K].
        means: unit vectors to the class means of the training features, float32 [K, D]; zero for a class without any.
            None if they are not wanted.
    """

    adjustments: torch.Tensor
    factors: torch.Tensor | None
    bias: torch.Tensor | None
    means: torch.Tensor | None

    @classmethod
    def of(cls, head: nn.Module, train_counts: NDArray[np.int64], sums: torch.Tensor | None) -> "PostHoc":
        """Return the methods that fit a head.

        Args:
            head: of the model, on its device.
            train_counts: training images of each class, int64 [K].
            sums: of the training features of each class, float32 [K, D]; None for no class means.
        """
        weight = head.weight
        assert isinstance(weight, torch.Tensor), "every head has a weight"
        device = weight.device
        means = None if sums is None else functional.normalize(sums.to(device))
        factors = bias = None
        if isinstance(head, nn.Linear):
            factors, bias = tau_factors(head.weight.detach()), head.bias.detach()
        return cls(tau_adjustments(train_counts).to(device), factors, bias, means)

    @property
    def columns(self) -> list[tuple[str, float | None]]:
        """Return the method and the tau of each of the answers, in order."""
        columns: list[tuple[str, float | None]] = [(ADJUSTMENT, tau) for tau in TAUS]
        if self.factors is not None:
            columns += [(NORMALISED, tau) for tau in TAUS]
        return columns if self.means is None else [*columns, (NEAREST_MEAN, None)]

    def __call__(self, described: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return the best label under each method and tau, int64 [B, C] for C columns.

        `described` is what the head takes, float32 [B, D], and `logits`, float32 [B, K], what it makes of it.
        """
        answers = [(logits + adjustment).argmax(dim=1) for adjustment in self.adjustments]
        if self.factors is not None and self.bias is not None:
            answers += [((logits - self.bias) * factors).argmax(dim=1) for factors in self.factors]
        if self.means is not None:
            cosines = functional.normalize(described) @ self.means.T
            empty = self.means.square().sum(dim=1) == 0
            answers.append(cosines.masked_fill_(empty, -2).argmax(dim=1))
        return torch.stack(answers, dim=1)


def tau_adjustments(train_counts: NDArray[np.int64]) -> torch.Tensor:
    """Return what is added to the logits for each of `TAUS`: -tau * log prior, float32 [T, K].

    Post-hoc logit adjustment: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021. `train_counts` are
    the training images of each class, int64 [K].
    """
    return -torch.tensor(TAUS)[:, None] * log_prior(train_counts)


def tau_factors(weight: torch.Tensor) -> torch.Tensor:
    """Return the factor of each row of a head's weight, float32 [K, D], for each of `TAUS`: |w|^-tau, float32 [T, K].

    The answers are then w x / |w|^tau, without the bias. Kang et al., "Decoupling representation and classifier for
    long-tailed recognition", ICLR 2020.
    """
    norms = weight.norm(dim=1).clamp_min(_SMALLEST_NORM)
    return torch.stack([norms**-tau for tau in TAUS])


def swept(
    columns: Sequence[tuple[str, float | None]],
    answers: NDArray[np.int64],
    targets: NDArray[np.int64],
    train_counts: NDArray[np.int64],
) -> dict[str, list[Row]]:
    """Return the figures of each method, a row for each of its taus.

    Args:
        columns: method and tau of each column of `answers`.
        answers: labels, int64 [N, C].
        targets: int64 [N].
        train_counts: training images of each class, int64 [K].
    """
    rows: dict[str, list[Row]] = {}
    for (method, tau), chosen in zip(columns, answers.T, strict=True):
        counts = ClassCounts.of(targets, chosen, len(train_counts))
        seen, recall = counts.support > 0, counts.recall()
        figures: Row = {
            "tau": tau,
            "accuracy": float((chosen == targets).mean()),
            "macro_f1": float(counts.f1()[seen].mean()),
            "macro_recall": float(recall[seen].mean()),
            **band_accuracies(recall, seen, train_counts),
        }
        rows.setdefault(method, []).append(figures)
    return rows


def best_tau(rows: Sequence[Row]) -> float | None:
    """Return the tau with the highest macro F1, the smallest one of several; None of a method without one."""
    return max(rows, key=lambda row: (row["macro_f1"] or 0.0, -(row["tau"] or 0.0)))["tau"]


def picked_taus(on_val: dict[str, list[Row]] | None) -> dict[str, float | None]:
    """Return the tau of each method that the sweep of the validation split picks; empty without that split."""
    return {} if on_val is None else {method: best_tau(rows) for method, rows in on_val.items()}


def sweep_json(sweep: dict[str, list[Row]], picked: dict[str, float | None]) -> dict[str, Any]:
    """Return the content of tau-<split>.json: logit adjustment on top, the other methods under `others`."""
    return {
        "picked": picked.get(ADJUSTMENT),
        "picked_on": "val" if picked else None,
        "sweep": sweep[ADJUSTMENT],
        "others": {
            method: {"picked": picked.get(method), "sweep": rows}
            for method, rows in sweep.items()
            if method != ADJUSTMENT
        },
    }


def sweep_lines(split: str, sweep: dict[str, list[Row]], picked: dict[str, float | None]) -> list[str]:
    """Return the sweep of a split as a table in text, with an arrow at the values that validation picked."""
    tau = picked.get(ADJUSTMENT)
    said = "no validation split to pick one on" if tau is None else f"{tau:g} has the best macro F1 on val"
    lines = [f"post-hoc methods on {split} (tau of the logit adjustment: {said})"]
    lines.append("method               tau   accuracy  macro F1  balanced      many    medium       few")
    for method, rows in sweep.items():
        for row in rows:
            shown = "-" if row["tau"] is None else f"{row['tau']:g}"
            figures = "  ".join("       -" if row[name] is None else f"{row[name]:8.4f}" for name in METRICS)
            arrow = "  <-" if row["tau"] is not None and row["tau"] == picked.get(method) else ""
            lines.append(f"{method:19}  {shown:<4}  {figures}{arrow}")
    if NORMALISED not in sweep:
        lines.append(f"{NORMALISED}: the rows of a cosine head have length 1 already, which is tau 1")
    return lines
