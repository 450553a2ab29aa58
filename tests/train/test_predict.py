"""`lmk-predict`: the same pixels and the same answers as in evaluation, whatever the pictures come as."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lmk_data.build import BuildOptions, build
from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError
from lmk_data.options import PlanRule, Recipe
from lmk_train.cli import eval_main, export_main, predict_main
from lmk_train.config.commands import EvalConfig
from lmk_train.config.training import TrainConfig
from lmk_train.evaluation.calibration import MIN_SAMPLES
from lmk_train.evaluation.evaluate import evaluate_run
from lmk_train.neighbours.blend import UNPICKED
from lmk_train.neighbours.index import TrainingPictures
from lmk_train.predict import Predictor, named_images
from lmk_train.training.loop import train

EXACT = ["--amp", "off", "--device", "cpu"]


@pytest.fixture(scope="module")
def run(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    folder = tmp_path_factory.mktemp("predict") / "run"
    model = "efficientnet-lite0"
    train(TrainConfig(str(dataset_path), folder, model, epochs=2, batch_size=10, device="cpu", amp="off", quiet=True))  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def photos(dataset_path: Path, collection: Path) -> dict[str, str]:
    """The source photo of each key of the test split."""
    with ShardedDataset.open(dataset_path) as dataset:
        keys = dataset.index("test")["key"]
    return {key: str(collection / "train" / key[0] / key[1] / key[2] / f"{key}.jpg") for key in keys}


def test_source_photos_get_what_their_shards_got(
    run: Path, photos: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """No skew between training and use: probabilities are those that the evaluation of the test split wrote."""
    assert predict_main([str(run), *photos.values(), "--json", "--top", "3", "--batch-size", "2", *EXACT]) == 0
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert f"predicting: {len(photos)}/{len(photos)} images" in said.err
    assert f"{len(photos)} images predicted in" in said.err
    assert [line["image"] for line in lines] == list(photos.values())
    evaluated = pd.read_parquet(run / "predictions-test.parquet").set_index("key")
    with ShardedDataset.open(json.loads((run / "config.json").read_text())["shards"]) as dataset:
        classes = dataset.classes
    for key, line in zip(photos, lines, strict=True):
        assert len(line["predictions"]) == 3
        for place, guess in enumerate(line["predictions"], 1):
            assert guess["label"] == evaluated.loc[key, f"label_{place}"]
            assert guess["landmark_id"] == classes["landmark_id"][guess["label"]]
            assert guess["probability"] == pytest.approx(evaluated.loc[key, f"probability_{place}"], abs=1e-5)


def test_folders_lists_and_odd_formats_are_read_and_bad_ones_are_named(
    run: Path,
    photos: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    first, second, third = list(photos.values())[:3]
    shutil.copy(first, folder / "a.jpg")
    with Image.open(second) as image:
        image.convert("RGBA").save(folder / "deep" / "b.png")
    (folder / "c.jpg").write_bytes(b"<html>")
    (folder / "notes.txt").write_text("not a picture")
    (folder / "d.jxl").write_text("a picture that no build takes")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{third}\n\n{tmp_path / 'nowhere.jpg'}\n"))
    assert predict_main([str(run), str(folder), "-", "--top", "1", "--quiet", *EXACT]) == 1
    said = capsys.readouterr()
    named = [line.split(": ")[0] for line in said.out.splitlines()]
    assert named == [str(folder / "a.jpg"), str(folder / "deep" / "b.png"), third]
    bad, missing, summary = said.err.splitlines()
    assert bad.startswith(f"lmk-predict: {folder / 'c.jpg'}: not-an-image")
    assert missing == f"lmk-predict: {tmp_path / 'nowhere.jpg'}: No such file or directory"
    assert summary == "lmk-predict: error: 2 of the pictures could not be read"


def test_submissions_have_every_picture_and_unreadable_ones_are_named(
    run: Path, photos: dict[str, str], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for place, name in enumerate(list(photos.values())[:2]):
        shutil.copy(name, folder / f"{place}.jpg")
    latin = os.fsencode(folder) + b"/caf\xe9.jpg"
    Path(os.fsdecode(latin)).write_bytes(b"<html>")
    out = tmp_path / "answers.csv"
    words = [str(run), str(folder), "--csv", str(out), "--quiet", *EXACT]
    assert predict_main([*words, "--top", "2"]) == 1
    table = pd.read_csv(out, encoding="latin-1").set_index("image")
    assert table.index.tolist() == [f"{folder}/0.jpg", f"{folder}/1.jpg", latin.decode("latin-1")]
    assert table.loc[latin.decode("latin-1")].isna().all()
    assert (table["probability_1"] >= table["probability_2"])[:2].all()
    assert predict_main([*words, "--submission"]) == 1
    header, *rows, empty = out.read_bytes().split(b"\n")[:-1]
    assert header == b"id,landmarks"
    assert empty == b"caf\xe9,"
    named = [f"{place},{row.landmark_id_1:.0f} " for place, row in enumerate(table.itertuples()) if place < 2]
    assert [row.decode().startswith(start) for row, start in zip(rows, named, strict=True)] == [True, True]
    said = capfdbinary.readouterr()
    assert said.out == b""
    assert said.err.count(b"not-an-image") == 2
    shutil.copy(folder / "0.jpg", folder / "0.png")
    out.unlink()
    assert predict_main([*words, "--submission"]) == 1
    assert b"have the same id, 0;" in capfdbinary.readouterr().err
    assert not out.exists()


def test_odd_names_are_a_line_each_and_the_others_go_on(
    run: Path,
    photos: dict[str, str],
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An empty folder, a name that no file can have, a URL of no known kind; and one that is not UTF-8."""
    first, second = list(photos.values())[:2]
    latin = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    shutil.copy(first, latin)
    empty = tmp_path / "empty"
    empty.mkdir()
    names = b"\n".join([latin, b"a\0b.jpg", b"nosuch://pictures/a.jpg", os.fsencode(second)])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(names), encoding="utf-8"))
    assert predict_main([str(run), str(empty), "-", "--top", "1", "--quiet", *EXACT]) == 1
    said = capfdbinary.readouterr()
    assert [line.split(b": ")[0] for line in said.out.splitlines()] == [latin, os.fsencode(second)]
    no_picture, no_name, no_url, summary = said.err.decode().splitlines()
    assert no_picture == f"lmk-predict: {empty}: has no pictures"
    assert "null " in no_name
    assert "nosuch" in no_url
    assert summary == "lmk-predict: error: 3 of the pictures could not be read"


