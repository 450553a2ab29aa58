from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import functional as vision

from lmk_train.data.augment import Augmentation, Preprocess, augmentation_draws, color_matrices
from lmk_train.data.geometry import random_boxes
from lmk_train.models.registry import Normalization

IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CPU = torch.device("cpu")


def pixels(num: int = 6, size: int = 16) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, size, size, 3), dtype=np.uint8))


def normalized(picture: torch.Tensor) -> torch.Tensor:
    """float [3, H, W] in 0..1, normalised by torchvision."""
    return vision.normalize(picture, list(IMAGENET.mean), list(IMAGENET.std))


def apply(matrix: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    """An affine map [3, 4] over float64 [3, H, W]."""
    return torch.einsum("ij,jhw->ihw", matrix[:, :3], picture) + matrix[:, 3:, None]


def draws(**values: float) -> torch.Tensor:
    """One row of draws; 0.5 leaves a factor at 1 and the hue where it is."""
    names = ["flip", "brightness", "contrast", "saturation", "hue"]
    names += [f"{what}_{name}" for what in ("crop", "erasing") for name in ("area", "aspect", "left", "top")]
    names.append("erased")
    assert values.keys() <= set(names)
    return torch.tensor([[values.get(name, 0.5) for name in names]], dtype=torch.float64)


class Box(NamedTuple):
    left: int
    top: int
    width: int
    height: int


def random_box(
    drawn: NDArray[np.float64], size: tuple[int, int], area: tuple[float, float], aspect: tuple[float, float]
) -> Box:
    return Box(*(int(side[0]) for side in random_boxes(drawn[None], size, area, aspect)))


def test_evaluation_only_normalises() -> None:
    batch = pixels()
    out = Preprocess(IMAGENET, Augmentation(0.5, 0.5), CPU)(batch, None)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    for i, picture in enumerate(batch):
        expected = normalized(picture.permute(2, 0, 1).float() / 255)
        torch.testing.assert_close(out[i], expected, atol=1e-5, rtol=1e-5)


def test_flips_are_drawn_per_sample() -> None:
    batch = pixels()
    chosen = draws().repeat(6, 1)
    chosen[:, 0] = torch.tensor([0.0, 0.9, 0.49, 0.5, 0.7, 0.2])
    out = Preprocess(IMAGENET, Augmentation(0.5, 0.0), CPU)(batch, chosen)
    plain = Preprocess(IMAGENET, Augmentation(), CPU)(batch, None)
    for i, flipped in enumerate([True, False, True, False, False, True]):
        assert torch.equal(out[i], plain[i].flip(2) if flipped else plain[i])


@pytest.mark.parametrize("draw", [0.0, 0.3, 0.8])
def test_brightness_and_saturation_are_torchvisions(draw: float) -> None:
    picture = torch.rand(3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    factor = 1 + 0.4 * (2 * draw - 1)
    bright = apply(color_matrices(draws(brightness=draw), 0.4)[0], picture)
    torch.testing.assert_close(bright, vision.adjust_brightness(picture, factor), atol=1e-9, rtol=0)
    saturated = apply(color_matrices(draws(saturation=draw), 0.4)[0], picture)
    # torchvision rounds the luma's weights to four digits
    torch.testing.assert_close(saturated, vision.adjust_saturation(picture, factor), atol=2e-4, rtol=0)


def test_contrast_pivots_on_a_half_and_hue_turns_in_yiq() -> None:
    picture = torch.rand(3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    contrasted = apply(color_matrices(draws(contrast=0.9), 0.5)[0], picture)
    torch.testing.assert_close(contrasted, (picture - 0.5) * 1.4 + 0.5, atol=1e-12, rtol=0)
    turned = apply(color_matrices(draws(hue=1.0), 0.4)[0], picture)
    red, green, blue = picture
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    i = 0.595716 * red - 0.274453 * green - 0.321263 * blue
    q = 0.211456 * red - 0.522591 * green + 0.311135 * blue
    angle = 2 * np.pi * 0.1
    i, q = i * np.cos(angle) - q * np.sin(angle), i * np.sin(angle) + q * np.cos(angle)
    expected = torch.stack([y + 0.9563 * i + 0.6210 * q, y - 0.2721 * i - 0.6474 * q, y - 1.1070 * i + 1.7046 * q])
    torch.testing.assert_close(turned, expected, atol=1e-3, rtol=0)


def test_all_of_it_is_the_steps_one_after_the_other_then_a_clamp() -> None:
    batch, chosen = pixels(), augmentation_draws(np.arange(6), 3, 1)
    out = Preprocess(IMAGENET, Augmentation(0.5, 0.5), CPU)(batch, chosen)
    for i, picture in enumerate(batch):
        value = (picture.flip(1) if chosen[i, 0] < 0.5 else picture).permute(2, 0, 1).double() / 255
        for name, column in (("brightness", 1), ("contrast", 2), ("saturation", 3), ("hue", 4)):
            value = apply(color_matrices(draws(**{name: chosen[i, column].item()}), 0.5)[0], value)
        torch.testing.assert_close(out[i], normalized(value.clamp(0, 1).float()), atol=2e-5, rtol=1e-4)


def test_draws_depend_on_the_sample_not_on_its_batch() -> None:
    together = augmentation_draws(np.arange(100), seed=1, epoch=2)
    apart = torch.cat([augmentation_draws(np.array([row]), seed=1, epoch=2) for row in range(100)])
    assert torch.equal(together, apart)
    assert ((together >= 0) & (together < 1)).all()
    assert not torch.equal(together, augmentation_draws(np.arange(100), seed=1, epoch=3))


def test_a_padded_crop_is_torchvisions() -> None:
    batch = pixels(1)
    augmented = Preprocess(IMAGENET, Augmentation(crop_padding=4), CPU)
    for left, top in ((0.0, 0.0), (0.999, 0.3), (0.5, 0.999)):
        out = augmented(batch, draws(crop_left=left, crop_top=top))
        padded = vision.pad(batch[0].permute(2, 0, 1), [4])
        expected = vision.crop(padded, int(top * 9), int(left * 9), 16, 16).float() / 255
        torch.testing.assert_close(out[0], normalized(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("flip", [0.9, 0.1])
def test_a_random_resized_crop_is_torchvisions_resize_of_the_random_box(flip: float) -> None:
    batch = pixels(1, 64)
    chosen = draws(flip=flip, crop_area=0.2, crop_aspect=0.9, crop_left=0.7, crop_top=0.1)
    out = Preprocess(IMAGENET, Augmentation(hflip=0.5, random_resized_crop=0.1), CPU)(batch, chosen)
    box = random_box(chosen[0, 5:9].numpy(), (64, 64), (0.1, 1.0), (3 / 4, 4 / 3))
    assert abs(box.width * box.height / 64**2 - 0.28) < 0.02
    assert abs(box.width / box.height - (3 / 4) * (16 / 9) ** 0.9) < 0.05
    inner = batch[0].permute(2, 0, 1)[:, box.top : box.top + box.height, box.left : box.left + box.width].float()
    expected = vision.resize(inner, [64, 64], antialias=True) / 255
    expected = vision.horizontal_flip(expected) if flip < 0.5 else expected
    torch.testing.assert_close(out[0], normalized(expected), atol=1e-4, rtol=1e-4)


def test_random_erasing_leaves_the_mean_colour_in_the_random_box_alone() -> None:
    batch = pixels(2, 32)
    chosen = torch.cat([draws(erased=0.1, erasing_area=0.4), draws(erased=0.9)])
    out = Preprocess(IMAGENET, Augmentation(random_erasing=0.25), CPU)(batch, chosen)
    plain = Preprocess(IMAGENET, Augmentation(), CPU)(batch, None)
    box = random_box(chosen[0, 9:13].numpy(), (32, 32), (0.02, 1 / 3), (0.3, 1 / 0.3))
    changed = (out[0] != plain[0]).any(dim=0)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[box.top : box.top + box.height, box.left : box.left + box.width] = True
    assert torch.equal(changed, inside)
    assert (out[0][:, inside] == 0).all()
    assert torch.equal(out[1], plain[1])


@given(
    drawn=st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4).map(np.array),
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    least=st.floats(0.01, 1),
)
def test_random_boxes_lie_inside(drawn: NDArray[np.float64], size: tuple[int, int], least: float) -> None:
    box = random_box(drawn, size, (least, 1.0), (0.3, 1 / 0.3))
    assert box.width >= 1 <= box.height
    assert 0 <= box.left <= box.left + box.width <= size[0]
    assert 0 <= box.top <= box.top + box.height <= size[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_compute_type_is_the_rounded_float32(dtype: torch.dtype) -> None:
    batch, chosen = pixels(), augmentation_draws(np.arange(6), 3, 1)
    full = Preprocess(IMAGENET, Augmentation(0.5, 0.5), CPU)(batch, chosen)
    half = Preprocess(IMAGENET, Augmentation(0.5, 0.5), CPU, dtype)(batch, chosen)
    assert half.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(half, full.to(dtype))


WAYS = [
    None,
    Augmentation(),
    Augmentation(0.5, 0.2),
    Augmentation(0.5, 0.2, crop_padding=4),
    Augmentation(0.5, 0.2, random_resized_crop=0.1),
    Augmentation(0.5, 0.2, random_erasing=0.5),
    Augmentation(0.5, 0.9, crop_padding=3, random_resized_crop=0.3, random_erasing=0.5),
]


@pytest.mark.parametrize("augmentation", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_batch_at_once_is_picture_by_picture(augmentation: Augmentation | None, dtype: torch.dtype) -> None:
    batch = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 56, 40, 3), dtype=np.uint8))
    chosen = None if augmentation is None else augmentation_draws(np.arange(8), seed=3, epoch=1)
    one_by_one, at_once = (
        Preprocess(IMAGENET, augmentation or Augmentation(), CPU, dtype, whole_batch=whole)(batch, chosen)
        for whole in (False, True)
    )
    assert at_once.dtype == dtype
    assert at_once.is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(at_once, one_by_one, atol=tolerance, rtol=tolerance)


class Kernels(TorchDispatchMode):
    """Names the operators that compute on the device `meta`, and counts the copies from the host."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.copies = 0

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        is_memory_or_view = func is torch.ops.aten.empty.memory_format or func.is_view
        if isinstance(out, torch.Tensor) and out.device.type == "meta" and not is_memory_or_view:
            if any(isinstance(one, torch.Tensor) and one.device.type == "cpu" for one in args):
                self.copies += 1
            else:
                self.names.append(str(func))
        return out


@pytest.mark.parametrize(
    ("augmentation", "kernels", "copies"), [(None, 3, 0), (WAYS[2], 4, 2), (WAYS[5], 6, 4), (WAYS[-1], 14, 10)]
)
def test_the_whole_batch_takes_a_few_kernels_however_many_pictures(
    augmentation: Augmentation | None, kernels: int, copies: int
) -> None:
    """Counted on the device that computes nothing: the normalisation is three kernels, a flip is one more."""
    for num in (2, 16):
        preprocess = Preprocess(IMAGENET, augmentation or Augmentation(), torch.device("meta"))
        chosen = None if augmentation is None else augmentation_draws(np.arange(num), seed=3, epoch=1)
        batch = pixels(num).to("meta")
        with Kernels() as counted:
            preprocess(batch, chosen)
        assert (len(counted.names), counted.copies) == (kernels, copies), counted.names
