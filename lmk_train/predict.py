"""Predict the landmark in a picture: resized as the run's dataset was, then classified by the run's model."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
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
from lmk_train.evaluation.inference import Evaluator
from lmk_train.models.registry import ARCHITECTURES, build_model
from lmk_train.models.state_dicts import state_sha256
from lmk_train.neighbours.blend import blended
from lmk_train.neighbours.index import IndexedModel, NeighbourIndex, TrainingPictures, build_index, open_index
from lmk_train.runs.calibration import read_calibration
from lmk_train.runs.checkpoint import load_checkpoint, weights_to_evaluate
from lmk_train.runs.classes import Classes
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
class Neighbour:
    """A training picture and its landmark, and the cosine of its features with those of a picture."""

    key: str
    label: int
    landmark_id: int | str
    name: str | None
    similarity: float


@dataclass(frozen=True)
class Prediction:
    """What is said of one picture.

    Attributes:
        image: its name.
        guesses: the most probable landmarks.
        error: what prevented a prediction, or None.
        neighbours: the nearest training pictures, if asked for.
        left_out: the probability of the best landmark, if that is below the least one asked for; else None.
    """

    image: str
    guesses: tuple[Guess, ...]
    error: str | None = None
    neighbours: tuple[Neighbour, ...] = ()
    left_out: float | None = None


class Predictor:
    """Predicts with a run's checkpoint; the dataset is not needed.

    >>> predictor = Predictor("runs/efficientnet-b0-balanced-softmax")
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
        self._classes, self._recipe = Classes.of_checkpoint(state), recipe_of(state["recipe"])
        self._device = resolve_device(device)
        self._precision = Precision.resolve(amp, self._device)
        model = build_model(trained, len(self._classes.ids), self._recipe.size)
        weights = weights_to_evaluate(state)
        restore_weights(model, weights, RunFolder(Path(run)).checkpoint(checkpoint))
        self._model = model.to(self._device).to(memory_format=torch.channels_last).eval()
        normalization = ARCHITECTURES[trained.model].normalization
        self._preprocess = Preprocess(normalization, Augmentation(), self._device)
        self._trained, self._weights_sha256 = trained, state_sha256(weights)
        calibration = read_calibration(Path(run), self._weights_sha256)
        self._temperature = None if calibration is None else calibration.temperature
        self._index: NeighbourIndex | None = None

    @property
    def temperature(self) -> float | None:
        """The temperature that calibrates the probabilities; None if the run has none for this checkpoint."""
        return self._temperature

    def load_neighbours(
        self, pictures: TrainingPictures | None = None, announce: Callable[[str], None] = lambda _: None
    ) -> None:
        """Open the index of the training pictures in the run's folder; write it first if it is not there.

        Args:
            pictures: the dataset of the run, which is needed for writing the index.
            announce: called with a line about what is written.

        Raises UserError if the index or the dataset is not the run's.
        """
        evaluator = Evaluator(
            model=self._model,
            preprocess=self._preprocess,
            precision=self._precision,
            batch_size=self._trained.pictures_at_once,
            workers=None if pictures is None else pictures.workers,
        )
        model = IndexedModel(
            run=Path(self._run),
            shards=self._trained.shards,
            classifier=self._model,
            classes=self._classes,
            weights_sha256=self._weights_sha256,
            evaluator=evaluator,
            temperature=self._temperature,
        )
        self._index = open_index(model) or build_index(model, pictures or TrainingPictures(), announce)
        self._temperature = self._index.temperature

    def __call__(
        self,
        images: Name | Iterable[Name],
        *,
        top: int = 5,
        neighbours: int = 0,
        min_confidence: float = 0.0,
        batch_size: int = 64,
        workers: int | None = None,
    ) -> Iterator[Prediction]:
        """Yield the predictions for pictures, in the order given.

        Args:
            images: paths of pictures or of folders of pictures, or URLs; or one such name alone.
            top: landmarks to name for each picture.
            neighbours: training pictures to name for each picture and to blend in; needs `load_neighbours`.
            min_confidence: no landmark is named whose probability is lower.
            batch_size: pictures per batch.
            workers: threads that read and resize; by default one per core, at most 8.

        A picture that cannot be read has a prediction with its `error`. Raises UserError if `neighbours` are asked for
        and their index is not open.
        """
        if neighbours and self._index is None:
            raise UserError(f"{self._run}: its index of neighbours is not open; call load_neighbours first")
        asked = _Asked(top, neighbours, min_confidence)
        threads = workers or min(len(os.sched_getaffinity(0)), _MAX_DEFAULT_WORKERS)
        pool = ThreadPoolExecutor(threads, thread_name_prefix="resize")
        try:
            previous, remaining = None, named_images([images] if isinstance(images, str | os.PathLike) else images)
            while names := tuple(islice(remaining, batch_size)):
                loading = names, [pool.submit(self._load, name) for name in names]
                if previous is not None:  # the next batch is read and resized beside the model
                    yield from self._predict(previous[0], [future.result() for future in previous[1]], asked)
                previous = loading
            if previous is not None:
                yield from self._predict(previous[0], [future.result() for future in previous[1]], asked)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after an interruption nothing new is begun

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
    def _predict(self, names: tuple[str, ...], loaded: list[Pixels | str], asked: "_Asked") -> list[Prediction]:
        pictures = [pixels for pixels in loaded if not isinstance(pixels, str)]
        answers: Iterator[tuple[tuple[Guess, ...], tuple[Neighbour, ...]]] = iter(())
        if pictures:
            batch = torch.from_numpy(np.stack(pictures)).to(self._device)
            probabilities, near = self._probabilities(batch, asked.neighbours)
            best = probabilities.topk(min(asked.top, len(self._classes.ids)), dim=1)
            if not best.values.isfinite().all():
                raise UserError(f"{self._run}: its probabilities are not finite in {self._precision}; give --amp off")
            guesses = (
                self._guesses(labels, values)
                for labels, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            )
            answers = zip(guesses, near, strict=True)
        return [
            Prediction(name, (), pixels) if isinstance(pixels, str) else asked.answer(name, *next(answers))
            for name, pixels in zip(names, loaded, strict=True)
        ]

    def _probabilities(self, pixels: torch.Tensor, neighbours: int) -> tuple[torch.Tensor, list[tuple[Neighbour, ...]]]:
        """Return the probabilities of all classes, float32 [B, K], and the nearest training pictures of each picture.

        `pixels` are uint8 [B, H, W, 3]. Without an index the probabilities are the classifier's.
        """
        with self._precision.autocast():
            described = self._model.describe(self._preprocess(pixels, None))
        logits = self._model.classify(described)
        probabilities = (logits if self._temperature is None else logits / self._temperature).softmax(dim=1)
        if not neighbours:
            return probabilities, [()] * len(pixels)
        assert self._index is not None, "checked before the first batch"
        cosines, rows = self._index.nearest(described, neighbours)
        labels = self._index.labels[rows]
        blend = self._index.blends[rows.shape[1] - 1]
        mixed = blended(probabilities, cosines, torch.from_numpy(labels).to(self._device), blend)
        keys = self._index.keys.take(pa.array(rows.reshape(-1))).to_pylist()
        named = [
            Neighbour(key, label, self._classes.ids[label], self._classes.names[label], similarity)
            for key, label, similarity in zip(
                keys, labels.reshape(-1).tolist(), cosines.reshape(-1).tolist(), strict=True
            )
        ]
        number = rows.shape[1]
        return mixed, [tuple(named[start : start + number]) for start in range(0, len(named), number)]

    def _guesses(self, labels: list[int], probabilities: list[float]) -> tuple[Guess, ...]:
        return tuple(
            Guess(label, self._classes.ids[label], self._classes.names[label], probability)
            for label, probability in zip(labels, probabilities, strict=True)
        )


@dataclass(frozen=True)
class _Asked:
    """What is wanted of each picture: see `Predictor.__call__`."""

    top: int
    neighbours: int
    min_confidence: float

    def answer(self, name: str, guesses: tuple[Guess, ...], near: tuple[Neighbour, ...]) -> Prediction:
        """Return the prediction for a picture, without the landmarks that are not probable enough."""
        kept = tuple(guess for guess in guesses if guess.probability >= self.min_confidence)
        return Prediction(name, kept, None, near, None if kept else guesses[0].probability)


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
