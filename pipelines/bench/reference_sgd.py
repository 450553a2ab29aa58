"""`lmk-train` with the optimiser of the LDAM paper's code: plain momentum, and every parameter decays.

    python -m pipelines.bench.reference_sgd --shards DIR --out RUN --model resnet32 ...   # the options of lmk-train

Source: https://github.com/kaidic/LDAM-DRW, `cifar_train.py` (SGD with momentum 0.9 over all parameters of the model).
Ours has Nesterov momentum, and norms and biases do not decay. `pipelines.cifar10_lt` trains with both.
"""

import sys
from unittest.mock import patch

import torch

from lmk_train.cli import train_main
from lmk_train.models.heads import Classifier


def reference_sgd(
    model: Classifier, name: str, *, lr: float, head_lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return SGD (momentum 0.9) over all trainable parameters; takes what `lmk_train.training.optim` takes."""
    if name != "sgd" or head_lr != lr:
        raise ValueError(f"the reference code has SGD with one learning rate, not {name} with {lr} and {head_lr}")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": parameters, "lr": lr, "peak_lr": lr, "weight_decay": weight_decay}]
    sgd = torch.optim.SGD(groups, momentum=0.9, fused=True)
    for parameter in parameters:
        sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)  # as in `lmk_train.training.optim`
    return sgd


def main() -> int:
    """Train; the arguments and exit codes are those of `lmk-train`."""
    with patch("lmk_train.training.assembly.make_optimizer", reference_sgd):
        return train_main(sys.argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())