def test_a_folder_is_walked_as_a_build_does(photos: dict[str, str], tmp_path: Path) -> None:
    """Hidden files are left out, links are followed, also in a circle, and a folder is no picture."""
    folder, other = tmp_path / "photos", tmp_path / "other"
    (folder / "x.jpg").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "__MACOSX").mkdir()
    other.mkdir()
    photo = next(iter(photos.values()))
    for path in (folder / "a.jpg", folder / "x.jpg" / "b.JPG", folder / ".hidden" / "c.jpg", other / "d.tiff"):
        shutil.copy(photo, path)
    for path in (folder / "._a.jpg", folder / "__MACOSX" / "._a.jpg"):
        path.write_bytes(b"\0\5\x16\7" + bytes(60))
    (folder / "linked").symlink_to(other)
    (other / "back").symlink_to(folder)
    os.mkfifo(folder / "pipe.jpg")
    named = [str(folder / name) for name in ("a.jpg", "linked/d.tiff", "x.jpg/b.JPG")]
    assert list(named_images([str(folder)])) == named
    assert list(named_images([folder / "x.jpg"])) == [str(folder / "x.jpg" / "b.JPG")]


@pytest.mark.slow
def test_when_nobody_reads_on_it_ends_without_a_word(run: Path, photos: dict[str, str]) -> None:
    words = [str(run), *list(photos.values()) * 20, "--batch-size", "1", "--quiet", *EXACT]
    program = "import sys; from lmk_train.cli import predict_main; sys.exit(predict_main(sys.argv[1:]))"
    done = subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.stdout is not None
    assert done.stderr is not None
    assert done.stdout.readline().startswith(os.fsencode(next(iter(photos.values()))))
    done.stdout.close()
    assert done.stderr.read() == b""
    assert done.wait(60) == 141
    done.stderr.close()


def test_pictures_are_named_by_paths_and_one_need_not_be_a_list(run: Path, photos: dict[str, str]) -> None:
    predictor = Predictor(run, device="cpu", amp="off")
    first = next(iter(photos.values()))
    (expected,) = predictor([first])
    assert expected.image == first
    for images in (first, Path(first), [Path(first)]):
        assert list(predictor(images)) == [expected]


