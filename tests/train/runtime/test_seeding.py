import pytest
import torch

from lmk_train.runtime.seeding import seed_generators


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_numbers_are_those_of_torchs_own_seeding(seed: int) -> None:
    torch.manual_seed(seed)
    expected = torch.rand(9)
    seed_generators(seed, torch.device("cpu"))
    assert torch.equal(torch.rand(9), expected)
