"""Predict the landmark in a picture: resized as the run's dataset was, then classified by the run's model."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

from lmk_data.dataset import recipe_of
from lmk_data.dataset.format import Rejection
from lmk_data.errors import TooLargeError, UserError
from lmk_data.formats import MAX_IMAGE_BYTES, all_extensions
from lmk_data.resize import resize_image
from lmk_data.system.storage import is_url, open_folder, read_file
from lmk_train.config.training import ResolvedConfig
from lmk_train.data.augment import Augmentation, Preprocess
from lmk_train.models.registry import ARCHITECTURES, build_model
from lmk_train.runs.checkpoint import load_checkpoint, weights_to_evaluate
from lmk_train.runs.folder import RunFolder
from lmk_train.runs.tensor_file import restore_weights
from lmk_train.runtime.precision import Precision, resolve_device

_MAX_DEFAULT_WORKERS = 8

Pixels = NDArray[np.uint8]
Name = str | os.PathLike[str]


@dataclass(frozen=True)
class Guess:
    """One landmark that may be in a picture, and its probability."""

    label: int
    landmark_id: int | str
    name: str | None
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The most probable landmarks of one picture, or the error that prevented a prediction."""

    image: str
    guesses: tuple[Guess, ...]
    error: str | None = None


class Predictor:
    """Predicts with a run's checkpoint; the dataset is not needed.

    >>> predictor = Predictor("runs/efficientnet-b0-ldam")
    >>> for prediction in predictor(["photo.jpg"]):
    ...     print(prediction.guesses[0].name, prediction.guesses[0].probability)
    """

    def __init__(
        self, run: str | os.PathLike[str], *, checkpoint: str = "best", device: str = "auto", amp: str = "auto"
    ) -> None:
        """Load the checkpoint `best` or `last` onto the device.

        Args:
            run: folder of the run.
            checkpoint: `best` or `last`.
            device: `auto`, `cpu` or `cuda`.
            amp: mixed precision: `auto`, `fp16`, `bf16` or `off`.

        Raises UserError if there is no such checkpoint or device.
        """
        self._run = os.fspath(run)
        state = load_checkpoint(Path(run), checkpoint)
        trained = ResolvedConfig.from_json(state["config"])
        self._ids, self._names = state["classes"], state["names"]
        self._recipe = recipe_of(state["recipe"])
        self._device = resolve_device(device)
        self._precision = Precision.resolve(amp, self._device)
        model = build_model(trained, len(self._ids), self._recipe.size)
        restore_weights(model, weights_to_evaluate(state), RunFolder(Path(run)).checkpoint(checkpoint))
        self._model = model.to(self._device).to(memory_format=torch.channels_last).eval()
        normalization = ARCHITECTURES[trained.model].normalization
        self._preprocess = Preprocess(normalization, Augmentation(), self._device)

    def __call__(
        self, images: Name | Iterable[Name], *, top: int = 5, batch_size: int = 64, workers: int | None = None
    ) -> Iterator[Prediction]:
        """Yield the predictions for pictures, in the order given.

        Args:
            images: paths of pictures or of folders of pictures, or URLs; or one such name alone.
            top: landmarks to name for each picture.
            batch_size: pictures per batch.
            workers: threads that read and resize; by default one per core, at most 8.

        A picture that cannot be read has a prediction with its `error`.
        """
        threads = workers or min(os.cpu_count() or 1, _MAX_DEFAULT_WORKERS)
        with ThreadPoolExecutor(threads, thread_name_prefix="resize") as pool:
            previous, remaining = None, named_images([images] if isinstance(images, str | os.PathLike) else images)
            while names := tuple(islice(remaining, batch_size)):
                loading = names, [pool.submit(self._load, name) for name in names]
                if previous is not None:  # the next batch is read and resized beside the model
                    yield from self._predict(previous[0], [future.result() for future in previous[1]], top)
                previous = loading
            if previous is not None:
                yield from self._predict(previous[0], [future.result() for future in previous[1]], top)

    def _load(self, name: str) -> Pixels | str:
        """Return a picture's pixels as training sees them, uint8 [H, W, 3], or an error message."""
        try:
            data = read_file(name, MAX_IMAGE_BYTES)
        except TooLargeError as error:
            return f"too-large: {error.strerror}"
        except IsADirectoryError:
            return "has no pictures"
        except OSError as error:
            return error.strerror or str(error)
        except (UserError, ValueError) as error:  # an unknown kind of URL; an impossible name
            return str(error)
        resized = resize_image(data, self._recipe)
        if isinstance(resized, Rejection):
            return f"{resized.reason}: {resized.detail}"
        pixels: Pixels = simplejpeg.decode_jpeg(resized.jpeg, "RGB")
        return pixels

    @torch.inference_mode()
    def _predict(self, names: tuple[str, ...], loaded: list[Pixels | str], top: int) -> list[Prediction]:
        pictures = [pixels for pixels in loaded if not isinstance(pixels, str)]
        rows: Iterator[tuple[Guess, ...]] = iter(())
        if pictures:
            batch = torch.from_numpy(np.stack(pictures)).to(self._device)
            with self._precision.autocast():
                logits = self._model(self._preprocess(batch, None))
            best = logits.softmax(dim=1).topk(min(top, len(self._ids)), dim=1)
            if not best.values.isfinite().all():
                raise UserError(f"{self._run}: its probabilities are not finite in {self._precision}; give --amp off")
            rows = (
                self._guesses(labels, values)
                for labels, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            )
        return [
            Prediction(name, (), pixels) if isinstance(pixels, str) else Prediction(name, next(rows))
            for name, pixels in zip(names, loaded, strict=True)
        ]

    def _guesses(self, labels: list[int], probabilities: list[float]) -> tuple[Guess, ...]:
        return tuple(
            Guess(label, self._ids[label], self._names[label], probability)
            for label, probability in zip(labels, probabilities, strict=True)
        )


def named_images(words: Iterable[Name], lines: Iterable[str] | None = None) -> Iterator[str]:
    """Yield the names of pictures: folders are walked in sorted order, `-` stands for the names in `lines`.

    A folder is walked as a build does: links are followed, hidden files are left out. Its files are chosen by the
    suffixes of the formats that a build may accept. A folder without pictures is yielded as it is, so that reading it
    is an error.
    """
    suffixes = {f".{extension}" for extension in all_extensions()}
    for name in words:
        word = os.fspath(name)
        if word == "-" and lines is not None:
            yield from named_images(line.strip() for line in lines if line.strip())
        elif not is_url(word) and os.path.isdir(word):
            paths = (Path(word) / relative for relative, _ in open_folder(word).walk())
            yield from sorted(str(path) for path in paths if path.suffix.lower() in suffixes) or [word]
        else:
            yield word
