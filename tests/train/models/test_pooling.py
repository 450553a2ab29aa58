"""How feature maps become vectors."""

import pytest
import torch

from lmk_train.config.training import TrainConfig
from lmk_train.models.pooling import AveragePool, GeneralizedMean
from lmk_train.models.registry import make_backbone
from lmk_train.models.weights import load_weights


def test_a_generalized_mean_is_the_formula_and_its_gradient() -> None:
    pool = GeneralizedMean().double()
    maps = torch.rand(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    found = pool(maps)
    torch.testing.assert_close(found, ((maps.float() ** 3).mean(dim=(2, 3)) ** (1 / 3)).to(found.dtype))
    found.sum().backward()
    assert pool.p.grad is not None
    assert pool.p.grad.item() > 0


def test_power_one_is_the_mean_and_a_large_one_the_largest() -> None:
    pool = GeneralizedMean()
    maps = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    pool.p.data.fill_(1.0)
    torch.testing.assert_close(pool(maps), AveragePool()(maps))
    pool.p.data.fill_(40.0)
    torch.testing.assert_close(pool(maps), maps.amax(dim=(2, 3)), atol=0.1, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_do_not_overflow(dtype: torch.dtype) -> None:
    maps = torch.full((1, 2, 3, 3), 200.0, dtype=dtype)  # 200^3 is beyond float16
    with torch.autocast("cpu", dtype=dtype):
        torch.testing.assert_close(GeneralizedMean()(maps), torch.full((1, 2), 200.0))


def test_zeros_and_negative_values_have_finite_gradients() -> None:
    maps = torch.tensor([0.0, -3.0, 0.0, 0.0]).reshape(1, 1, 2, 2).requires_grad_()
    pool = GeneralizedMean()
    pool(maps).sum().backward()
    assert maps.grad is not None
    assert torch.isfinite(maps.grad).all()
    assert pool.p.grad is not None
    assert torch.isfinite(pool.p.grad).all()


@pytest.mark.parametrize("model", ["resnet50", "efficientnet-b0", "efficientnet-lite0", "resnet32"])
def test_every_backbone_takes_either_pooling(model: str) -> None:
    sizes = {}
    for pool in ("avg", "gem"):
        config = TrainConfig(shards="shards", model=model, weights="none", pool=pool).resolved()  # type: ignore[arg-type]
        backbone = make_backbone(config, 32).eval()
        with torch.inference_mode():
            sizes[pool] = backbone(torch.rand(2, 3, 32, 32)).shape
        names = [name for name in backbone.state_dict() if name.endswith("pool.p")]
        assert len(names) == (pool == "gem")
    assert sizes["avg"] == sizes["gem"]


def test_published_weights_load_into_a_backbone_with_a_generalized_mean() -> None:
    config = TrainConfig(shards="shards", model="efficientnet-lite0", pool="gem").resolved()
    assert "ImageNet" in load_weights(make_backbone(config, 32), "efficientnet-lite0", "imagenet")
