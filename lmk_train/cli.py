"""`lmk-train` and `lmk-eval`: parse, call, summarise; thin shells over the modules that do the work."""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import tyro

from lmk_data import __version__
from lmk_data.terminal import run_command
from lmk_train.config import EvalConfig, TrainConfig

if TYPE_CHECKING:
    from lmk_train.evaluation import Evaluation

_SHOWN = ("accuracy", "top5_accuracy", "macro_f1", "macro_f1_all", "many_accuracy", "medium_accuracy", "few_accuracy")


def train_main(arguments: Sequence[str] | None = None) -> int:
    """Run `lmk-train`; returns the exit code (a command line that does not parse exits with 2)."""
    return _main("lmk-train", TrainConfig, _train, arguments)


def eval_main(arguments: Sequence[str] | None = None) -> int:
    """Run `lmk-eval`; returns the exit code."""
    return _main("lmk-eval", EvalConfig, _evaluate, arguments)


def _main(program: str, config: type, command: Callable[[Any], None], arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        print(f"{program} {__version__}")
        return 0

    def run() -> None:
        command(tyro.cli(config, prog=program, args=given, config=(tyro.conf.FlagCreatePairsOff,)))

    return run_command(program, run)


def _train(config: TrainConfig) -> None:
    announce: Callable[[str], None] = (lambda _: None) if config.quiet else print
    if config.profile_input:
        from lmk_train.bottleneck import profile_input

        found = profile_input(config, announce)
        print("images a second of one process:")
        for what, rate in (("reader alone", found.reader), ("model alone", found.model), ("both", found.both)):
            print(f"  {what:12} {rate:10,.1f}")
        print(found.verdict())
        return
    if config.dry_run:
        _rehearse(config, announce)
        return
    from lmk_train.loop import train

    result = train(config, announce=announce)
    if config.quiet or result.rank:
        return
    judged = "no validation split" if result.best_metric is None else f"validation macro F1 {result.best_metric:.4f}"
    best = f"best epoch {result.best_epoch} ({judged})"
    print(f"{result.run}: trained in {result.seconds:,.0f} s; {best}")
    if result.test is not None:
        _print_evaluation(result.test)


def _rehearse(config: TrainConfig, announce: Callable[[str], None]) -> None:
    from lmk_train.rehearsal import rehearse

    found = rehearse(config, announce)
    memory = found.weights_bytes + found.activations_bytes
    print(f"parameters        {found.backbone_parameters:,} in the backbone, {found.head_parameters:,} in the head")
    print(f"updates           {found.num_steps:,}, {found.steps_per_epoch:,} an epoch")
    print(
        f"memory            about {memory / 1e9:.1f} GB a process: {found.weights_bytes / 1e9:.1f} for weights, "
        f"gradients and optimiser, {found.activations_bytes / 1e9:.1f} for {found.micro_batch} pictures at once"
    )
    print(f"loss at first     {found.expected_loss:.2f} expected, {found.first_loss:.2f} on the first batch")


def _evaluate(config: EvalConfig) -> None:
    from lmk_train.evaluation import evaluate_run

    evaluation = evaluate_run(config)
    if not config.quiet:
        _print_evaluation(evaluation)
        print(
            f"written: {config.run}/eval-{config.split}.json, with predictions, per-class figures, confusion beside it"
        )


def _print_evaluation(evaluation: "Evaluation") -> None:
    metrics = evaluation.metrics
    shown = [f"{name} {metrics[name]:.4f}" for name in _SHOWN if metrics[name] is not None]
    print(f"{evaluation.split} ({metrics['num_samples']:,} images): {', '.join(shown)}")


if __name__ == "__main__":
    sys.exit(train_main())
