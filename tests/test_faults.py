"""Real faults: whatever happens to a build, nothing complete is lost, and going on ends with the same bytes."""

import contextlib
import os
import pty
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmk_data.dataset import ShardedDataset
from tests.build_process import finish, one_line, receipts, rejects, start, wait_for, words
from tests.published import hashes

pytestmark = pytest.mark.slow


NO_TMPFS = "this machine does not let a test mount a file system of its own"


def only_whole_files(out: Path) -> bool:
    """Nothing half-written has a final name: every tar is as long as its receipt says, or has none yet."""
    return not [path for path in out.rglob("*.tmp") if ".build" not in path.parts]


@pytest.mark.parametrize(("workers", "kills"), [(1, 2), (2, 6), (4, 2)])
def test_killed_at_any_moment(source: Path, expected: dict[str, str], tmp_path: Path, workers: int, kills: int) -> None:
    """kill -9 of the whole group, at random moments from the start to after publication, again and again."""
    rng, out = random.Random(workers), tmp_path / "shards"
    command = words(source, out, "--workers", str(workers), "--quiet")
    started = time.monotonic()
    finish(command)
    seconds = time.monotonic() - started
    assert hashes(out) == expected
    shutil.rmtree(out)
    killed = published = 0
    while killed < kills:
        process = start(command)
        time.sleep(rng.uniform(0.2, 1.0) * seconds)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.communicate()
        assert only_whole_files(out)
        if (out / "dataset.json").exists():
            published += 1
            ShardedDataset.open(out).close()
            finish(command)
            assert hashes(out) == expected
            shutil.rmtree(out)
    finish(command)
    assert hashes(out) == expected


