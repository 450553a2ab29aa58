"""Processes decode what threads decode, report the same errors, and none of them outlives its stream."""

import errno
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import DatasetError, TrainingError, UserError
from lmk_train.config.arguments import Cache
from lmk_train.data import decoders
from lmk_train.data.reader import SplitReader
from lmk_train.data.stream import BatchStream

CPU = torch.device("cpu")
NO_CACHE = Cache(Path("/nonexistent"), 0)


@pytest.fixture
def reader(dataset: ShardedDataset) -> Iterator[SplitReader]:
    with closing(SplitReader(dataset, "train", NO_CACHE)) as opened:
        yield opened


def processes_of(pid: int) -> list[int]:
    """The decoding processes that a process has started."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if "decode_process" in Path(f"/proc/{child}/cmdline").read_text():
            found.append(int(child))
    return sorted(found)


def wait_for_the_end(pids: list[int]) -> None:
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        select.select([descriptor], [], [])
        os.close(descriptor)


def drawn(reader: SplitReader, size: int) -> list[np.ndarray]:
    order = np.random.default_rng(0).permutation(len(reader)).astype(np.int64)
    return [order[start : start + size] for start in range(0, len(order), size)]


@pytest.mark.parametrize("workers", [1, 3, 9])
def test_processes_decode_the_same_pictures_pass_after_pass(reader: SplitReader, workers: int) -> None:
    """The last batch is smaller than the others; with 9 processes some have no picture of a batch."""
    batches = drawn(reader, 7)
    expected = [batch.pixels.clone() for batch in BatchStream(reader, CPU, 7, 2, processes=False)(batches)]
    stream, ids = BatchStream(reader, CPU, 7, workers, processes=True), []
    for _ in range(2):
        for batch, picks, pixels in zip(stream(batches), batches, expected, strict=True):
            assert batch.picks.tolist() == picks.tolist()
            assert torch.equal(batch.pixels, pixels)
        ids.append(processes_of(os.getpid()))
    assert len(ids[0]) == workers
    assert ids[0] == ids[1], "kept for the next pass"
    del stream, batch
    assert processes_of(os.getpid()) == []


def test_leaving_early_ends_the_processes_and_the_next_pass_has_new_ones(reader: SplitReader) -> None:
    stream = BatchStream(reader, CPU, 4, 2, processes=True)
    with closing(stream([np.arange(4)] * 50)) as batches:
        first = next(batches).pixels.clone()
        assert len(processes_of(os.getpid())) == 2
    assert processes_of(os.getpid()) == []
    assert torch.equal(next(stream([np.arange(4)])).pixels, first)


def test_a_damaged_picture_is_the_error_that_threads_report(dataset_path: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset_path, tmp_path / "copy")
    with ShardedDataset.open(tmp_path / "copy") as dataset:
        sample = dataset.index("train").iloc[2]
        with open(tmp_path / "copy" / sample["shard"], "r+b") as file:
            file.seek(sample["jpg_offset"] + 50)
            file.write(bytes(8))
        with closing(SplitReader(dataset, "train", NO_CACHE)) as reader:
            said = []
            for processes in (False, True):
                with pytest.raises(DatasetError, match=f"sample {sample['key']} at offset") as error:
                    list(BatchStream(reader, CPU, 4, 2, processes=processes)([np.arange(4)] * 5))
                said.append(str(error.value))
    assert said[0] == said[1]
    assert processes_of(os.getpid()) == []


def test_a_picture_that_could_not_be_read_once_is_read_again(dataset_path: Path, tmp_path: Path) -> None:
    """The shard is not there when the process opens it, and is there again when this one does."""
    shutil.copytree(dataset_path, tmp_path / "copy")
    with ShardedDataset.open(tmp_path / "copy") as dataset:
        first = tmp_path / "copy" / dataset.index("train").iloc[0]["shard"]
        with closing(SplitReader(dataset, "train", NO_CACHE)) as reader:
            whole = np.empty((1, *reader.shape), np.uint8)
            reader.decode(np.array([0]), whole)  # leaves the shard open here
            first.rename(first.with_suffix(".away"))
            (batch,) = BatchStream(reader, CPU, 1, 1, processes=True)([np.array([0])])
    assert np.array_equal(batch.pixels.numpy(), whole)


def test_a_killed_process_is_one_line_that_says_what_to_do(reader: SplitReader) -> None:
    with closing(BatchStream(reader, CPU, 4, 2, processes=True)([np.arange(4)] * 50)) as batches:
        next(batches)
        os.kill(processes_of(os.getpid())[0], signal.SIGKILL)
        with pytest.raises(TrainingError, match=r"ended by signal 9, .* memory; .* --resume, or give fewer --workers"):
            list(batches)
    assert processes_of(os.getpid()) == []


def test_a_process_killed_between_passes_is_replaced(reader: SplitReader) -> None:
    stream = BatchStream(reader, CPU, 4, 2, processes=True)
    (first,) = (batch.pixels.clone() for batch in stream([np.arange(4)]))
    killed = processes_of(os.getpid())
    os.kill(killed[1], signal.SIGKILL)
    os.waitid(os.P_PID, killed[1], os.WEXITED | os.WNOWAIT)
    (second,) = stream([np.arange(4)])
    assert torch.equal(second.pixels, first)
    assert not set(processes_of(os.getpid())) & set(killed)


def test_answers_that_an_interrupted_pass_left_are_not_taken_for_those_of_the_next(
    reader: SplitReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupt comes after the first part of the first batch was sent."""
    stream = BatchStream(reader, CPU, 4, 2, processes=True)
    batches = drawn(reader, 4)[:3]
    expected = [batch.pixels.clone() for batch in stream(batches)]
    send, sent = decoders._Process.send, []

    def interrupted(process: decoders._Process, message: bytes) -> None:
        send(process, message)
        sent.append(message)
        if len(sent) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(decoders._Process, "send", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(stream(batches[::-1]))
    assert processes_of(os.getpid()) == []
    assert all(torch.equal(one.pixels, other) for one, other in zip(stream(batches), expected, strict=True))


def test_a_start_that_fails_leaves_no_process_and_the_next_one_is_whole(
    reader: SplitReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen, started = subprocess.Popen, []

    def second_fails(*words: object, **options: object) -> object:
        started.append(words)
        if len(started) == 2:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return popen(*words, **options)  # type: ignore[call-overload]

    stream = BatchStream(reader, CPU, 4, 3, processes=True)
    monkeypatch.setattr(decoders.subprocess, "Popen", second_fails)
    with pytest.raises(TrainingError, match=r"\(Resource temporarily unavailable\); give fewer --workers"):
        next(stream([np.arange(4)]))
    assert processes_of(os.getpid()) == []
    assert len(list(stream([np.arange(4)]))) == 1
    assert len(processes_of(os.getpid())) == 3


@pytest.mark.parametrize("processes", [False, True])
def test_a_second_pass_beside_an_open_one_is_refused(reader: SplitReader, processes: bool) -> None:
    stream = BatchStream(reader, CPU, 4, 2, processes=processes)
    with closing(stream([np.arange(4)] * 9)) as batches:
        next(batches)
        with pytest.raises(RuntimeError, match="an earlier pass of this stream is still open"):
            next(stream([np.arange(4)]))
        assert len(list(batches)) == 8
    assert len(list(stream([np.arange(4)]))) == 1


@pytest.mark.slow
def test_nothing_of_the_current_folder_is_imported(dataset_path: Path, tmp_path: Path) -> None:
    for name in ("json", "numpy", "mmap", "zlib"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(3)")
    program = tmp_path / "elsewhere" / "program.py"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    done = subprocess.run([sys.executable, program, dataset_path], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_path_that_is_not_utf8_is_opened(dataset_path: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    shutil.copytree(dataset_path, odd)
    with ShardedDataset.open(odd) as dataset, closing(SplitReader(dataset, "train", NO_CACHE)) as reader:
        assert len(list(BatchStream(reader, CPU, 4, 2, processes=True)([np.arange(4)]))) == 1


def test_a_signal_for_all_processes_of_a_service_leaves_the_decoding_to_the_training(reader: SplitReader) -> None:
    with closing(BatchStream(reader, CPU, 4, 2, processes=True)([np.arange(4)] * 50)) as batches:
        next(batches)  # they have begun
        for pid in processes_of(os.getpid()):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(pid, number)
        assert sum(1 for _ in batches) == 49
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []), "this process sees them"


PROGRAM = """
import sys, numpy, torch
from lmk_data.dataset import ShardedDataset
from lmk_train.config.arguments import Cache
from lmk_train.data.reader import SplitReader
from lmk_train.data.stream import BatchStream
reader = SplitReader(ShardedDataset.open(sys.argv[1]), "train", Cache(None, 0))
batches = BatchStream(reader, torch.device("cpu"), 4, 3, processes=True)([numpy.arange(4)] * 1000)
next(batches)
"""


@pytest.mark.slow
def test_streams_that_are_closed_leave_their_numbers_to_the_processes(dataset_path: Path) -> None:
    closed = "import os\nfor number in (0, 1): os.close(number)\n"
    words = [sys.executable, "-c", closed + PROGRAM, str(dataset_path)]
    done = subprocess.run(words, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_processes_end_with_a_parent_that_is_killed(dataset_path: Path) -> None:
    waits = PROGRAM + "print('decoding', flush=True)\nsys.stdin.read()\n"
    words = [sys.executable, "-c", waits, str(dataset_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"decoding\n"
        ids = processes_of(parent.pid)
        assert len(ids) == 3
        parent.kill()
        wait_for_the_end(ids)


def test_what_only_this_process_can_read_is_decoded_by_threads(dataset_path: Path, tmp_path: Path) -> None:
    storage = fsspec.filesystem("memory")
    storage.put(str(dataset_path), "/decoders", recursive=True)
    with (
        ShardedDataset.open("memory://decoders") as dataset,
        closing(SplitReader(dataset, "train", Cache(tmp_path, 1 << 30))) as reader,
    ):
        (batch,) = BatchStream(reader, CPU, 4, 2, processes=True)([np.arange(4)])
        assert batch.pixels.any()
        assert processes_of(os.getpid()) == []
    storage.rm("/decoders", recursive=True)


def test_too_little_memory_is_said(reader: SplitReader) -> None:
    for batch_size in (1 << 50, 1 << 62):
        with pytest.raises(UserError, match=r"no memory for batches of .* give a smaller --batch-size"):
            BatchStream(reader, CPU, batch_size, 2, processes=True)
