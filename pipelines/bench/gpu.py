"""Everything that only a GPU can show, in one table: speed beside the card's own limit, memory, resume, faults.

    make gpu                              # or: python -m pipelines.bench.gpu
    python -m pipelines.bench.gpu --device cpu --models resnet50 --batch-sizes 4 --classes 12 --size 32 --images 240

Draws its own datasets; needs no network. Runs the tests marked `cuda`, then trains each model at each batch size,
precision and number of classes: with the reader, on one fixed batch, and in the plain loop around torchvision's model
and timm's. Checks a resumed training, an overflow, running out of memory, and the estimate of `--dry-run`. Prints the
table, writes JSON, and ends with 1 if a check fails. Cases that the time does not suffice for are left out, and named.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import torch

from lmk_data.system.terminal import run_command
from lmk_train.runtime.precision import resolve_device
from pipelines.bench.gpu_checks import (
    check_estimate,
    check_out_of_memory,
    check_overflow,
    check_resume,
    run_tests,
)
from pipelines.bench.gpu_speed import Case, Speed, draw_dataset, measure

_EVERY_CLASS = 57042
_LAST_SECONDS = 45  # a case that has begun, and the checks behind it
_COLUMNS = (
    *("model", "classes", "batch", "amp", "training", "by threads", "fixed batch", "share", "reader"),
    *("torchvision", "timm", "GB allocated", "GB reserved", "GB estimated", "note"),
)


def cases(arguments: argparse.Namespace) -> list[Case]:
    """Return what is to be measured, the cases that say most first."""
    chosen = product(arguments.classes, arguments.batch_sizes, arguments.amp, arguments.models)
    return [Case(model, classes, batch, amp, arguments.compile) for classes, batch, amp, model in chosen]


def measured(
    arguments: argparse.Namespace, device: torch.device, datasets: dict[int, Path], deadline: float
) -> dict[Case, Speed]:
    """Measure every case that begins before `deadline`, by the monotonic clock; the others have a note."""
    found = {}
    for case in cases(arguments):
        if time.monotonic() > deadline:
            found[case] = Speed(note=f"not measured: {arguments.minutes:g} minutes were over")
        else:
            found[case] = measure(case, datasets[case.num_classes], device, arguments.seconds)
        print(row(case, found[case]), flush=True)
    return found


def row(case: Case, speed: Speed) -> str:
    """Return a row of the table."""

    def rate(value: float | None) -> str:
        return "" if value is None else f"{value:,.0f}"

    def size(value: int | None) -> str:
        return "" if value is None else f"{value / 1e9:.1f}"

    share = "" if speed.share is None else f"{speed.share:.2f}"
    model = f"{case.model}, compiled" if case.compiled else case.model
    cells = [model, f"{case.num_classes:,}", str(case.batch_size), case.amp]
    cells += [rate(speed.both), rate(speed.threads), rate(speed.fixed), share, rate(speed.reader)]
    cells += [rate(speed.torchvision), rate(speed.timm)]
    cells += [size(speed.allocated), size(speed.reserved), size(speed.estimated), speed.note]
    return f"| {' | '.join(cells)} |"


def where(device: torch.device) -> str:
    """Return the device and the versions that the figures are of."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"
    return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}"


def parse(words: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--models", nargs="+", default=["resnet50", "efficientnet-b0"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--amp", nargs="+", default=["bf16", "fp16"])
    parser.add_argument("--classes", nargs="+", type=int, default=[12, _EVERY_CLASS])
    parser.add_argument("--size", type=int, default=224, help="pixels on each side of the pictures")
    parser.add_argument("--images", type=int, default=18_000, help="pictures of a dataset, at least 3 of each class")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each figure")
    parser.add_argument("--minutes", type=float, default=8, help="for everything; cases are left out to keep to it")
    parser.add_argument("--compile", action="store_true", help="train with --compile; the other loops stay as they are")
    parser.add_argument("--no-tests", action="store_true", help="leave out the tests marked cuda")
    parser.add_argument("--out", type=Path, default=Path("build/gpu.json"))
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Measure and check; return 1 if a check failed."""
    arguments, started = parse(words), time.monotonic()
    device = resolve_device(arguments.device)
    done = [] if arguments.no_tests else [run_tests(device)]
    with tempfile.TemporaryDirectory(prefix="gpu-") as work:
        folder = Path(work)
        datasets = {
            classes: draw_dataset(folder / str(classes), classes, arguments.images, arguments.size)
            for classes in arguments.classes
        }
        small = datasets[min(datasets)]
        done += [check_resume(small, device, folder), check_overflow(small, device)]
        print(f"\n{where(device)}; images a second\n")
        print(f"| {' | '.join(_COLUMNS)} |\n|---|---:|---:|---{'|---:' * 10}|---|", flush=True)
        deadline = started + 60 * arguments.minutes - _LAST_SECONDS
        found = measured(arguments, device, datasets, deadline)
        print()
        least = min(found, key=lambda case: case.batch_size)  # which the whole card has room for
        done.append(check_out_of_memory(small, device, folder, least.model, least.batch_size))
        done.append(check_estimate(found))
    for check in done:
        print(check.line())
    print(f"{time.monotonic() - started:.0f} s")
    content = {
        "where": where(device),
        "cases": [{**vars(case), **speed.json()} for case, speed in found.items()],
        "checks": [vars(check) for check in done],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    return int(any(check.ok is False for check in done))


if __name__ == "__main__":
    raise SystemExit(run_command("gpu", lambda: sys.exit(main())))
