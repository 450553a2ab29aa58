"""The commands of the trainer, from `lmk-train` to `lmk-tune`: parse, call, print a summary."""

import io
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from tqdm import tqdm

from lmk_data import __version__
from lmk_data.errors import UserError, missing_extra
from lmk_data.system.streams import stdout_is_abandoned
from lmk_data.system.terminal import EXIT_UNREAD, counted, notice, printable, progress_bar, run_command, say
from lmk_train.config.commands import EvalConfig, ExportConfig, InspectConfig, PredictConfig, TuneConfig
from lmk_train.config.memory import memory_advice
from lmk_train.config.training import TrainConfig
from lmk_train.evaluation.metrics import spelled
from lmk_train.runs.folder import RunFolder

if TYPE_CHECKING:
    from lmk_train.evaluation.evaluate import Evaluation
    from lmk_train.predict import Prediction, Predictor
    from lmk_train.training.dry_run import DryRun

_SHOWN = ("accuracy", "top5_accuracy", "macro_f1", "macro_f1_all", "many_accuracy", "medium_accuracy", "few_accuracy")
_TRAIN_EXTRA = ("torch", "torchvision", "efficientnet_pytorch", "tensorboard")


def train_main(arguments: Sequence[str] | None = None) -> int:
    """Run `lmk-train` and return the exit code; a command line that does not parse exits with 2."""
    return _main("lmk-train", TrainConfig, _train, arguments)


def eval_main(arguments: Sequence[str] | None = None) -> int:
    """Run `lmk-eval` and return the exit code."""
    return _main("lmk-eval", EvalConfig, _evaluate, arguments)


def predict_main(arguments: Sequence[str] | None = None) -> int:
    """Run `lmk-predict` and return the exit code, 1 if a picture could not be read."""
    return _main("lmk-predict", PredictConfig, _predict, arguments)


def inspect_main(arguments: Sequence[str] | None = None) -> int:
    """Run `lmk-inspect` and return the exit code."""
    return _main("lmk-inspect", InspectConfig, _inspect, arguments)


def export_main(arguments: Sequence[str] | None = None) -> int:
    """Run `lmk-export` and return the exit code."""
    return _main("lmk-export", ExportConfig, _export, arguments)


def tune_main(arguments: Sequence[str] | None = None) -> int:
    """Run `lmk-tune` and return the exit code."""
    return _main("lmk-tune", TuneConfig, _tune, arguments)


def _main(program: str, config: type, command: Callable[[Any], None], arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)

    def run() -> None:
        if given == ["--version"]:
            print(f"{program} {__version__}")
            return
        parsed: Any = tyro.cli(config, prog=program, args=given, config=(tyro.conf.FlagCreatePairsOff,))
        for package in _TRAIN_EXTRA:
            if find_spec(package) is None:
                raise missing_extra(program, "train", f"{package} is missing")
        from lmk_train.runtime.oom import oom_as_training_error

        with oom_as_training_error(memory_advice(parsed, int(os.environ.get("WORLD_SIZE", "1")))):
            command(parsed)

    if "WORLD_SIZE" not in os.environ or find_spec("torch") is None:
        return run_command(program, run)
    from lmk_train.runtime.world import run_as_rank

    return run_as_rank(lambda: run_command(program, run))


def _train(config: TrainConfig) -> None:
    announce: Callable[[str], None] = (lambda _: None) if config.quiet else say
    if config.profile_input:
        _profile_input(config, announce)
        return
    if config.dry_run:
        _dry_run(config, announce)
        return
    from lmk_train.training.loop import train

    result = train(config, announce=announce)
    if config.quiet or result.rank:
        return
    metric = spelled(config.best_by)
    judged = "no validation split" if result.best_metric is None else f"validation {metric} {result.best_metric:.4f}"
    best = f"best epoch {result.best_epoch} ({judged})"
    say(f"{result.run}: trained in {result.seconds:,.0f} s; {best}")
    if result.test is not None:
        _print_evaluation(result.test)
        say(f"report: {RunFolder(result.run).report(result.test.split)}")
        _print_next(result.run, result.test.source["shards"], config.base)


