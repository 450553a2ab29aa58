"""The sweep over post-hoc methods: logit adjustment, tau-normalised heads, nearest class mean."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from lmk_data.build import BuildOptions, build
from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError
from lmk_data.options import PlanRule
from lmk_train.cli import eval_main
from lmk_train.config.commands import EvalConfig
from lmk_train.config.training import ResolvedConfig
from lmk_train.data.augment import Augmentation, Preprocess
from lmk_train.evaluation.evaluate import evaluate_run
from lmk_train.evaluation.sweep import (
    ADJUSTMENT,
    NEAREST_MEAN,
    NORMALISED,
    TAUS,
    PostHoc,
    best_tau,
    sweep_lines,
    swept,
    tau_adjustments,
)
from lmk_train.models.registry import ARCHITECTURES, build_model
from lmk_train.runs.checkpoint import BEST, load_checkpoint, weights_to_evaluate
from lmk_train.runs.classes import Classes

EXACT = ["--amp", "off", "--device", "cpu"]


def test_tau_is_the_adjustment_of_the_logits_and_validation_picks_it(
    run: Path, dataset: ShardedDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    validation, test = evaluate_run(EvalConfig(run, tau=True, device="cpu", amp="off", quiet=True))
    assert [validation.split, test.split] == ["val", "test"]
    assert [row["tau"] for row in test.sweep[ADJUSTMENT]] == list(TAUS)
    assert test.sweep[ADJUSTMENT][0]["accuracy"] == test.metrics["accuracy"]
    assert test.sweep[ADJUSTMENT][0]["macro_f1"] == pytest.approx(test.metrics["macro_f1"])
    picked = best_tau(validation.sweep[ADJUSTMENT])
    said = json.loads((run / "tau-test.json").read_text())
    assert said == {"picked": picked, "picked_on": "val", "sweep": test.sweep[ADJUSTMENT], "others": {}}
    counts = Classes.of_dataset(dataset).train_counts
    expected = -np.outer(TAUS, np.log(counts / counts.sum()))
    torch.testing.assert_close(tau_adjustments(counts), torch.from_numpy(expected).float())
    assert eval_main([str(run), "--tau", *EXACT]) == 0
    printed = capsys.readouterr().out
    assert f"{picked:g} has the best macro F1 on val" in printed
    assert "the rows of a cosine head have length 1 already" in printed
    assert f"Ring: tau {picked:g}, which has the best macro F1 on val" in (run / "report" / "index.html").read_text()
    assert max(row["macro_f1"] or 0 for row in validation.sweep[ADJUSTMENT]) == next(
        row["macro_f1"] for row in validation.sweep[ADJUSTMENT] if row["tau"] == picked
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
        (row,) = [row for row in test.sweep[ADJUSTMENT] if row["tau"] == tau]
        assert row["accuracy"] == pytest.approx((answers == targets).mean())


def test_without_a_validation_split_no_tau_is_picked(
    run: Path, options: Callable[..., BuildOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    made = options(rule=PlanRule(split=(0.8, 0.0, 0.2), samples_per_shard=8))
    build(made)
    assert eval_main([str(run), "--shards", str(made.out), "--tau", *EXACT]) == 0
    assert "no validation split to pick one on" in capsys.readouterr().out
    state = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    state["config"]["shards"] = str(made.out)
    torch.save(state, run / "checkpoints" / "best.pt")
    assert eval_main([str(run), "--tau", "--class-means", *EXACT]) == 1
    assert "is not the dataset that the run was trained on; leave it out" in capsys.readouterr().err
    said = json.loads((run / "tau-test.json").read_text())
    assert (said["picked"], said["picked_on"], len(said["sweep"])) == (None, None, len(TAUS))
    assert "no validation split to pick one on" in (run / "report" / "index.html").read_text()


def test_a_tau_normalised_head_is_the_papers_formula() -> None:
    """argmax of w x / |w|^tau in float64, without the bias."""
    random = np.random.default_rng(0)
    head, features = torch.nn.Linear(6, 5), torch.from_numpy(random.normal(size=(40, 6))).float()
    with torch.no_grad():
        head.weight.mul_(torch.tensor([4.0, 2.0, 1.0, 0.5, 0.2])[:, None])
        methods = PostHoc.of(head, np.array([100, 50, 20, 5, 1]), None)
        answers = dict(zip(methods.columns, methods(features, head(features)).T.numpy(), strict=True))
    weight, x = head.weight.detach().double().numpy(), features.double().numpy()
    norms = np.sqrt((weight**2).sum(axis=1))
    for tau in TAUS:
        assert answers[NORMALISED, tau].tolist() == (x @ (weight / norms[:, None] ** tau).T).argmax(axis=1).tolist()
    assert len({answers[NORMALISED, tau].tobytes() for tau in TAUS}) > 4
    assert set(answers) == {(method, tau) for method in (ADJUSTMENT, NORMALISED) for tau in TAUS}


def test_the_nearest_class_mean_is_that_of_cosines_and_a_class_without_pictures_has_none() -> None:
    random = np.random.default_rng(0)
    features, sums = random.normal(size=(30, 6)), random.normal(size=(4, 6)) * [[1], [10], [100], [0]]
    methods = PostHoc.of(torch.nn.Linear(6, 4), np.array([1, 10, 100, 0]), torch.from_numpy(sums).float())
    found = methods(torch.from_numpy(features).float(), torch.zeros(30, 4))[:, -1]
    cosines = (features @ sums[:3].T) / np.linalg.norm(sums[:3], axis=1)
    assert methods.columns[-1] == (NEAREST_MEAN, None)
    assert found.tolist() == cosines.argmax(axis=1).tolist()
    assert (cosines.max(axis=1) < 0).any(), "even of these the best of the classes with pictures is taken"


def test_a_row_of_the_sweep_has_the_figures_of_an_evaluation() -> None:
    from sklearn.metrics import balanced_accuracy_score, f1_score

    random, counts = np.random.default_rng(0), np.array([500, 200, 50, 10])
    targets = random.integers(0, 4, 300)
    answers = np.stack([random.integers(0, 4, 300), targets], axis=1)
    rows = swept([(ADJUSTMENT, 0.0), (ADJUSTMENT, 1.0)], answers, targets, counts)[ADJUSTMENT]
    assert rows[0]["accuracy"] == pytest.approx((answers[:, 0] == targets).mean())
    assert rows[0]["macro_f1"] == pytest.approx(f1_score(targets, answers[:, 0], average="macro"))
    assert rows[0]["macro_recall"] == pytest.approx(balanced_accuracy_score(targets, answers[:, 0]))
    recall = [(answers[targets == label, 0] == label).mean() for label in range(4)]
    assert rows[0]["many_accuracy"] == pytest.approx((recall[0] + recall[1]) / 2)
    assert (rows[0]["medium_accuracy"], rows[0]["few_accuracy"]) == pytest.approx((recall[2], recall[3]))
    assert best_tau(rows) == 1.0
    *_, last, _ = sweep_lines("test", {ADJUSTMENT: rows}, {ADJUSTMENT: 1.0})
    assert last.split() == ["logit", "adjustment", "1", *["1.0000"] * 6, "<-"]


def test_all_methods_of_a_linear_head_in_one_evaluation(
    run: Path, dataset: ShardedDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's head as a linear one; class means against features that are computed anew."""
    path = run / "checkpoints" / "best.pt"
    state = torch.load(path, weights_only=True)
    state["config"] |= {"loss": "ce", "head": "linear", "cosine_scale": None}
    state["model"]["head.bias"] = torch.linspace(-1, 1, dataset.num_classes)
    torch.save(state, path)
    assert eval_main([str(run), "--tau", "--class-means", *EXACT]) == 0
    said, printed = json.loads((run / "tau-test.json").read_text()), capsys.readouterr().out
    assert list(said["others"]) == [NORMALISED, NEAREST_MEAN]
    assert said["others"][NORMALISED]["picked"] in TAUS
    assert printed.count(f"\n{NORMALISED} ") == len(TAUS)
    assert printed.count(f"\n{NEAREST_MEAN} ") == 1
    assert printed.count("<-") == 2
    assert NEAREST_MEAN in (run / "report" / "index.html").read_text()
    model = build_model(ResolvedConfig.from_json(state["config"]), dataset.num_classes, dataset.recipe.size)
    model.load_state_dict(weights_to_evaluate(state))
    preprocess = Preprocess(ARCHITECTURES["efficientnet-lite0"].normalization, Augmentation(), torch.device("cpu"))
    features, labels = {}, {}
    for split in ("train", "test"):
        samples = list(dataset.samples(split))
        pixels = torch.from_numpy(np.stack([simplejpeg.decode_jpeg(sample.jpeg, "RGB") for sample in samples]))
        with torch.inference_mode():
            features[split] = model.eval().backbone(preprocess(pixels, None)).double().numpy()
        labels[split] = np.array([sample.label for sample in samples])
    means = np.stack([features["train"][labels["train"] == label].mean(axis=0) for label in range(dataset.num_classes)])
    cosines = features["test"] @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    (row,) = said["others"][NEAREST_MEAN]["sweep"]
    assert row["tau"] is None
    assert row["accuracy"] == pytest.approx((cosines.argmax(axis=1) == labels["test"]).mean())
    with pytest.raises(UserError, match="--class-means: is a part of the sweep"):
        EvalConfig(run, class_means=True)
