"""EfficientNet's weights as other libraries name them, and the conventions that they were trained under.

Three libraries have the same network under three sets of names. Two conventions go with them. Those of TensorFlow, in
which the weights were first published: strided convolutions pad what is needed, on an even picture one pixel less
before than after, and batch normalisation adds 1e-3 to the variance. Those of PyTorch: convolutions pad both sides
alike, and batch normalisation adds 1e-5. No tensor of a file tells the two apart.

    efficientnet_pytorch, efficientnet_lite_pytorch    tensorflow
    timm, tf_efficientnet_b0 and tf_efficientnet_lite0 tensorflow
    timm, efficientnet_b0 and efficientnet_lite0       pytorch
    torchvision, efficientnet_b0                       pytorch
"""

import re
from itertools import count

from lmk_train.config.training import Conventions
from lmk_train.models.state_dicts import StateDict

_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each stage, in B0 and in Lite0
_ENDS = {
    "timm": {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"},
    "torchvision": {
        "features.0.0": "_conv_stem",
        "features.0.1": "_bn0",
        "features.8.0": "_conv_head",
        "features.8.1": "_bn1",
    },
}
_STAGES = {"timm": "blocks.{stage}.{block}", "torchvision": "features.{next_stage}.{block}.block"}
_IN_FIRST_STAGE = {  # whose block does not expand its channels
    "timm": {
        "conv_dw": "_depthwise_conv",
        "bn1": "_bn1",
        "se.conv_reduce": "_se_reduce",
        "se.conv_expand": "_se_expand",
        "conv_pw": "_project_conv",
        "bn2": "_bn2",
    },
    "torchvision": {
        "0.0": "_depthwise_conv",
        "0.1": "_bn1",
        "1.fc1": "_se_reduce",
        "1.fc2": "_se_expand",
        "2.0": "_project_conv",
        "2.1": "_bn2",
    },
}
_IN_OTHER_STAGES = {
    "timm": {
        "conv_pw": "_expand_conv",
        "bn1": "_bn0",
        "conv_dw": "_depthwise_conv",
        "bn2": "_bn1",
        "se.conv_reduce": "_se_reduce",
        "se.conv_expand": "_se_expand",
        "conv_pwl": "_project_conv",
        "bn3": "_bn2",
    },
    "torchvision": {
        "0.0": "_expand_conv",
        "0.1": "_bn0",
        "1.0": "_depthwise_conv",
        "1.1": "_bn1",
        "2.fc1": "_se_reduce",
        "2.fc2": "_se_expand",
        "3.0": "_project_conv",
        "3.1": "_bn2",
    },
}
_TIMM_NAME = re.compile(r"(?<![a-z0-9])(tf_)?efficientnet_(?:b0|lite0)(?![a-z0-9])")


def library_of(state: StateDict) -> str | None:
    """Return `timm` or `torchvision`, whose names a state dict of an EfficientNet has; None for our own names."""
    return next((name for name, ends in _ENDS.items() if f"{next(iter(ends))}.weight" in state), None)


def renamed(state: StateDict, library: str) -> StateDict:
    """Return a state dict of a library's EfficientNet under our names; what has no counterpart keeps its own."""
    names = _names(library)
    moved = {}
    for key, value in state.items():
        module, _, kind = key.rpartition(".")
        moved[f"{names[module]}.{kind}" if module in names else key] = value
    return moved


def conventions_named(text: str) -> Conventions | None:
    """Return the conventions of the network of timm that a path or a checkpoint names; None if it names none.

    The last name counts: those of files follow those of folders.
    """
    found = _TIMM_NAME.findall(text)
    return None if not found else "tensorflow" if found[-1] else "pytorch"


def _names(library: str) -> dict[str, str]:
    """Return our name of each module of a library's network."""
    names, number = dict(_ENDS[library]), count()
    for stage, blocks in enumerate(_BLOCKS):
        inside = (_IN_OTHER_STAGES if stage else _IN_FIRST_STAGE)[library]
        for block in range(blocks):
            theirs, ours = _STAGES[library].format(stage=stage, next_stage=stage + 1, block=block), next(number)
            names |= {f"{theirs}.{one}": f"_blocks.{ours}.{other}" for one, other in inside.items()}
    return names
