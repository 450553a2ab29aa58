"""Networks are those of the libraries."""

import pytest
import torch

from lmk_train.models.registry import ARCHITECTURES, num_parameters
from tests.train.networks import network


@pytest.mark.parametrize("name", ["efficientnet-b0", "efficientnet-lite0"])
@pytest.mark.parametrize("size", [64, 75, 224])
def test_streamlined_networks_and_their_gradients_are_the_librarys(name: str, size: int) -> None:
    if name == "efficientnet-b0":
        from efficientnet_pytorch import EfficientNet
    else:
        from efficientnet_lite_pytorch import EfficientNet
    torch.manual_seed(0)
    library = EfficientNet.from_name(name, image_size=size).eval()
    model = network(name, 3, size).eval()
    state = {f"network.{k}": v for k, v in library.state_dict().items() if not k.startswith("_fc.")}
    model.backbone.load_state_dict(state)
    pictures = torch.randn(2, 3, size, size)
    expected, found = library.extract_features(pictures).mean(dim=(2, 3)), model.backbone(pictures)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    upstream = torch.randn_like(expected)
    expected.backward(upstream)
    found.backward(upstream)
    gradients = {f"network.{name}": parameter.grad for name, parameter in library.named_parameters()}
    for name, parameter in model.backbone.named_parameters():
        # Gradients are sums of thousands of float32 terms, of either sign and in another order.
        torch.testing.assert_close(
            parameter.grad, gradients[name], atol=1e-3 * float(gradients[name].abs().max()), rtol=0
        )


def test_sixteen_bit_training_runs_slow_kernels_in_float32_with_the_same_result() -> None:
    torch.manual_seed(0)
    model = network("efficientnet-lite0", 3, 64, "cosine")
    pictures = torch.randn(4, 3, 64, 64)
    exact = model.eval()(pictures)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            logits = model(pictures)
        assert logits.dtype == torch.float32
        assert (logits - exact).abs().max() < 1.5, "of a range of 60"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_sizes_that_an_architecture_states_are_those_of_its_network(name: str) -> None:
    """At 64 pixels the pooled features, which the size of pictures does not change, still count for little."""
    architecture, size = ARCHITECTURES[name], 32 if name == "resnet32" else 64
    model = network(name, 1000, size)
    assert num_parameters(model.backbone) == architecture.num_parameters
    assert num_parameters(model.head) == (architecture.num_features + 1) * 1000
    backbone = model.backbone.to(memory_format=torch.channels_last)
    own = {tensor.data_ptr() for tensor in (*backbone.parameters(), *backbone.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        backbone(torch.zeros(2, 3, size, size).to(memory_format=torch.channels_last))
    pixel_bytes = sum(storage.nbytes() for storage in kept.values()) / (2 * size**2)
    assert pixel_bytes == pytest.approx(architecture.pixel_bytes, rel=0.05)
