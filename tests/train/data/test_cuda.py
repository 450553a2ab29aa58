"""Batches on a CUDA device: the pinned ring and augmentation."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lmk_data.dataset import ShardedDataset
from lmk_train.config.arguments import Cache
from lmk_train.data.augment import Augmentation, Preprocess, augmentation_draws
from lmk_train.data.reader import SplitReader
from lmk_train.data.stream import BatchStream
from lmk_train.models.registry import Normalization

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def test_the_pinned_ring_never_overwrites_a_batch_that_is_being_copied(dataset_path: Path) -> None:
    with ShardedDataset.open(dataset_path) as dataset:
        reader = SplitReader(dataset, "train", Cache(dataset_path, 0))
        batches = [np.random.default_rng(number).integers(0, len(reader), 16) for number in range(60)]
        slow = torch.empty(4096, 4096, device=CUDA)
        with closing(BatchStream(reader, CUDA, 16, 4)(batches)) as stream:
            sums = []
            for batch in stream:
                torch.mm(slow, slow)  # so that copies wait in the queue while the host runs ahead
                sums.append(batch.pixels.sum(dim=(1, 2, 3), dtype=torch.int64))
        with closing(BatchStream(reader, CPU, 16, 4)(batches)) as stream:
            expected = [batch.pixels.sum(dim=(1, 2, 3), dtype=torch.int64) for batch in stream]
        reader.close()
    assert all(torch.equal(there.cpu(), here) for there, here in zip(sums, expected, strict=True))


def test_augmentation_is_the_cpus(dataset_path: Path) -> None:
    pixels = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8)
    draws = augmentation_draws(np.arange(8), seed=0, epoch=0)
    chosen = Augmentation(0.5, 0.4, 4, 0.3, 0.5)
    normalization = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    here = Preprocess(normalization, chosen, CPU)(pixels, draws)
    there = Preprocess(normalization, chosen, CUDA)(pixels.to(CUDA), draws)
    torch.testing.assert_close(there.cpu(), here, atol=1e-4, rtol=1e-4)


def test_layers_are_channels_last_on_the_device(dataset_path: Path) -> None:
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, device=CUDA)
    normalization = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    out = Preprocess(normalization, Augmentation(), CUDA, torch.float16)(pixels, None)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert nn.Conv2d(3, 8, 3).to(CUDA).half()(out).dtype == torch.float16
