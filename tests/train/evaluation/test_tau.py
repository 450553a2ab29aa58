"""The sweep over tau."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from lmk_data.build import BuildOptions, build
from lmk_data.dataset import ShardedDataset
from lmk_data.options import PlanRule
from lmk_train.cli import eval_main
from lmk_train.config.commands import EvalConfig
from lmk_train.config.training import ResolvedConfig
from lmk_train.data.augment import Augmentation, Preprocess
from lmk_train.evaluation.evaluate import TAUS, best_tau, evaluate_run, tau_adjustments
from lmk_train.models.registry import ARCHITECTURES, build_model
from lmk_train.runs.checkpoint import BEST, load_checkpoint, weights_to_evaluate
from lmk_train.runs.classes import Classes

EXACT = ["--amp", "off", "--device", "cpu"]


def test_tau_is_the_adjustment_of_the_logits_and_validation_picks_it(
    run: Path, dataset: ShardedDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    validation, test = evaluate_run(EvalConfig(run, tau=True, device="cpu", amp="off", quiet=True))
    assert [validation.split, test.split] == ["val", "test"]
    assert [row["tau"] for row in test.by_tau] == list(TAUS)
    assert test.by_tau[0]["accuracy"] == test.metrics["accuracy"]
    assert test.by_tau[0]["macro_f1"] == pytest.approx(test.metrics["macro_f1"])
    picked = best_tau(validation.by_tau)
    said = json.loads((run / "tau-test.json").read_text())
    assert said == {"picked": picked, "picked_on": "val", "sweep": test.by_tau}
    counts = Classes.of_dataset(dataset).train_counts
    expected = -np.outer(TAUS, np.log(counts / counts.sum()))
    torch.testing.assert_close(tau_adjustments(counts), torch.from_numpy(expected).float())
    assert eval_main([str(run), "--tau", *EXACT]) == 0
    assert f"{picked:g} has the best macro F1 on val" in capsys.readouterr().out
    assert f"Ring: tau {picked:g}, which has the best macro F1 on val" in (run / "report" / "index.html").read_text()
    assert max(row["macro_f1"] or 0 for row in validation.by_tau) == next(
        row["macro_f1"] for row in validation.by_tau if row["tau"] == picked
    )
    assert eval_main([str(run), *EXACT, "--quiet"]) == 0
    assert not (run / "tau-test.json").exists(), "a sweep of another evaluation does not stay"
    assert "Post-hoc logit adjustment" not in (run / "report" / "index.html").read_text()


def test_tau_changes_answers_as_the_logits_say(run: Path, dataset: ShardedDataset) -> None:
    """Tau 1 and 2, computed anew from the logits of the test pictures."""
    _, test = evaluate_run(EvalConfig(run, tau=True, device="cpu", amp="off", quiet=True))
    state = load_checkpoint(run, BEST)
    model = build_model(ResolvedConfig.from_json(state["config"]), dataset.num_classes, dataset.recipe.size)
    model.load_state_dict(weights_to_evaluate(state))
    samples = list(dataset.samples("test"))
    pixels = torch.from_numpy(np.stack([simplejpeg.decode_jpeg(sample.jpeg, "RGB") for sample in samples]))
    normalization = ARCHITECTURES["efficientnet-lite0"].normalization
    with torch.inference_mode():
        logits = model.eval()(Preprocess(normalization, Augmentation(), torch.device("cpu"))(pixels, None)).numpy()
    counts, targets = np.array(state["train_counts"]), np.array([sample.label for sample in samples])
    plain = logits.argmax(axis=1)
    for tau in (1.0, 2.0):
        answers = (logits - tau * np.log(counts / counts.sum())).argmax(axis=1)
        assert (answers != plain).any()
        (row,) = [row for row in test.by_tau if row["tau"] == tau]
        assert row["accuracy"] == pytest.approx((answers == targets).mean())


def test_without_a_validation_split_no_tau_is_picked(
    run: Path, options: Callable[..., BuildOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    made = options(rule=PlanRule(split=(0.8, 0.0, 0.2), samples_per_shard=8))
    build(made)
    assert eval_main([str(run), "--shards", str(made.out), "--tau", *EXACT]) == 0
    assert "no validation split to pick one on" in capsys.readouterr().out
    said = json.loads((run / "tau-test.json").read_text())
    assert (said["picked"], said["picked_on"], len(said["sweep"])) == (None, None, len(TAUS))
    assert "no validation split to pick one on" in (run / "report" / "index.html").read_text()