@pytest.mark.parametrize("main", [eval_main, predict_main, export_main])
def test_help_names_the_run(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert "RUN" in said
    assert "PATH" not in said


def test_probabilities_that_are_no_numbers_are_not_printed(
    run: Path, photos: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "best.pt"
    state = torch.load(path, weights_only=True)
    state["model"]["head.weight"][0, 0] = torch.nan
    torch.save(state, path)
    assert predict_main([str(tmp_path / "run"), next(iter(photos.values())), "--json", *EXACT]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "its probabilities are not finite in float32; give --amp off" in said.err


def test_mistakes_are_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        ([str(tmp_path), "a.jpg"], "no such checkpoint"),
        ([str(run), "a.jpg", "--top", "0"], "--top 0: must be at least 1"),
        ([str(run), "a.jpg", "--shards", "shards"], "--shards and --base: name the pictures of --neighbours K"),
        ([str(run), "a.jpg", "--neighbours", "51"], "--neighbours 51: must be from 1 to 50"),
        ([str(run), "a.jpg", "--submission"], "--submission: needs the file to write; give --csv FILE too"),
        ([str(run), "a.jpg", "--json", "--csv", str(tmp_path / "a.csv")], "--json and --csv: a prediction is either"),
    ):
        assert predict_main(words) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_the_dataset_is_not_needed(run: Path, photos: dict[str, str], tmp_path: Path) -> None:
    alone = tmp_path / "run"
    (alone / "checkpoints").mkdir(parents=True)
    shutil.copy(run / "checkpoints" / "best.pt", alone / "checkpoints")
    (prediction,) = Predictor(alone, device="cpu")([next(iter(photos.values()))])
    assert len(prediction.guesses) == 5
    assert sum(guess.probability for guess in prediction.guesses) == pytest.approx(1, abs=1e-3)


@pytest.fixture(scope="module")
def judged(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pictures of the collection as a validation split, which is large enough to fit a temperature."""
    out = tmp_path_factory.mktemp("judged") / "shards"
    images, labels = [str(collection / "train")], str(collection / "train.csv")
    rule, recipe = PlanRule(split=(0.0, 1.0, 0.0)), Recipe(size=32)
    build(BuildOptions(images=images, labels=labels, out=out, rule=rule, recipe=recipe, workers=1, quiet=True))
    return out


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def test_a_calibrated_run_says_so_and_predicts_at_its_temperature(
    copied: Path, judged: Path, photos: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    photo = next(iter(photos.values()))
    (plain,) = Predictor(copied, device="cpu", amp="off")(photo, top=9)
    assert predict_main([str(copied), photo, *EXACT]) == 0
    assert capsys.readouterr().err.count("its probabilities are not calibrated; lmk-eval") == 1
    earlier = json.loads((copied / "eval-test.json").read_text())
    assert "temperature" not in earlier, "its validation split is too small"
    assert eval_main([str(copied), "--calibrate", "--quiet", *EXACT]) == 1
    said = capsys.readouterr().err
    assert f"validation images of classes of the run, and a temperature takes {MIN_SAMPLES}" in said
    exact = {"device": "cpu", "amp": "off", "quiet": True}
    evaluate_run(EvalConfig(copied, str(judged), split="val", calibrate=True, **exact))  # type: ignore[arg-type]
    fitted = json.loads((copied / "calibration.json").read_text())
    assert fitted["loss_after"] <= fitted["loss_before"]
    written = json.loads((copied / "eval-val.json").read_text())
    assert written["temperature"] == fitted["temperature"]
    assert written["loss"] == pytest.approx(fitted["loss_before"], rel=1e-4)
    assert written["calibration_error"] == pytest.approx(fitted["error_before"], abs=1e-3)
    assert written["calibrated_error"] == pytest.approx(fitted["error_after"], abs=1e-3)
    evaluate_run(EvalConfig(copied, **exact))  # type: ignore[arg-type]
    again = json.loads((copied / "eval-test.json").read_text())
    assert {name: value for name, value in again.items() if name in earlier} == earlier
    (calibrated,) = Predictor(copied, device="cpu", amp="off")(photo, top=9)
    expected = np.array([guess.probability for guess in plain.guesses]) ** (1 / fitted["temperature"])
    assert [guess.label for guess in calibrated.guesses] == [guess.label for guess in plain.guesses]
    np.testing.assert_allclose(
        [guess.probability for guess in calibrated.guesses], expected / expected.sum(), rtol=1e-4
    )
    assert predict_main([str(copied), photo, "--min-confidence", "1", *EXACT]) == 0
    said_all = capsys.readouterr()
    assert "no landmark is probable enough (the best has" in said_all.out
    assert "calibrated" not in said_all.err


def test_neighbours_are_named_and_counted(
    copied: Path, dataset_path: Path, collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ShardedDataset.open(dataset_path) as dataset:
        training = dataset.index("train", ["key", "label"])
    keys = training["key"].tolist()[:5]
    named = [str(collection / "train" / key[0] / key[1] / key[2] / f"{key}.jpg") for key in keys]
    words = [str(copied), *named, "--top", "9", "--json", *EXACT]
    assert predict_main(words) == 0
    plain = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for shards in ([], ["--shards", str(tmp_path / "nowhere")]):  # once the index is there, no dataset is needed
        assert predict_main([*words, "--neighbours", "4", *shards]) == 0
        said = capsys.readouterr()
        assert said.err.count("writing the index of") == (not shards)
        lines = [json.loads(line) for line in said.out.splitlines()]
        for key, line, without in zip(keys, lines, plain, strict=True):
            near = line["neighbours"]
            assert near[0]["key"] == key
            assert near[0]["similarity"] == pytest.approx(1, abs=2e-3)
            assert [one["similarity"] for one in near] == sorted((one["similarity"] for one in near), reverse=True)
            votes = np.exp([one["similarity"] / UNPICKED.temperature for one in near])
            expected = {
                guess["label"]: guess["probability"] * (1 - UNPICKED.weight) for guess in without["predictions"]
            }
            for one, vote in zip(near, votes / votes.sum(), strict=True):
                expected[one["label"]] += UNPICKED.weight * vote
            found = {guess["label"]: guess["probability"] for guess in line["predictions"]}
            assert found == pytest.approx(expected, abs=1e-4)
    table = tmp_path / "answers.csv"
    assert predict_main([*words[:2], "--csv", str(table), "--neighbours", "2", "--quiet", *EXACT]) == 0
    assert pd.read_csv(table)["neighbour_key_1"].tolist() == keys[:1]


@pytest.mark.slow
def test_an_index_follows_the_weights_and_is_checked(
    copied: Path, judged: Path, dataset_path: Path, photos: dict[str, str]
) -> None:
    """An index of other weights is written again, one of another dataset is refused."""
    said_by: list[str] = []

    def load(shards: Path) -> None:
        predictor = Predictor(copied, device="cpu", amp="off")
        predictor.load_neighbours(TrainingPictures(str(shards)), said_by.append)

    with pytest.raises(UserError, match="is not the dataset that"):
        load(judged)
    load(dataset_path)
    load(dataset_path)
    assert len(said_by) == 1
    path = copied / "checkpoints" / "best.pt"
    state = torch.load(path, weights_only=True)
    state["model"]["head.weight"] *= 2
    torch.save(state, path)
    load(dataset_path)
    assert len(said_by) == 2
    description = copied / "neighbours" / "index.json"
    said = json.loads(description.read_text())
    assert said["num_validation"] == 0
    for change, message in (
        ({"dataset": "0" * 64}, "an index of another dataset than the run's"),
        ({"version": 2}, "not the description of an index"),
        ({"blends": [[0.5, float("nan")]]}, "not finite|not the description"),
        ({"blends": [[1.0, 0.1]]}, "not the description of an index"),
        ({"num_samples": said["num_samples"] + 1}, "instead of float16"),
        ({"num_features": 9}, "not those of the run.s network"),
    ):
        description.write_text(json.dumps(said | change))
        with pytest.raises(UserError, match=message):
            load(dataset_path)
    description.write_text(json.dumps(said))
    for name, data, message in (
        ("samples.parquet", b"PAR1", "not the samples of an index"),
        ("train.npy", b"\x93NUMPY", "not readable features"),
    ):
        content = (copied / "neighbours" / name).read_bytes()
        (copied / "neighbours" / name).write_bytes(data)
        with pytest.raises(UserError, match=message):
            load(dataset_path)
        (copied / "neighbours" / name).write_bytes(content)
    features = np.lib.format.open_memmap(copied / "neighbours" / "train.npy", "r+")
    features[:] = np.nan
    features.flush()
    predictor = Predictor(copied, device="cpu", amp="off")
    with pytest.raises(UserError, match="call load_neighbours first"):
        next(predictor("a.jpg", neighbours=1))
    predictor.load_neighbours()
    with pytest.raises(UserError, match="no unit vectors"):
        list(predictor(next(iter(photos.values())), neighbours=1))