def _profile_input(config: TrainConfig, announce: Callable[[str], None]) -> None:
    from lmk_train.training.profile_input import profile_input

    profile = profile_input(config, announce)
    if profile.rank:
        return
    say("images per second of one rank:")
    for what, rate in (("reader alone", profile.reader), ("model alone", profile.model), ("both", profile.both)):
        say(f"  {what:12} {rate:10,.1f}")
    say(profile.verdict())


def _dry_run(config: TrainConfig, announce: Callable[[str], None]) -> None:
    from lmk_train.training.dry_run import dry_run

    sizes = dry_run(config, announce)
    if sizes.rank:
        return
    say(f"parameters        {sizes.backbone_parameters:,} in the backbone, {sizes.head_parameters:,} in the head")
    say(f"updates           {sizes.num_steps:,}, {sizes.steps_per_epoch:,} per epoch")
    for line in _memory_lines(sizes):
        say(line)
    say(f"initial loss      {sizes.expected_loss:.2f} expected, {sizes.first_loss:.2f} on the first batch")


def _memory_lines(sizes: "DryRun") -> Iterator[str]:
    memory, measured = sizes.memory, sizes.measured
    parts = {
        "for weights": memory.weights,
        "for gradients": memory.gradients,
        "for the optimiser": memory.optimizer,
        "for gradients on their way to other ranks": memory.buckets,
        "for a second gradient of the largest layer": memory.second_gradient,
        f"for {sizes.micro_batch} pictures at once": memory.activations,
        "for the CUDA context and workspaces (an estimate)": memory.overhead,
    }
    listed = ", ".join(f"{_size(num_bytes)} {what}" for what, num_bytes in parts.items() if num_bytes)
    yield f"memory            about {_size(memory.total)} per rank: {listed}"
    if measured is not None:
        of_card = f"{_size(measured.used)} of {_size(measured.there)} of the device are in use"
        yield f"measured          {_size(measured.reserved)} reserved by two updates; {of_card}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def _evaluate(config: EvalConfig) -> None:
    from lmk_data.dataset import ShardedDataset
    from lmk_train.evaluation.evaluate import evaluate_run, picked_of
    from lmk_train.evaluation.report import write_run_report
    from lmk_train.evaluation.sweep import sweep_lines

    evaluations = evaluate_run(config)
    asked = evaluations[-1]
    if asked.rank:
        return
    for evaluation in evaluations if not config.quiet else ():
        _print_evaluation(evaluation)
    with ShardedDataset.open(config.shards or asked.source["shards"], base=config.base) as dataset:
        report = write_run_report(config.run, dataset, asked.split)
    if config.quiet:
        return
    if config.tau:
        say(*sweep_lines(asked.split, asked.sweep, picked_of(evaluations)))
    others = "predictions, per-class figures, confusion" + (", the sweep over tau" if config.tau else "")
    say(f"written: {RunFolder(config.run).evaluation(config.split)}, with {others} beside it; {report}")
    _print_next(config.run, asked.source["shards"], config.base)


def _print_next(run: Path, dataset: str, base: str | None) -> None:
    """Name the commands that look into what a model gets wrong."""
    named = ["--base", base] if base else []
    say(f"wrong labels and odd classes: {shlex.join(['lmk-inspect', str(run), '--shards', dataset, *named])}")
    say(f"look and mark: {shlex.join(['lmk-shard', 'browse', dataset, *named, '--run', str(run)])}")


def _predict(config: PredictConfig) -> None:
    from lmk_train.answers import with_unique_ids
    from lmk_train.predict import Predictor, named_images

    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # file names are bytes, not always UTF-8
    predictor = Predictor(config.run, checkpoint=config.checkpoint, device=config.device, amp=config.amp)
    _prepare(predictor, config)
    images: Iterable[str] = named_images(config.images, sys.stdin)
    if config.submission:
        images = with_unique_ids(images)
    total = None
    if "-" not in config.images:  # names from stdin are taken batch by batch
        images = list(images)
        total = len(images)
    started, counts = time.monotonic(), [0, 0]
    predictions = predictor(
        images,
        top=config.top,
        neighbours=config.neighbours or 0,
        min_confidence=config.min_confidence,
        batch_size=config.batch_size,
        workers=config.workers,
    )
    with _answers(config) as answer, progress_bar(total, "predicting", "images", quiet=config.quiet) as bar:
        for prediction in predictions:
            counts[prediction.error is not None] += 1
            if prediction.error is not None:
                line = f"lmk-predict: {prediction.image}: {' '.join(prediction.error.split())}"
                tqdm.write(printable(line), file=sys.stderr)
            answer(prediction)
            bar.update()
    recognised, unreadable = counts
    if not config.quiet:
        written = "" if config.csv is None else f", written to {config.csv}"
        summary = f"{counted(recognised, 'image')} predicted in {time.monotonic() - started:.1f} s{written}"
        print(printable(summary), file=sys.stderr)
    if unreadable:
        raise UserError(f"{unreadable} of the pictures could not be read")