def test_interrupted(source: Path, expected: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "shards"
    for number in (signal.SIGINT, signal.SIGTERM):
        process = start(words(source, out, "--workers", "2"))
        before = receipts(out)
        wait_for(lambda before=before: receipts(out) > before, process)  # type: ignore[misc]
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        _, said = process.communicate(timeout=240)
        assert process.returncode == 130
        assert said.rstrip().endswith("interrupted; run it again to resume")
        assert "Traceback" not in said
    kept = receipts(out)
    finish(words(source, out, "--workers", "2"))
    assert kept > 0
    assert hashes(out) == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_workers_start(tmp_path: Path, number: signal.Signals) -> None:
    """Workers print nothing of their own, and none is left that the end would wait for."""
    command = [sys.executable, "-m", "lmk_data.cli", "sample", str(tmp_path), "--images", "900", "--workers", "2"]
    for step in range(3):
        process = start(command)
        assert process.stderr is not None
        assert any("drawing" in line for line in process.stderr)
        time.sleep(0.06 * step)  # before, while and after workers start
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 130, said
        lines = [line for line in said.splitlines() if line and not line.startswith("drawing: ")]
        assert lines == ["lmk-shard: interrupted; run it again to resume"]


def test_a_terminal_that_is_closed(source: Path, expected: dict[str, str], tmp_path: Path) -> None:
    """It hangs up on the whole process group, and nothing can be printed any more."""
    out = tmp_path / "shards"
    command = words(source, out, "--workers", "2")
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
        os.execv(command[0], command)
    while not receipts(out):
        os.read(terminal, 1 << 16)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    finish(command)
    assert hashes(out) == expected


def workers_of(process: "subprocess.Popen[str]") -> list[int]:
    workers = []
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            if b"LokyProcess" in Path(f"/proc/{pid}/cmdline").read_bytes():
                workers.append(int(pid))
    return workers


@contextlib.contextmanager
def planning(tmp_path: Path) -> "Iterator[subprocess.Popen[str]]":
    """A build whose workers wait for its plan, which waits for a server that never answers."""
    labels = tmp_path / "train.csv"
    labels.write_text("id,landmark_id\n" + "".join(f"{i:016x},{i % 500}\n" for i in range(20_000)))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        images = f"http://127.0.0.1:{silent.getsockname()[1]}/train/"
        command = [sys.executable, "-m", "lmk_data.cli", "build", "--images", images, "--labels", str(labels)]
        process = start([*command, "--out", str(tmp_path / "shards"), "--workers", "2"])
        with silent.accept()[0]:  # the plan has asked for the pictures
            wait_for(lambda: len(workers_of(process)) == 2, process)
            yield process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_the_plan_is_made_and_workers_wait(tmp_path: Path, number: signal.Signals) -> None:
    with planning(tmp_path) as process:
        workers = workers_of(process)
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        _, said = process.communicate(timeout=240)
    assert (process.returncode, said.strip()) == (130, "lmk-shard: interrupted; run it again to resume")
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_workers_end_soon_after_a_main_process_that_is_killed_while_they_wait(tmp_path: Path) -> None:
    with planning(tmp_path) as process:
        process.kill()
        process.communicate(timeout=240)  # until nobody holds the pipes any more
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("options", ["ro", "size=4k"])
def test_without_shared_memory_one_process_builds(
    source: Path, expected: dict[str, str], tmp_path: Path, options: str
) -> None:
    out = tmp_path / "shards"
    padded = tmp_path / "train.csv"  # large enough for workers to be started before the plan
    padded.write_text((source / "train.csv").read_text() + "".join(f"absent-{i:020d},{i}\n" for i in range(6_000)))
    command = " ".join(words(source, out, "--workers", "2", "--min-samples", "2", "--quiet"))
    command = command.replace(str(source / "train.csv"), str(padded))
    setup = f"mount -t tmpfs -o {options} tmpfs /dev/shm; head -c 4096 /dev/zero > /dev/shm/full; {command}"
    done = mounted(tmp_path / "disk", "600k", setup)
    assert done.returncode == 0, done.stderr
    assert ShardedDataset.open(out).num_samples("train") > 0


def test_workers_that_wait_end_with_a_plan_that_fails(tmp_path: Path) -> None:
    labels = tmp_path / "train.csv"
    labels.write_text("id,landmark_id\n" + "".join(f"{i:016x},1\n" for i in range(20_000)))
    command = [sys.executable, "-m", "lmk_data.cli", "build", "--images", str(tmp_path), "--labels", str(labels)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "shards"), "--workers", "2"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert str(tmp_path) in one_line(done.stderr)


def test_a_worker_that_is_killed_ends_the_build_and_keeps_receipts(
    source: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    process = start(words(source, out, "--workers", "2"))
    wait_for(lambda: receipts(out) > 2, process)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "out of memory" in one_line(said)
    assert receipts(out) > 2
    finish(words(source, out))
    assert hashes(out) == expected  # no picture was blamed


def test_a_picture_that_ends_its_worker_is_rejected_and_the_build_goes_on(
    deadly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "shards"
    monkeypatch.setenv("DIES_BY", "SIGSEGV")
    done = subprocess.run(words(deadly, out, "--workers", "2", "--quiet"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = f"note: {deadly}/train/0031.jpg: ends the process that decodes it (SIGSEGV); it is rejected (crash)\n"
    assert done.stderr == said
    detail = "the process that decodes it ends (SIGSEGV), also when it does nothing else"
    assert rejects(out) == [("0031", "crash", detail)]
    assert not (out / ".build" / "decoding").exists()
    (out / "dataset.json").unlink()
    first = hashes(out)
    shutil.rmtree(out / "shards" / "train")
    finish(words(deadly, out, "--workers", "2", "--quiet"))  # it is known, and ends nothing any more
    assert hashes(out).items() >= first.items()
    (deadly / "train" / "0031.jpg").write_bytes((deadly / "train" / "0030.jpg").read_bytes())
    finish(words(deadly, out, "--quiet", "--retry-rejected"))
    assert rejects(out) == []


def test_a_picture_that_ends_the_whole_build_is_rejected_by_the_next(
    deadly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "shards"
    command = words(deadly, out, "--workers", "1", "--quiet")
    monkeypatch.setenv("DIES_BY", "SIGKILL")
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "0031.jpg: ends the process that decodes it (SIGKILL); it is rejected (crash)" in done.stderr
    assert [row[:2] for row in rejects(out)] == [("0031", "crash")]


def test_a_source_that_vanishes(source: Path, expected: dict[str, str], tmp_path: Path) -> None:
    """An unmounted disk is no missing image: the build ends, and goes on when the disk is back."""
    moving = tmp_path / "disk"
    shutil.copytree(source, moving, copy_function=os.link)
    out = tmp_path / "shards"
    process = start(words(moving, out, "--workers", "2"))
    wait_for(lambda: receipts(out) > 1, process)
    (moving / "train").rename(moving / "gone")
    (moving / "train").mkdir()
    _, said = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "is the storage there? run it again to resume" in one_line(said)
    assert not (out / "dataset.json").exists()
    (moving / "train").rmdir()
    (moving / "gone").rename(moving / "train")
    finish(words(moving, out))
    assert hashes(out) == expected


def mounted(folder: Path, size: str, script: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a shell script in a mount namespace of its own, where `folder` is a small tmpfs."""
    folder.mkdir(exist_ok=True)
    setup = f"mount -t tmpfs -o size={size} tmpfs {folder} || exit 77; {script}"
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", setup]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables})
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(NO_TMPFS)
    return done


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk(source: Path, expected: dict[str, str], tmp_path: Path, workers: str) -> None:
    disk = tmp_path / "disk"
    command = " ".join(words(source, disk / "shards", "--workers", workers))
    script = (
        f"{command}; echo exit $?; find {disk} -name dataset.json; find {disk} -name '*.tmp' | grep -v .build; "
        f"mount -o remount,size=64m {disk}; {command} --quiet; echo exit $?; cp -r {disk}/shards {tmp_path}/copy"
    )
    done = mounted(disk, "600k", script)
    assert [line for line in done.stdout.splitlines() if "exit" in line or line.startswith(str(disk))][:2] == [
        "exit 1",
        "exit 0",
    ]
    said = one_line(done.stderr)
    assert "No space left on device" in said
    assert "run it again to resume" in said
    assert hashes(tmp_path / "copy") == expected


def test_a_disk_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    command = " ".join(words(source, disk / "shards"))
    done = mounted(disk, "600k", f"mount -o remount,ro {disk}; {command}; echo exit $?")
    assert done.stdout.splitlines() == ["exit 1"]
    assert f"--out {disk}/shards: cannot be written: Read-only file system" in one_line(done.stderr)


def test_a_report_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    build_it = " ".join(words(source, disk / "shards", "--quiet"))
    report = f"{sys.executable} -m lmk_data.cli report {disk}/shards"
    script = f"{build_it}; mount -o remount,ro {disk}; {report}; echo exit $?"
    done = mounted(disk, "64m", script)
    assert done.stdout.splitlines()[-1] == "exit 1"
    assert "Read-only file system" in one_line(done.stderr)


def test_a_second_build_is_refused_while_the_first_is_at_work(
    source: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    process = start(words(source, out, "--workers", "1"))
    wait_for(lambda: receipts(out) > 0, process)
    os.killpg(process.pid, signal.SIGSTOP)
    second = subprocess.run(words(source, out), capture_output=True, text=True, check=False)
    os.killpg(process.pid, signal.SIGCONT)
    assert second.returncode == 1
    assert "another build is at work there" in one_line(second.stderr)
    process.communicate(timeout=240)
    assert process.returncode == 0
    assert hashes(out) == expected


def test_what_cleans_up_after_killed_workers_is_silent(tmp_path: Path) -> None:
    """It would talk on stderr after our one line."""
    program = tmp_path / "leak.py"
    program.write_text(
        "from joblib.externals.loky.backend import resource_tracker\n"
        "from lmk_data.system.engine import LocalEngine\n"
        "def same(number):\n    return number\n"
        "if __name__ == '__main__':\n"
        "    assert sorted(LocalEngine(2).run(same, [1, 2, 3])) == [1, 2, 3]\n"
        "    resource_tracker.register('/left-by-a-killed-worker', 'semlock')\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
