"""ResNet-50 of torchvision (He et al., "Deep residual learning for image recognition", CVPR 2016)."""

from torch import nn

from lmk_train.models.state_dicts import StateDict, download_state_dict


def make_resnet50(_: int) -> nn.Module:
    """Return the network without its classifier: float32 [B, 3, H, W] to features [B, 2048], for any picture size."""
    from torchvision.models import resnet50

    network: nn.Module = resnet50(weights=None)
    network.fc = nn.Identity()
    return network


def resnet50_weights() -> StateDict:
    """Download torchvision's second ImageNet weights."""
    from torchvision.models import ResNet50_Weights

    return download_state_dict(ResNet50_Weights.IMAGENET1K_V2.url, check_hash=True)
