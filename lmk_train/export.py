"""Export a run's model as one file for other programs: pixels in, probabilities out, checked before it is written."""

import io
import json
import logging
import mmap
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import LmkError, TrainingError, UserError, missing_extra
from lmk_data.system.files import write_bytes
from lmk_train.config.commands import ExportConfig
from lmk_train.config.training import ResolvedConfig
from lmk_train.data.reader import SplitReader
from lmk_train.data.stream import BatchStream
from lmk_train.models.heads import Classifier
from lmk_train.models.registry import ARCHITECTURES, Normalization, build_model
from lmk_train.runs.checkpoint import load_checkpoint, weights_to_evaluate
from lmk_train.runs.folder import RunFolder, stored_dataset
from lmk_train.runs.plain_file import open_regular
from lmk_train.runs.tensor_file import restore_weights

DESCRIPTION = "lmk.json"  # in a torch.export archive; the value of the metadata "lmk" in ONNX
_PICTURES = 8
_EMBEDDED = b"content_sha256"  # stands in the description that every export holds
_MOST_ONNX_BYTES = (2 << 30) - (16 << 20)  # of weights: a message of protobuf has at most 2 GiB
_ONNX_START = b"\x08"  # the first field of a model is its version, a number
_TOLERANCE = 1e-3  # of log-probabilities, whose error is about 1e-5 in float32 for logits of 30

Pixels = NDArray[np.uint8]
Program = Callable[[Pixels], NDArray[np.float32]]


@dataclass(frozen=True)
class Export:
    """An exported file.

    `largest_difference` is that of its log-probabilities from the checkpoint's, relative where they are beyond 1;
    `checked_on` says on what it was measured.
    """

    path: Path
    num_bytes: int
    largest_difference: float
    checked_on: str