def _prepare(predictor: "Predictor", config: PredictConfig) -> None:
    """Open the index of neighbours if it is wanted, and say if the probabilities are not calibrated."""
    from lmk_train.neighbours.index import TrainingPictures

    if config.neighbours is not None:
        pictures = TrainingPictures(config.shards, config.base, config.cache, config.workers, config.quiet)
        predictor.load_neighbours(pictures, (lambda _: None) if config.quiet else notice)
    if predictor.temperature is None and not config.quiet:
        how = f"{shlex.join(['lmk-eval', str(config.run), '--calibrate'])} fits a temperature on validation pictures"
        notice(f"{config.run}: its probabilities are not calibrated; {how}")


@contextmanager
def _answers(config: PredictConfig) -> "Iterator[Callable[[Prediction], object]]":
    """Yield the function that is told each prediction; a file is whole once the block has ended without an error."""
    from lmk_train.answers import Submission, Table, csv_file, json_line, text_line

    if config.csv is not None:
        form = Submission() if config.submission else Table(config.top, config.neighbours or 0)
        with csv_file(config.csv, form) as add:
            yield add
        return
    line = json_line if config.json else text_line

    def print_answer(prediction: "Prediction") -> None:
        if prediction.error is None:
            _print_at_once(line(prediction))

    yield print_answer


def _print_at_once(line: str) -> None:
    """Print a line on stdout beside a progress bar; end the command if the reader has gone."""
    tqdm.write(printable(line))
    sys.stdout.flush()
    if stdout_is_abandoned():
        raise SystemExit(EXIT_UNREAD)


def _inspect(config: InspectConfig) -> None:
    from lmk_train.inspection.inspect import inspect_dataset
    from lmk_train.inspection.summary import summary_lines

    inspection = inspect_dataset(config, announce=(lambda _: None) if config.quiet else say)
    if not config.quiet:
        say(*summary_lines(inspection, config))


def _export(config: ExportConfig) -> None:
    from lmk_train.export import export_run

    export = export_run(config)
    if not config.quiet:
        size, within = f"{export.num_bytes / 1e6:.1f} MB", f"log-probabilities within {export.largest_difference:.1g}"
        say(f"{export.path}: {size}, {within} of the checkpoint on {export.checked_on}")


def _tune(config: TuneConfig) -> None:
    from lmk_train.tuning.tune import tune

    result = tune(config, announce=(lambda _: None) if config.quiet else lambda line: tqdm.write(printable(line)))
    if config.quiet:
        return
    states = [trial.state for trial in result.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    objective = spelled(config.objective)
    best = f"best {objective} {result.best.value:.4f} on validation (trial {result.best.number})"
    say(f"{counted(len(states), 'trial')}: {counts}; {best}")
    if result.test is not None:
        shown = [f"{name} {result.test[name]:.4f}" for name in _SHOWN if result.test.get(name) is not None]
        say(f"test ({counted(int(result.test['num_samples'] or 0), 'image')}), once, at the end: {', '.join(shown)}")
    say("train it again:", f"  {result.command}", f"report: {result.report}")


def _print_evaluation(evaluation: "Evaluation") -> None:
    metrics = evaluation.metrics
    shown = [f"{name} {metrics[name]:.4f}" for name in _SHOWN if metrics.get(name) is not None]
    unknown = f"; {metrics['num_unknown']:,} of landmarks it does not know" if metrics["num_unknown"] else ""
    say(f"{evaluation.split} ({counted(int(metrics['num_samples'] or 0), 'image')}{unknown}): {', '.join(shown)}")


if __name__ == "__main__":
    sys.exit(train_main())
