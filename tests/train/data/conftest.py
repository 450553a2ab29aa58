"""The small dataset in its larger form: shards are then mostly pictures, as real ones are."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def dataset_path(dataset_64: Path) -> Path:
    return dataset_64
