"""What is released: wheel and sdist build, install without the repository, and bring all they need."""

import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from lmk_data import __version__
from lmk_data.errors import missing_extra

ROOT = Path(__file__).resolve().parents[1]
TRAINERS = {
    "lmk-train": ("--shards", "shards"),
    "lmk-eval": ("run",),
    "lmk-predict": ("run", "photo.jpg"),
    "lmk-export": ("run", "--to", "onnx"),
    "lmk-inspect": ("--shards", "shards"),
    "lmk-tune": ("--shards", "shards"),
}
PROGRAMS = ("lmk-shard", *TRAINERS)
_BROWSE = ("starlette", "uvicorn")  # of the extra `browse`, without which its modules do not import
_IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
print(package.__file__)
for module in pkgutil.walk_packages(package.__path__, sys.argv[1] + "."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if error.name not in sys.argv[2:] or not module.name.startswith("lmk_data.browse."):
            raise
"""
# pip told to install a distribution by its name: `lmk` is somebody else's, and `lmk-shards` is not published.
_BY_NAME = re.compile(
    r"\bpip3?\b[^\n`]*?\binstall\b[^\n`]*?[\s'\"](lmk|lmk-shards|lmk_shards)(\[[^\]]*\])?([=<>~!]\S*)?(?=[\s'\"`\\)]|$)"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of a copy of the tracked files, and the wheel made from that."""
    folder = tmp_path_factory.mktemp("release")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, map(bytes.decode, files)):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(folder / "source")]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "dist"


@pytest.mark.slow
def test_sdist_and_wheel_hold_what_they_should(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert f"-{__version__}-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for wanted in (
        "lmk_data/py.typed",
        "lmk_train/py.typed",
        "lmk_data/report/templates/pieces.html",
        "lmk_data/browse/static/browse.js",
    ):
        assert wanted in names
    assert "lmk_data/report/templates/datatables/dataTables.min.js" in names
    assert not [name for name in names if name.startswith(("tests", "pipelines", "docs"))]
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", "lmk_data/build/pipeline.py"} <= inside


@pytest.mark.slow
def test_the_wheel_alone_builds_a_dataset_without_torch(built: Path, tmp_path: Path) -> None:
    """In an environment with the light dependencies only: sample, build, verify; training says what it lacks."""
    (wheel,) = built.glob("*.whl")
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    install = [str(python), "-m", "pip", "install", "--quiet", *constraints, str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True, timeout=500)
    if done.returncode and "after connection broken by" in done.stderr:
        pytest.skip("no package index can be reached from here")
    assert done.returncode == 0, done.stderr[-2000:]
    absent = subprocess.run([python, "-c", "import torch"], capture_output=True, cwd=tmp_path)
    assert absent.returncode == 1, "webdataset alone does not bring torch"
    assert_every_module_imports(python, "lmk_data", environment, _BROWSE)
    images = ("--images", "images/train", "--labels", "images/train.csv", "--out", "shards", "--size", "32")
    for words in (
        ("--version",),
        ("sample", "images", "--classes", "6", "--images", "60"),
        ("build", *images, "--min-samples", "2"),
        ("verify", "shards"),
    ):
        done = subprocess.run(
            [environment / "bin" / "lmk-shard", *words], capture_output=True, text=True, cwd=tmp_path, timeout=500
        )
        assert done.returncode == 0, done.stderr
        assert words != ("--version",) or done.stdout.strip() == f"lmk-shard {__version__}"
    assert (tmp_path / "shards" / "report" / "index.html").stat().st_size > 10_000
    for program in PROGRAMS:
        assert (environment / "bin" / program).exists()
    for program, words in TRAINERS.items():
        done = subprocess.run(
            [environment / "bin" / program, *words], capture_output=True, text=True, cwd=tmp_path, timeout=100
        )
        wanted = f"{program}: error: {missing_extra(program, 'train', 'torch is missing')}\n"
        assert (done.returncode, done.stdout, done.stderr) == (1, "", wanted)


@pytest.mark.slow
def test_the_wheel_trains_where_its_extras_are_installed(built: Path, tmp_path: Path) -> None:
    """The wheel in an environment of its own, beside this one's dependencies: every module, one epoch."""
    (wheel,) = built.glob("*.whl")
    environment = tmp_path / "venv"
    venv.create(environment)
    python = environment / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert_every_module_imports(python, "lmk_data", environment)
    assert_every_module_imports(python, "lmk_train", environment)
    images = ("--images", "images/train", "--labels", "images/train.csv", "--out", "shards", "--size", "32")
    training = ("--model", "resnet32", "--epochs", "1", "--batch-size", "8")
    for program, *words in (
        ("lmk-shard", "sample", "images", "--classes", "4", "--images", "60"),
        ("lmk-shard", "build", *images, "--min-samples", "2", "--no-report"),
        ("lmk-shard", "verify", "shards"),
        ("lmk-train", "--shards", "shards", "--out", "run", *training),
    ):
        done = subprocess.run(
            [environment / "bin" / program, *words, "--quiet"], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "eval-test.json").is_file()


def assert_every_module_imports(python: Path, package: str, environment: Path, absent: tuple[str, ...] = ()) -> None:
    """Every module of the package imports, but for the browser's where `absent` is; and it is the installed one."""
    command = [python, "-c", _IMPORT_ALL, package, *absent]
    done = subprocess.run(command, capture_output=True, text=True, cwd=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(str(environment))


@pytest.mark.parametrize(
    ("line", "is_by_name"),
    [
        ("pip install 'lmk[s3]'", True),
        ("pip install lmk", True),
        ("python -m pip install --upgrade lmk-shards==0.2.0", True),
        ("raise UserError(f\"needs it: pip install 'lmk[train,lite]'\")", True),
        ("pip install '.[s3]'", False),
        ("pip install dist/lmk_shards-0.2.0-py3-none-any.whl", False),
        ("run `pip install '.[s3]'` in the clone of lmk", False),
    ],
)
def test_an_installation_by_name_is_recognised(line: str, is_by_name: bool) -> None:
    assert (_BY_NAME.search(line) is not None) == is_by_name


def test_every_instruction_installs_from_a_clone_or_a_wheel() -> None:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    paths = [ROOT / name.decode() for name in names if name]
    found = []
    for path in paths:
        if path == Path(__file__) or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if _BY_NAME.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found
