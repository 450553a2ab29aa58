"""The memory that trainings take on a CUDA device, by calculation, as the tables in docs/training.md.

    python -m pipelines.bench.memory [--classes 57042] [--size 224] [--amp fp16|off]

Needs neither a dataset nor a GPU. `lmk-train --dry-run` says the same of one training, and on CUDA measures it.
"""

import argparse
from itertools import product

from lmk_train.config.defaults import ModelName
from lmk_train.config.training import TrainConfig
from lmk_train.training.batch_size import Need, largest_batch

_MODELS: tuple[ModelName, ...] = ("resnet50", "efficientnet-b0", "efficientnet-lite0")
_BATCHES = (32, 64, 128, 256)
_CARDS = (8, 16, 24, 80)
_GIB = 2**30
_MANY = 10**9  # pictures: enough for any batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=57042)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--amp", choices=("fp16", "off"), default="fp16", help="bf16 takes as much as fp16")
    arguments = parser.parse_args()
    value_bytes = 4 if arguments.amp == "off" else 2
    print(f"{arguments.classes:,} classes, {arguments.size} pixels, --amp {arguments.amp}, one rank\n")
    columns = [*(f"{batch} at once" for batch in _BATCHES), *(f"default, {card} GiB" for card in _CARDS)]
    print(f"| model | optimiser | `--ema` | {' | '.join(columns)} |\n|---|---|---|{'---:|' * len(columns)}")
    for model, optimizer, ema in product(_MODELS, ("adamw", "sgd"), (None, 0.999)):
        config = TrainConfig("none", model=model, optimizer=optimizer, ema=ema).resolved()  # type: ignore[arg-type]
        need = Need.of(config, arguments.classes, arguments.size, value_bytes, 1)
        sizes = [f"{(need.fixed + need.picture * batch) / 1e9:.1f} GB" for batch in _BATCHES]
        sizes += [str(largest_batch(need, card * _GIB, config, _MANY, 1)) for card in _CARDS]
        print(f"| {model} | {optimizer} | {'no' if ema is None else 'yes'} | {' | '.join(sizes)} |")


if __name__ == "__main__":
    main()
