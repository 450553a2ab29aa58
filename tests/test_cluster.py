"""Builds on a real Dask cluster: the same bytes as here, whatever happens to its workers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmk_data.cli import main
from tests.data.test_build import hashes
from tests.test_faults import SAMPLES_PER_SHARD, expected, one_line, receipts, source, start, wait_for, words

pytest.importorskip("distributed", reason="the extra `dask` is not installed")
pytestmark = pytest.mark.slow

__all__ = ["expected", "source"]  # fixtures


class Cluster:
    """A scheduler and workers as Dask's own command lines start them, each a process."""

    def __init__(self, folder: Path, host: str = "127.0.0.1", **environment: str) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self.address_file = folder / "scheduler.json"
        where = ["--host", host, "--port", "0", "--scheduler-file", str(self.address_file)]
        self._start("scheduler", *where, **environment)
        deadline = time.monotonic() + 60
        while not self.address_file.exists():
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
    return ["--engine", "dask", "--scheduler", cluster.address]


def test_the_same_bytes_though_a_worker_is_killed_on_the_way(
    source: Path, expected: dict[str, str], cluster: Cluster, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    first = cluster.add_worker()
    cluster.add_worker()
    process = start(words(source, out, *on(cluster)))
    wait_for(lambda: receipts(out) > 2, process)
    first.kill()
    said, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "400 images" in said
    assert hashes(out) == expected


def test_interrupted_and_gone_on_without_the_cluster(
    source: Path, expected: dict[str, str], cluster: Cluster, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    cluster.add_worker()
    process = start(words(source, out, *on(cluster)))
    wait_for(lambda: receipts(out) > 2, process)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error.rstrip().endswith("interrupted; run it again to go on")
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
    cluster = Cluster(folder, Network.HOST, DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="5s")
    try:
        hosts = [network.add_host() for _ in range(2)]
        for host in hosts:
            cluster.add_worker("ip", "netns", "exec", host)
        process = start(words(source, out, *on(cluster)))
        wait_for(lambda: receipts(out) > 2, process)
        network.unplug(hosts[0])
        said, error = process.communicate(timeout=200)
        assert process.returncode == 0, error
        assert "400 images" in said
        assert hashes(out) == expected
    finally:
        cluster.close()


def test_nobody_there(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = words(source, tmp_path / "shards")[3:]
    assert main([*command, "--engine", "dask", "--scheduler", "tcp://127.0.0.1:9"]) == 1
    assert "no Dask scheduler answers there" in one_line(capsys.readouterr().err)
    assert main([*command, "--engine", "dask"]) == 1
    assert "go together" in capsys.readouterr().err
    assert SAMPLES_PER_SHARD == 8
