from collections.abc import Iterator

import pytest
import torch

from lmk_train.runtime.backend import set_backend_flags


@pytest.fixture(autouse=True)
def flags_come_back() -> Iterator[None]:
    earlier = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = earlier


def test_cudnn_takes_the_fastest_algorithm_unless_the_training_has_to_be_deterministic() -> None:
    set_backend_flags(deterministic=False)
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == (True, False)
    set_backend_flags(deterministic=True)
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == (False, True)
    assert torch.are_deterministic_algorithms_enabled()
    set_backend_flags(deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()
