"""What is declared at an option's field: limits, losses and heads, meaning to a search and to resuming."""

import math
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

from lmk_data.errors import UserError
from lmk_train.config.commands import EvalConfig, ExportConfig, TuneConfig
from lmk_train.config.defaults import DEFAULTS
from lmk_train.config.option import Limits, options_of, values_of
from lmk_train.config.training import ResolvedConfig, TrainConfig

LIMITS = {
    "at least 1": Limits(at_least=1),
    "above 0": Limits(above=0),
    "above 0, at most 2": Limits(above=0, at_most=2),
    "between 0 and 1": Limits(above=0, below=1),
    "from 0 to 1": Limits(at_least=0, at_most=1),
    "from 0, below 1": Limits(at_least=0, below=1),
    "from 0 to 2^63 - 1": Limits(at_least=0, at_most=2**63 - 1),
}


@given(st.floats() | st.integers(-3, 3))
def test_limits_accept_what_they_say(value: float) -> None:
    holds = {
        "at least 1": 1 <= value < math.inf,
        "above 0": 0 < value < math.inf,
        "above 0, at most 2": 0 < value <= 2,
        "between 0 and 1": 0 < value < 1,
        "from 0 to 1": 0 <= value <= 1,
        "from 0, below 1": 0 <= value < 1,
        "from 0 to 2^63 - 1": 0 <= value < 2**63,
    }
    for text, limits in LIMITS.items():
        assert str(limits) == text
        assert limits.accept(value) == holds[text], text


@pytest.mark.parametrize("model", get_args(options_of(TrainConfig)["model"].type))
def test_every_default_of_a_model_is_a_value_of_an_option_that_is_left_open(model: str) -> None:
    options = options_of(TrainConfig)
    for name, value in DEFAULTS[model].items():  # type: ignore[index]
        assert options[name].derived, name
        kind = options[name].type
        assert value in get_args(kind) if get_origin(kind) is Literal else type(value) is kind, name
    resolved = TrainConfig("shards", model=model).resolved()  # type: ignore[arg-type]
    assert all(getattr(resolved, name) is not None for name, option in options.items() if option.derived)


def test_a_configuration_is_saved_flat_and_read_back(tmp_path: Path) -> None:
    arguments = ["--shards", "s3://bucket/shards", "--cache", str(tmp_path), "--cache-gb", "2", "--loss", "ce"]
    asked = tyro.cli(TrainConfig, args=arguments)
    resolved = asked.resolved()
    for config, kind in ((asked, TrainConfig), (resolved, ResolvedConfig)):
        saved = config.json()
        assert list(saved) == list(options_of(TrainConfig))
        assert (saved["cache"], saved["cache_gb"]) == (str(tmp_path), 2.0)
        assert kind.from_json(saved) == config
    earlier = {name: value for name, value in resolved.json().items() if name != "random_erasing"}
    assert ResolvedConfig.from_json(earlier) == resolved, "an option that came later has its default"
    for damaged in (asked.json(), {**resolved.json(), "unknown": 1}, {"model": "resnet50"}):
        with pytest.raises(UserError, match=r"not a (resolved )?training configuration of this version"):
            ResolvedConfig.from_json(damaged)


@pytest.mark.parametrize(
    ("command", "required"),
    [
        (TrainConfig, ["--shards", "shards"]),
        (EvalConfig, ["run"]),
        (ExportConfig, ["run", "--to", "onnx"]),
        (TuneConfig, ["--shards", "shards"]),
    ],
)
def test_every_command_that_reads_a_dataset_has_the_cache(command: type, required: list[str], tmp_path: Path) -> None:
    config = tyro.cli(command, args=[*required, "--cache", str(tmp_path), "--cache-gb", "0.5"])
    cache = config.cache.resolved()  # type: ignore[attr-defined]
    assert (cache.folder, cache.max_bytes) == (tmp_path, 500_000_000)
    assert values_of(config)["cache_gb"] == 0.5
    for number in ("nan", "inf"):
        with pytest.raises(UserError, match=rf"^--cache-gb {number}: must be finite$"):
            tyro.cli(command, args=[*required, "--cache-gb", number])


def test_no_option_takes_what_is_not_finite() -> None:
    for name, option in options_of(TrainConfig).items():
        if option.type is float:
            assert option.limits is not None, name
            assert not any(option.limits.accept(value) for value in (math.inf, -math.inf, math.nan)), name


def test_angles_need_a_cosine_head() -> None:
    assert TrainConfig("shards", loss="arcface").resolved().head == "cosine"
    with pytest.raises(UserError, match=r"^--head linear goes not with --loss arcface"):
        TrainConfig("shards", loss="arcface", head="linear")


def test_an_option_of_another_loss_or_head_is_refused_and_of_the_own_one_is_not() -> None:
    options = options_of(TrainConfig)
    values = {"ldam_max_margin": 0.3, "label_smoothing": 0.1, "cosine_scale": 20.0, "subcenters": 2}
    for loss in get_args(options["loss"].type):
        for head in ("cosine",) if loss == "arcface" else get_args(options["head"].type):
            for name, value in values.items():
                given_options = {"loss": loss, "head": head, name: value}
                if options[name].info.applies_to(loss, head):
                    assert getattr(TrainConfig("shards", **given_options).resolved(), name) == value
                else:
                    with pytest.raises(UserError, match=f"^{options[name].flag} goes with --(loss|head) "):
                        TrainConfig("shards", **given_options)
