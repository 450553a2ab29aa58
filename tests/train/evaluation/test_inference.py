"""How a split is run through a model."""

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lmk_data.dataset import ShardedDataset
from lmk_train.config.arguments import CacheOptions
from lmk_train.data.augment import Augmentation, Preprocess
from lmk_train.data.reader import SplitReader
from lmk_train.evaluation import inference
from lmk_train.evaluation.inference import Evaluator
from lmk_train.models.registry import ARCHITECTURES
from lmk_train.runtime.precision import Precision
from lmk_train.runtime.transfer import ToHost
from tests.train.networks import network

CPU = torch.device("cpu")


@pytest.fixture
def reader(dataset: ShardedDataset) -> Iterator[SplitReader]:
    with closing(SplitReader(dataset, "train", CacheOptions().resolved())) as reader:
        yield reader


def evaluator(dataset: ShardedDataset, batch_size: int) -> Evaluator:
    torch.manual_seed(0)
    model = network("resnet32", dataset.num_classes, dataset.recipe.size)
    preprocess = Preprocess(ARCHITECTURES["resnet32"].normalization, Augmentation(), CPU)
    return Evaluator(model, preprocess, Precision(CPU, None), batch_size, workers=1)


def test_a_batch_is_fetched_while_the_next_one_is_computed(
    dataset: ShardedDataset, reader: SplitReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []

    class Recorded(ToHost):
        def arrays(self) -> list[NDArray[np.generic]]:
            happened.append("fetched")
            return super().arrays()

    monkeypatch.setattr(inference, "ToHost", Recorded)
    of_all = evaluator(dataset, -(-len(reader) // 3))
    of_all.model.register_forward_hook(lambda *_: happened.append("computed"))
    of_all.predict(reader)
    assert happened == ["computed", "computed", "fetched", "computed", "fetched", "fetched"]


def test_a_compiled_model_sees_batches_of_one_size_and_predicts_the_same(
    dataset: ShardedDataset, reader: SplitReader
) -> None:
    sizes: list[int] = []
    plain, compiled = (evaluator(dataset, 2 * len(reader) // 3) for _ in range(2))
    backbone = compiled.model.backbone
    backbone._compiled_call_impl = backbone._call_impl  # of a compiler that leaves everything as it is
    backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    expected, predicted = plain.predict(reader), compiled.predict(reader)
    assert sizes == [compiled.batch_size] * 2
    np.testing.assert_array_equal(predicted.keys, expected.keys)
    np.testing.assert_allclose(predicted.losses, expected.losses, rtol=1e-4)
    np.testing.assert_allclose(predicted.probabilities, expected.probabilities, rtol=1e-4, atol=1e-6)
