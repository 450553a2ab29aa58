"""Batches on a CUDA device: the pinned ring and augmentation. The CPU runs the same tests."""

from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lmk_data.dataset import ShardedDataset
from lmk_train.config.arguments import Cache
from lmk_train.data.augment import Augmentation, Preprocess, augmentation_draws
from lmk_train.data.mixing import Mixing, main_labels, mix_pictures
from lmk_train.data.reader import SplitReader
from lmk_train.data.stream import BatchStream
from lmk_train.models.registry import Normalization
from tests.train.devices import every_device

CPU = torch.device("cpu")


@every_device
def test_the_pinned_ring_never_overwrites_a_batch_that_is_being_copied(dataset_path: Path, device: str) -> None:
    with ShardedDataset.open(dataset_path) as dataset:
        reader = SplitReader(dataset, "train", Cache(dataset_path, 0))
        batches = [np.random.default_rng(number).integers(0, len(reader), 16) for number in range(60)]
        width = 4096 if device == "cuda" else 64
        slow = torch.zeros(width, width, device=device)
        with closing(BatchStream(reader, torch.device(device), 16, 4)(batches)) as stream:
            sums = []
            for batch in stream:
                torch.mm(slow, slow)  # so that copies wait in the queue while the host runs ahead
                sums.append(batch.pixels.sum(dim=(1, 2, 3), dtype=torch.int64))
        with closing(BatchStream(reader, CPU, 16, 4)(batches)) as stream:
            expected = [batch.pixels.sum(dim=(1, 2, 3), dtype=torch.int64) for batch in stream]
        reader.close()
    assert all(torch.equal(there.cpu(), here) for there, here in zip(sums, expected, strict=True))


@every_device
def test_augmentation_is_the_cpus(device: str) -> None:
    pixels = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8)
    draws = augmentation_draws(np.arange(8), seed=0, epoch=0)
    chosen = Augmentation(0.5, 0.4, 4, 0.3, 0.5)
    normalization = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    here = Preprocess(normalization, chosen, CPU)(pixels, draws)
    there = Preprocess(normalization, chosen, torch.device(device))(pixels.to(device), draws)
    torch.testing.assert_close(there.cpu(), here, atol=1e-4, rtol=1e-4)


@every_device
def test_mixing_is_the_cpus(device: str) -> None:
    here = torch.randn(8, 3, 24, 20).to(memory_format=torch.channels_last)
    there = here.to(device)
    mix = Mixing(0.4, 1.0).of(np.arange(8), 0, 0, (20, 24))
    for pictures in (here, there):
        mix_pictures(pictures, mix)
    torch.testing.assert_close(there.cpu(), here, atol=1e-6, rtol=1e-6)
    labels = torch.arange(8, device=device)
    assert torch.equal(main_labels(labels, mix).cpu(), main_labels(torch.arange(8), mix))


@every_device
def test_layers_are_channels_last_on_the_device(device: str) -> None:
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, device=device)
    normalization = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    out = Preprocess(normalization, Augmentation(), torch.device(device), torch.float16)(pixels, None)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert nn.Conv2d(3, 8, 3).to(device).half()(out).dtype == torch.float16
