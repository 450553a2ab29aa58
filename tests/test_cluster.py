"""Builds on a real Dask cluster: the same bytes as here, whatever happens to its workers."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmk_data.build.cluster import connect
from lmk_data.cli import main
from tests.build_process import SAMPLES_PER_SHARD, one_line, receipts, rejects, start, wait_for, words
from tests.published import hashes

pytest.importorskip("distributed", reason="the extra `dask` is not installed")
pytestmark = pytest.mark.slow


class Cluster:
    """A scheduler and workers as Dask's own command lines start them, each a process."""

    def __init__(self, folder: Path, host: str = "127.0.0.1", **environment: str) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self.address_file = folder / "scheduler.json"
        where = ["--host", host, "--port", "0", "--scheduler-file", str(self.address_file)]
        self.scheduler = self._start("scheduler", *where, **environment)
        deadline = time.monotonic() + 240
        while not (self.address_file.exists() and self.address_file.stat().st_size):
            assert time.monotonic() < deadline, "the scheduler did not start"
            time.sleep(0.05)
        self.address = str(json.loads(self.address_file.read_text())["address"])

    def add_worker(self, *prefix: str) -> "subprocess.Popen[bytes]":
        """Start a worker, by a program that puts it somewhere else where one is given."""
        limits = ["--nthreads", "1", "--memory-limit", "0", "--no-nanny"]
        return self._start("worker", self.address, *limits, "--local-directory", str(self._folder), prefix=prefix)

    def _start(
        self, kind: str, *more: str, prefix: tuple[str, ...] = (), **environment: str
    ) -> "subprocess.Popen[bytes]":
        command = [*prefix, sys.executable, "-m", "distributed.cli.dask_" + kind, "--no-dashboard", *more]
        with open(self._folder / "log", "ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment})
        self._processes.append(process)
        return process

    def close(self) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    started = Cluster(folder)
    yield started
    started.close()


def on(cluster: Cluster) -> list[str]:
    return ["--scheduler", cluster.address]


def test_the_same_bytes_though_a_worker_is_killed_on_the_way(
    source: Path, expected: dict[str, str], cluster: Cluster, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    first = cluster.add_worker()
    cluster.add_worker()
    process = start(words(source, out, *on(cluster)))
    wait_for(lambda: receipts(out) > 2, process)
    first.kill()
    said, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    assert "400 images" in said
    assert re.search("^building: .*/400 images ", error, re.MULTILINE)
    assert hashes(out) == expected


def test_a_picture_that_ends_its_worker_is_rejected_and_the_build_goes_on(
    deadly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, folder = tmp_path / "shards", tmp_path / "cluster"
    folder.mkdir()
    monkeypatch.setenv("DIES_BY", "SIGKILL")
    cluster = Cluster(folder, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0")
    try:
        for _ in range(3):
            cluster.add_worker()
        done = subprocess.run(words(deadly, out, *on(cluster), "--quiet"), capture_output=True, text=True, check=False)
    finally:
        cluster.close()
    assert done.returncode == 0, done.stderr
    assert "0031.jpg: ends the process that decodes it (SIGKILL); it is rejected (crash)" in done.stderr
    assert [row[:2] for row in rejects(out)] == [("0031", "crash")]


def test_interrupted_and_gone_on_without_the_cluster(
    source: Path, expected: dict[str, str], cluster: Cluster, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    cluster.add_worker()
    process = start(words(source, out, *on(cluster)))
    wait_for(lambda: receipts(out) > 2, process)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 130, error
    assert error.rstrip().endswith("interrupted; run it again to resume")
    assert "Traceback" not in error
    assert subprocess.run(words(source, out, "--quiet"), check=False).returncode == 0
    assert hashes(out) == expected


def test_workers_that_see_something_else_are_refused(source: Path, cluster: Cluster, tmp_path: Path) -> None:
    """One worker lives in a mount namespace of its own, where the folder of images is another, empty one."""
    out, hidden = tmp_path / "shards", tmp_path / "hidden"
    hidden.mkdir()
    command = f"mount --bind {hidden} {source / 'train'} && exec {sys.executable} -m distributed.cli.dask_worker"
    command += f" {cluster.address} --nthreads 1 --memory-limit 0 --no-nanny --no-dashboard"
    worker = subprocess.Popen(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    time.sleep(0.5)
    if worker.poll() is not None:
        pytest.skip("this machine does not let a test make a mount namespace")
    done = subprocess.run(words(source, out, *on(cluster)), capture_output=True, text=True, check=False)
    worker.kill()
    worker.wait()
    assert done.returncode == 1
    assert "differs in the image" in one_line(done.stderr)
    assert not (out / "dataset.json").exists()


def refused(source: Path, out: Path, cluster: Cluster) -> str:
    """The one line with which a build ends that must not begin."""
    done = subprocess.run(words(source, out, *on(cluster)), capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 1, done.stderr
    assert not out.exists()
    return one_line(done.stderr)


def another_encoder(folder: Path) -> tuple[str, str]:
    """The program that starts a worker whose simplejpeg is another one, as far as it can tell."""
    about = folder / "other" / "simplejpeg-0.0.1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: simplejpeg\nVersion: 0.0.1\n")
    return "env", f"PYTHONPATH={os.pathsep.join([str(about.parent), *sys.path])}"


def test_a_worker_with_another_encoder_is_refused(source: Path, cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_worker(*another_encoder(tmp_path))
    said = refused(source, tmp_path / "shards", cluster)
    assert re.search("worker tcp://.* differs in the encoder: .*simplejpeg 0.0.1, .* there, .* here;", said)


def test_a_worker_that_comes_late_with_another_encoder_builds_nothing(
    source: Path, cluster: Cluster, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    first = cluster.add_worker()
    process = start(words(source, out, *on(cluster)))
    wait_for(lambda: receipts(out) > 2, process)
    first.kill()
    cluster.add_worker(*another_encoder(tmp_path))
    _, error = process.communicate(timeout=240)
    assert process.returncode == 1
    assert re.search("a worker came with another encoder: .*simplejpeg 0.0.1, .* there", one_line(error))


def test_a_worker_without_the_package_is_refused(source: Path, cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "lmk_data.py").write_text("raise ModuleNotFoundError(\"No module named 'lmk_data'\")")
    cluster.add_worker("env", "-C", str(tmp_path / "without"))
    said = refused(source, tmp_path / "shards", cluster)
    assert re.search(
        "worker tcp://.* cannot show what it has: .*No module named 'lmk_data'.*; install the same lmk", said
    )


def test_a_worker_that_does_not_answer_is_named(
    source: Path,
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("lmk_data.build.cluster._ANSWER_SECONDS", 2)
    worker = cluster.add_worker()
    with connect(cluster.address) as engine:
        (address,) = engine.client.nthreads()
    worker.send_signal(signal.SIGSTOP)
    assert main(words(source, tmp_path / "shards", *on(cluster))[3:]) == 1
    said = one_line(capsys.readouterr().err)
    assert f"worker {address} cannot show what it has: it did not answer within 2 s" in said


def test_a_shard_that_kills_its_workers_ends_the_build(source: Path, tmp_path: Path) -> None:
    """Here one killed worker is enough; by default Dask gives up after four."""
    folder, out = tmp_path / "cluster", tmp_path / "shards"
    folder.mkdir()
    cluster = Cluster(folder, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0")
    try:
        worker = cluster.add_worker()
        process = start(words(source, out, *on(cluster)))
        wait_for(lambda: receipts(out) > 2, process)
        worker.kill()
        cluster.add_worker()
        _, error = process.communicate(timeout=240)
    finally:
        cluster.close()
    assert process.returncode == 1
    assert "worker after worker was killed on one shard" in one_line(error)


def test_a_scheduler_that_is_lost_ends_the_build(source: Path, cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    cluster.add_worker()
    process = start(words(source, out, *on(cluster)))
    wait_for(lambda: receipts(out) > 2, process)
    cluster.scheduler.kill()
    _, error = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "the connection to the Dask scheduler was lost; run again to resume" in one_line(error)


class Network:
    """Hosts in network namespaces of their own, on a bridge of this machine; removed again by `close`."""

    HOST = "10.213.77.1"

    def __init__(self) -> None:
        self._name = f"lmk{os.getpid() % 100_000}"
        self._hosts: list[str] = []
        self._ip("link", "add", self._name, "type", "bridge")
        self._ip("addr", "add", f"{self.HOST}/24", "dev", self._name)
        self._ip("link", "set", self._name, "up")

    def add_host(self) -> str:
        """Make a host; returns the name of its namespace, which is also its link's on the bridge."""
        name = f"{self._name}{chr(ord('a') + len(self._hosts))}"
        self._ip("netns", "add", name)
        self._hosts.append(name)
        self._ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        self._ip("link", "set", name, "master", self._name, "up")
        self._ip("-n", name, "addr", "add", f"10.213.77.{len(self._hosts) + 1}/24", "dev", "eth0")
        self._ip("-n", name, "link", "set", "eth0", "up")
        self._ip("-n", name, "link", "set", "lo", "up")
        return name

    def unplug(self, host: str) -> None:
        """Take the cable out: what is sent there is lost, and nobody is told."""
        self._ip("link", "set", host, "down")

    def close(self) -> None:
        links = [["link", "del", name] for name in (*self._hosts, self._name)]
        for command in [*links, *(["netns", "del", host] for host in self._hosts)]:
            subprocess.run(["ip", *command], capture_output=True, check=False)

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], capture_output=True, check=True)


@pytest.fixture
def network() -> Iterator[Network]:
    try:
        made = Network()
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("this machine does not let a test make network namespaces")
    yield made
    made.close()


def test_hosts_of_their_own_one_of_which_falls_off_the_network(
    source: Path, expected: dict[str, str], network: Network, tmp_path: Path
) -> None:
    """A worker whose network is gone does not end: it is silent. Its shards are built by the other one."""
    folder, out = tmp_path / "cluster", tmp_path / "shards"
    folder.mkdir()
    cluster = Cluster(folder, Network.HOST, DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="15s")
    try:
        hosts = [network.add_host() for _ in range(2)]
        for host in hosts:
            cluster.add_worker("ip", "netns", "exec", host)
        process = start(words(source, out, *on(cluster)))
        wait_for(lambda: receipts(out) > 2, process)
        network.unplug(hosts[0])
        said, error = process.communicate(timeout=500)
        assert process.returncode == 0, error
        assert "400 images" in said
        assert hashes(out) == expected
    finally:
        cluster.close()


def test_nobody_there(collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is published there stays, though it was to be overwritten."""
    command = words(collection, tmp_path / "shards", "--quiet")[3:]
    assert main(command) == 0
    published = hashes(tmp_path / "shards")
    another = [*command, "--overwrite", "--quality", "80", "--scheduler", "tcp://127.0.0.1:9"]
    assert main(another) == 1
    assert "no Dask scheduler answers there" in one_line(capsys.readouterr().err)
    assert hashes(tmp_path / "shards") == published
    assert main(["verify", str(tmp_path / "shards"), "--quiet"]) == 0
    assert SAMPLES_PER_SHARD == 8


@pytest.mark.parametrize("address", ["localhost", "", "foo://x:1", "tcp://127.0.0.1", "tls://127.0.0.1:9", "host:port"])
def test_what_is_no_address_is_refused(source: Path, tmp_path: Path, address: str) -> None:
    """In one line, and nothing follows when the program ends."""
    command = words(source, tmp_path / "shards", "--scheduler", address)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 1
    assert f"--scheduler {address}: " in one_line(done.stderr)
    assert not (tmp_path / "shards").exists()
