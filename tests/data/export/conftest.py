"""The splits that exports are read with."""

import pytest


@pytest.fixture(params=["train", "val"])
def split(request: pytest.FixtureRequest) -> str:
    return str(request.param)
