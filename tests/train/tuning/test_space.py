"""What a search varies: TOML in, grids and trainings out; what cannot be meant is refused by name."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk_data.errors import UserError
from lmk_train.config.defaults import DEFAULTS
from lmk_train.config.training import TrainConfig
from lmk_train.tuning.space import Choice, Range, SearchSpace, default_space, read_space

BASE = TrainConfig("shards", model="efficientnet-lite0", epochs=4)


def space_of(folder: Path, text: str, base: TrainConfig = BASE) -> SearchSpace:
    (folder / "space.toml").write_text(text)
    return read_space(folder / "space.toml", base)


def test_a_file_says_what_varies_and_what_does_not(tmp_path: Path) -> None:
    space = space_of(
        tmp_path,
        """
        [search]
        lr = { range = [1e-5, 1e-2], log = true, points = 4 }
        batch-size = [32, 16]
        freeze_backbone_epochs = { range = [0, 9] }
        loss = ["ce", "ldam"]
        label_smoothing = { range = [0, 0.2] }
        [fixed]
        crop-padding = 4
        amp = "bf16"
        """,
    )
    assert space.parameters["batch_size"] == Choice((16, 32))
    assert space.parameters["lr"].grid() == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2])
    point = {"lr": 1e-3, "batch_size": 16, "freeze_backbone_epochs": 9, "loss": "ce", "label_smoothing": 0.1}
    config = space.config(point)
    assert (config.crop_padding, config.amp, config.label_smoothing, config.batch_size) == (4, "bf16", 0.1, 16)
    assert config.freeze_backbone_epochs == 4, "no more than there are epochs"
    assert space.config({**point, "loss": "ldam"}).label_smoothing == 0, "it belongs to the cross entropy"
    # 4 rates, 2 batch sizes, 0 or all 4 epochs frozen; 3 smoothings of the cross entropy and one of LDAM.
    points = list(space.grid())
    assert len(points) == 4 * 2 * 2 * (3 + 1)
    assert len({tuple(space.meaningful(point).items()) for point in points}) == len(points)


@given(
    low=st.floats(1e-6, 1e3),
    factor=st.floats(1.001, 1e6),
    log=st.booleans(),
    whole=st.booleans(),
    points=st.integers(1, 9),
)
def test_grids_rise_within_their_ends(low: float, factor: float, log: bool, whole: bool, points: int) -> None:
    ends = (math.ceil(low), math.ceil(low * factor) + 1) if whole else (low, low * factor)
    grid = Range(*ends, log, whole, points).grid()
    assert all(ends[0] <= value <= ends[1] for value in grid)
    assert grid == sorted(set(grid))
    assert 1 <= len(grid) <= points
    if points > 1:
        assert grid[0] == pytest.approx(ends[0])
        assert grid[-1] == pytest.approx(ends[1])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[search]\nlr = { range = [1, 0] }", "lr: range 1, 0: must ascend"),
        ("[search]\nlr = { range = [0, 1], log = true }", "lr: range 0, 1: must ascend, from above 0"),
        ("[search]\nlr = 0.1", "lr: must be a list of values, or"),
        ("[search]\nlr = { range = [0.1, 1], steps = 3 }", "lr: must be a list of values, or"),
        ("[search]\nlr = [0.1]", "lr: must be a list of two or more numbers"),
        ("[search]\nbatch_size = [1.5, 2]", "batch_size: must be a list of two or more whole numbers"),
        ("[search]\nlr = [[1, 2], [3]]", "lr: must be a list of two or more numbers"),
        ("[search]\nbatch_size = [8, 1" + "0" * 400 + "]", "batch_size: must be a list of two or more whole numbers"),
        ("[search]\nhead = ['linear', 'linear']", "head: must be a list of two or more of linear, cosine"),
        ("[search]\nlr = [1e-3, 1e-2]\nhead-lr = [1, 2]\nhead_lr = [1, 2]", "[search] head-lr: is given with _ too"),
        ("search = 1", "search is not a table; write [search] above"),
        ("[[search]]\nlr = [1e-3, 1e-2]", "search is not a table"),
        ("fixed = 'a'\n[search]\nlr = [1e-3, 1e-2]", "fixed is not a table"),
        ("[search]\nlr = [1e-3, 1e-2]\n[fixed]\nhflip = 2.0", "--hflip 2.0: must be from 0 to 1"),
        ("[search]\nhflip = { range = [0, 2] }", "--hflip 2"),
        ("[search]\nhflip = { range = [0, 2], points = 1 }", "--hflip 2"),
        ("[search]\nloss = ['ce', 'ldam']\nldam_max_margin = [0.5, 3.0]", "--ldam-max-margin 3.0"),
        ("[search]\nlr = [1e-3, 1e-2]\n[fixed]\nlabel_smoothing = 0.1", "[fixed] label_smoothing: has no effect with"),
        ("[search]\nloss = ['ce', 'focal']", "loss: must be a list of two or more of balanced-softmax, ldam, ce"),
        ("[search]\nepochs = [1, 2]", "epochs: cannot be searched; these can: model, loss, head, pool, neck, ldam_max"),
        ("[search]\nlabel_smoothing = [0.0, 0.1]", "label_smoothing: has no effect with a loss of balanced-softmax"),
        ("[search]\nlr = [1e-3, 1e-2]\n[fixed]\nlr = 1", "[fixed] lr: is searched too"),
        ("[search]\nlr = [1e-3, 1e-2]\n[fixed]\nshards = 'x'", "[fixed] shards: cannot be fixed here"),
        ("[search]\nlr = [1e-3, 1e-2]\n[fixed]\namp = 'fp8'", "[fixed] amp: 'fp8' is not a value that --amp accepts"),
        (
            "[search]\nlr = [1e-3, 1e-2]\n[fixed]\nhflip = true",
            "[fixed] hflip: True is not a value that --hflip accepts",
        ),
        ("[search]\nlr = [1e-3, 1e-2]\n[fixd]\nhflip = 1", "[fixd] is neither [search] nor [fixed]"),
        ("[fixed]\nhflip = 1", "[search] names no option to vary"),
        ("[search", "not TOML"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UserError) as refused:
        space_of(tmp_path, text)
    assert complaint in str(refused.value)
    assert "space.toml" in str(refused.value)


def test_what_is_fixed_for_some_losses_is_left_out_of_the_others(tmp_path: Path) -> None:
    text = "[search]\nloss = ['ce', 'ldam']\nhead = ['linear', 'cosine']\n"
    text += "[fixed]\nlabel_smoothing = 0.1\ncosine_scale = 20\n"
    space = space_of(tmp_path, text)
    found = {(p["loss"], p["head"]): space.config(p) for p in space.grid()}
    assert {kind: (c.label_smoothing, c.cosine_scale) for kind, c in found.items()} == {
        ("ce", "linear"): (0.1, None),
        ("ce", "cosine"): (0.1, 20),
        ("ldam", "linear"): (0.0, None),
        ("ldam", "cosine"): (0.0, 20),
    }
    assert space.json() != space_of(tmp_path, text.replace("20", "30")).json()


def test_points_that_train_the_same_are_one_and_are_counted_if_they_are_few() -> None:
    frozen = {"freeze_backbone_epochs": Range(0, 9, whole=True, points=10)}
    space = SearchSpace(frozen, BASE)
    assert [point["freeze_backbone_epochs"] for point in space.grid()] == [0, 1, 2, 3, 4], "there are 4 epochs"
    assert space.num_points == 5
    many = Choice(tuple(range(1, 41)))
    assert SearchSpace(dict.fromkeys(("batch_size", "lr", "head_lr", "weight_decay"), many), BASE).num_points is None
    assert SearchSpace({**frozen, "lr": Range(1e-4, 1e-2)}, BASE).num_points is None


def test_default_batch_sizes_fit_the_dataset() -> None:
    default = DEFAULTS[BASE.model]["batch_size"]
    assert default_space(BASE, default, features=True).parameters["batch_size"] == Choice((default // 2, default))
    space = default_space(BASE, default - 1, features=True)
    assert "batch_size" not in space.parameters
    assert space.base.batch_size == default // 2


@pytest.mark.parametrize("model", DEFAULTS)
@pytest.mark.parametrize("loss", ["ldam", "ce", "balanced-softmax"])
@pytest.mark.parametrize("features", [False, True])
def test_default_spaces_hold_the_defaults(model: str, loss: str, features: bool) -> None:
    base = TrainConfig("shards", model=model, loss=loss, epochs=8)  # type: ignore[arg-type]
    space = default_space(base, 1000, features=features)
    space.check()
    assert ("ldam_max_margin" in space.parameters) == (loss == "ldam")
    assert ("label_smoothing" in space.parameters) == (loss == "ce")
    assert ("color_jitter" in space.parameters) == (not features)
    middle = space.parameters["head_lr"].grid()[1]
    assert middle == pytest.approx(DEFAULTS[model]["head_lr"])
