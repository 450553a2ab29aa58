"""How a backbone's last feature map becomes one vector: its mean, or a generalised mean whose power is learnt."""

import torch
from torch import nn

_FIRST_POWER = 3.0
_SMALLEST = 1e-6  # a power of 0 has no gradient


class AveragePool(nn.Module):
    """The mean over positions: [B, C, H, W] to [B, C]."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.mean(dim=(2, 3))


class GeneralizedMean(nn.Module):
    """(mean of x^p)^(1/p) over positions, p learnt from 3 on: [B, C, H, W] to float32 [B, C].

    Large p weighs the strongest positions, p = 1 is the mean; values below 1e-6 count as 1e-6. Computed in float32,
    because float16 overflows at powers. Radenović et al., "Fine-tuning CNN image retrieval with no human annotation",
    TPAMI 2019.
    """

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), _FIRST_POWER))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            powers = features.float().clamp_min(_SMALLEST).pow(self.p)
            return powers.mean(dim=(2, 3)).pow(1 / self.p)