class Inference(nn.Module):
    """Normalisation, the network and softmax: uint8 [B, H, W, 3] RGB to probabilities float32 [B, K]."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: Classifier, normalization: Normalization) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", 255 * torch.tensor(normalization.mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(normalization.std).view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        pictures = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        probabilities: torch.Tensor = self.model(pictures).softmax(dim=1)
        return probabilities


def export_run(config: ExportConfig) -> Export:
    """Write a run's model as one file, after comparing the exported program with the checkpoint on pictures.

    Raises UserError if the run, the folder of the file or a needed package is missing, TrainingError if program and
    checkpoint differ.
    """
    path = config.out or RunFolder(config.run).exported(config.to)
    state = load_checkpoint(config.run, config.checkpoint)
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}; make it, or name another one")
    _check_replaceable(path)
    trained, size = ResolvedConfig.from_json(state["config"]), state["recipe"]["size"]
    model = build_model(trained, len(state["classes"]), size)
    restore_weights(model, weights_to_evaluate(state), RunFolder(config.run).checkpoint(config.checkpoint))
    module = Inference(model, ARCHITECTURES[trained.model].normalization).eval().requires_grad_(False)
    description = json.dumps(
        {
            "model": trained.model,
            "input": f"uint8 [batch, {size}, {size}, 3], RGB, resized as `recipe` says",
            "output": f"probabilities, float32 [batch, {len(state['classes'])}], in order of `classes`",
            "recipe": state["recipe"],
            "classes": [{"landmark_id": i, "name": n} for i, n in zip(state["classes"], state["names"], strict=True)],
            "content_sha256": state["content_sha256"],
        }
    )
    pixels, source = _pictures(config, trained.shards, size)
    make = _onnx_bytes if config.to == "onnx" else _torch_bytes
    with torch.no_grad(), _quietly():
        data = make(module, torch.from_numpy(pixels[:2]), description)
        difference = _largest_difference(_program(config.to, data), module, pixels)
    if not difference <= _TOLERANCE:
        raise TrainingError(
            f"{config.run}: the exported program differs from the checkpoint (log-probabilities by {difference:.2g}; "
            "inf: another best class); nothing was written"
        )
    _check_replaceable(path)
    write_bytes(path, data)
    return Export(path, len(data), difference, source)


def _torch_bytes(module: nn.Module, example: torch.Tensor, description: str) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(_exported(module, example), buffer, extra_files={DESCRIPTION: description})
    return buffer.getvalue()


def _onnx_bytes(module: nn.Module, example: torch.Tensor, description: str) -> bytes:
    try:
        import onnx
        import onnxruntime  # noqa: F401  (needed for the check; reported before the work, not after)
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_extra("--to onnx", "export", f"{error.name} is missing") from None
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if num_bytes > _MOST_ONNX_BYTES:
        raise UserError(
            f"--to onnx: the weights have {num_bytes / 1e9:.1f} GB, and one file of ONNX holds 2; give --to torch, or "
            "train with a smaller --neck"
        )
    names = {"input_names": ["pixels"], "output_names": ["probabilities"]}
    program = torch.onnx.export(_exported(module, example), dynamo=True, verbose=False, **names)  # type: ignore[arg-type]
    assert program is not None
    proto = program.model_proto
    proto.metadata_props.append(onnx.StringStringEntryProto(key="lmk", value=description))
    data: bytes = proto.SerializeToString()
    return data


def _exported(module: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch", max=1 << 16)},))


def _program(kind: str, data: bytes) -> Program:
    """Return the exported program as a function of pixels, loaded as another program would load it."""
    if kind == "torch":
        loaded = torch.export.load(io.BytesIO(data)).module()
        return lambda pixels: np.asarray(loaded(torch.from_numpy(pixels)).numpy())
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda pixels: np.asarray(session.run(["probabilities"], {"pixels": pixels})[0])


def _largest_difference(program: Program, module: nn.Module, pixels: Pixels) -> float:
    """Return the largest difference of log-probabilities, relative where they are beyond 1.

    It is infinite if the best label of any picture differs. Probabilities themselves would hardly differ with many
    classes, even in a wrong program. The program is run on all pictures at once and on one alone, since its user
    chooses the batch size.
    """
    expected = module(torch.from_numpy(pixels)).numpy()
    exported = np.concatenate([program(pixels), program(pixels[:1])])
    expected = np.concatenate([expected, expected[:1]])
    if (exported.argmax(axis=1) != expected.argmax(axis=1)).any():
        return float("inf")
    least = np.finfo(np.float32).tiny
    logarithms, wanted = np.log(np.maximum(exported, least)), np.log(np.maximum(expected, least))
    return float((np.abs(logarithms - wanted) / np.maximum(1, np.abs(wanted))).max())


def _check_replaceable(path: Path) -> None:
    """Raise UserError for an existing file that is no export of a run."""
    if path.exists() and not _is_export(path):
        raise UserError(f"--out {path}: exists and is no export of a run; name another file")


def _is_export(path: Path) -> bool:
    """Return whether a file is one that this module wrote; it is searched in place, without being read into memory.

    An archive of torch.export has the description as a member, which a checkpoint has not; ONNX has it in its metadata.
    """
    with (
        suppress(UserError, ValueError, zipfile.BadZipFile),  # ValueError: it is empty
        open_regular(path) as file,
    ):
        if zipfile.is_zipfile(file):
            return any(name.endswith(f"/{DESCRIPTION}") for name in zipfile.ZipFile(file).namelist())
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content[:1] == _ONNX_START and content.find(_EMBEDDED) >= 0
    return False


def _pictures(config: ExportConfig, trained_on: str, size: int) -> tuple[Pixels, str]:
    """Return pictures to compare on, uint8 [8, size, size, 3], and a description of where they are from.

    They are pictures of --shards or else of the dataset trained on; noise if that cannot be read.
    """
    cache = config.cache.resolved()
    try:
        shards = config.shards or stored_dataset(config.run, trained_on)
        with ShardedDataset.open(shards, base=config.base) as dataset:
            if dataset.recipe.size != size:
                raise UserError(f"{shards}: its pictures have {dataset.recipe.size} pixels, those of the run {size}")
            split = next(name for name in ("val", "test", "train") if dataset.num_samples(name))
            rows = np.arange(min(_PICTURES, dataset.num_samples(split)))
            with (
                closing(SplitReader(dataset, split, cache)) as reader,
                closing(BatchStream(reader, torch.device("cpu"), len(rows))([rows])) as batches,
            ):
                pixels = next(batches).pixels.numpy().copy()
            return np.resize(pixels, (_PICTURES, *pixels.shape[1:])), f"{split} pictures of {dataset.location}"
    except LmkError as error:
        if config.shards is not None:
            raise
        noise = np.random.default_rng(0).integers(0, 256, (_PICTURES, size, size, 3), dtype=np.uint8)
        return noise, f"noise, since the dataset of the run cannot be read any more ({error})"


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the log messages and warnings of the exporters."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
