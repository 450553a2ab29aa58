"""Compare stored images: small versions of them, and whether two of these show the same."""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from lmk_data.dataset.reader import ShardedDataset
from lmk_data.decoding import check_stored
from lmk_data.errors import DatasetError

if TYPE_CHECKING:
    from tqdm import tqdm

MAX_PAIRS = 65_536  # compared by one call of `SmallPictures.alike`
_SMALL_SIZE = 32
_MIN_CORRELATION = 0.95
_MAX_COLOUR_DIFFERENCE = 24.0  # of the mean colours, in 0..255
_MAX_KEPT = 2 * MAX_PAIRS  # at 32x32 pixels: 400 MB
_PICTURES_PER_TASK, _PAIRS_PER_TASK = 128, 256


def small_picture(jpeg: bytes, side: int) -> NDArray[np.uint8]:
    """Return a stored image of `side` x `side` pixels at the size at which it is compared, uint8 [32, 32, 3].

    Raises ValueError if it cannot be decoded or is of another size.
    """
    least = 3 * _SMALL_SIZE // 2  # a quarter of 224 pixels, for which the decoder has vector code
    check_stored(jpeg, side)
    rgb = simplejpeg.decode_jpeg(jpeg, "RGB", min_height=least, min_width=least, min_factor=1)
    size = (_SMALL_SIZE, _SMALL_SIZE)
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BOX))


def look_alike(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which pairs of small images, uint8 [..., 32, 32, 3], show the same, bool [...].

    They do if they are correlated and have the same mean colour.
    """
    x, y = _channels(a), _channels(b)
    x_mean, y_mean = x.mean(axis=-1, keepdims=True), y.mean(axis=-1, keepdims=True)
    same_colour = np.abs(x_mean - y_mean).max(axis=(-2, -1)) <= _MAX_COLOUR_DIFFERENCE
    x -= x_mean
    y -= y_mean
    products = (np.einsum("...cp,...cp->...", *pair) for pair in ((x, x), (y, y), (x, y)))
    x_square, y_square, covariance = products
    scale = np.sqrt(x_square * y_square)
    alike: NDArray[np.bool_] = same_colour & (scale > 0) & (covariance >= _MIN_CORRELATION * scale)
    return alike


def _channels(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return images [..., 32, 32, 3] as float32 [..., 3, 1024]: sums over adjacent numbers are fast."""
    pixels = pictures.reshape(*pictures.shape[:-3], -1, pictures.shape[-1])
    return pixels.swapaxes(-1, -2).astype(np.float32, order="C")


class SmallPictures:
    """Stored images at 32x32 pixels, read by threads and kept in memory while there is room."""

    def __init__(
        self, dataset: ShardedDataset, samples: pd.DataFrame, pool: ThreadPoolExecutor, bar: "tqdm[Any]"
    ) -> None:
        self._dataset, self._samples, self._pool, self._bar = dataset, samples, pool, bar
        self._place = np.full(len(samples), -1, dtype=np.int64)
        self._small = np.empty((min(_MAX_KEPT, len(samples)), _SMALL_SIZE, _SMALL_SIZE, 3), dtype=np.uint8)
        self._num_kept = 0

    def alike(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which pairs of rows look alike, bool [N]; `left` and `right` are int64 [N], N at most `MAX_PAIRS`."""
        self._read(np.union1d(left, right))
        a, b = self._place[left], self._place[right]
        starts = range(0, len(left), _PAIRS_PER_TASK)
        parts = self._pool.map(
            lambda i: look_alike(self._small[a[i : i + _PAIRS_PER_TASK]], self._small[b[i : i + _PAIRS_PER_TASK]]),
            starts,
        )
        return np.concatenate([np.empty(0, dtype=np.bool_), *parts])

    def _read(self, rows: NDArray[np.int64]) -> None:
        """Read the rows that are not kept yet; if they do not fit, all others are discarded."""
        missing = rows[self._place[rows] < 0]
        if self._num_kept + len(missing) > len(self._small):
            self._place[:] = -1
            self._num_kept, missing = 0, rows
        table = self._samples.loc[missing, ["shard", "jpg_offset", "jpg_size"]].sort_values(["shard", "jpg_offset"])
        self._bar.total = (self._bar.total or 0) + len(table)
        places = list(table.itertuples(index=False, name=None))
        tasks = [places[start : start + _PICTURES_PER_TASK] for start in range(0, len(places), _PICTURES_PER_TASK)]
        for task, small in zip(tasks, self._pool.map(self._shrink, tasks), strict=True):
            self._small[self._num_kept : self._num_kept + len(task)] = small
            self._num_kept += len(task)
            self._bar.update(len(task))
        self._place[table.index.to_numpy()] = np.arange(self._num_kept - len(table), self._num_kept)

    def _shrink(self, places: list[tuple[str, int, int]]) -> NDArray[np.uint8]:
        """Read stored images (shard, offset, number of bytes) and return them as uint8 [N, 32, 32, 3]."""
        small = np.empty((len(places), _SMALL_SIZE, _SMALL_SIZE, 3), dtype=np.uint8)
        for i, (shard, offset, num_bytes) in enumerate(places):
            data = self._dataset.read_bytes(shard, offset, num_bytes)
            try:
                small[i] = small_picture(data, self._dataset.recipe.size)
            except ValueError as error:
                where = f"{self._dataset.shards_folder.location(shard)}: the image at {offset:,}"
                raise DatasetError(f"{where} cannot be read ({error}); run `lmk-shard verify`") from error
        return small
