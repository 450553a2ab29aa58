"""The report of a search: the best parameters as a command, every trial, what mattered, and how sure that is."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from lmk_data.report import page
from lmk_data.system.files import write_bytes
from lmk_train.evaluation.metrics import LOWER_IS_BETTER, spelled
from lmk_train.runs.folder import SearchFolder
from lmk_train.tuning.experiment import DONE, FAILED, STOPPED, Experiment, Trial, better, quiet_models
from lmk_train.tuning.space import Choice, Point, Range, SearchSpace

_LEAST_TRIALS = 6  # for a model of the objective to say anything
_SLICE_POINTS = 41
_INTERVAL = 1.96
_SHOWN_BEST = 5
_COLUMNS = 2


@dataclass(frozen=True)
class _Model:
    """Ax's Gaussian process of the objective over the parameters, fitted to the trials that finished."""

    adapter: Any
    objective: str

    @quiet_models()
    def predict(self, points: list[Point]) -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
        """Mean and standard deviation of the objective without noise at each point, float64 [N] both."""
        from ax.core.observation import ObservationFeatures

        means, covariances = self.adapter.predict([ObservationFeatures(parameters={**point}) for point in points])
        variances = np.asarray(covariances[self.objective][self.objective], dtype=np.float64)
        return np.asarray(means[self.objective], dtype=np.float64), np.sqrt(variances)

    def sensitivities(self) -> dict[str, float]:
        """Each parameter's total Sobol index: its share, alone and with others, of the objective's variance."""
        from ax.utils.sensitivity.sobol_measures import ax_parameter_sens

        found = ax_parameter_sens(self.adapter, order="total", signed=False)[self.objective]
        return {str(name): float(value) for name, value in found.items()}

    @quiet_models()
    def cross_validated(self) -> list[tuple[float, float, float]]:
        """Observed value, predicted mean and standard deviation of each trial by a model that has not seen it."""
        from ax.adapter.cross_validation import cross_validate

        return [
            (float(r.observed.data.means[0]), float(r.predicted.means[0]), float(r.predicted.covariance[0, 0]) ** 0.5)
            for r in cross_validate(self.adapter)
        ]


def write_search_report(
    out: Path,
    experiment: Experiment,
    space: SearchSpace,
    trials: list[Trial],
    best: Trial,
    command: str,
    test: dict[str, float | int | None] | None,
) -> Path:
    """Write report/index.html into the folder of a search that has a finished trial."""
    objective = experiment.objective
    model = _fit(experiment, trials)
    sections = [
        page.Section("In short", _summary(objective, trials, best, command, test)),
        page.Section("The search", [_history(objective, trials), _curves(objective, trials, best)]),
        page.Section("Each parameter", _slices(objective, space, trials, best, model)),
        page.Section("What mattered, and how sure that is", _certainty(objective, trials, model)),
        page.Section("Every trial", [_table(objective, space, trials)]),
    ]
    subtitle = f"{len(trials)} trials on {space.base.shards}, judged by {spelled(objective)} of the validation split"
    path = SearchFolder(out).report
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, page.render_page(out.resolve().name, subtitle, sections).encode())
    return path


@quiet_models()
def _fit(experiment: Experiment, trials: list[Trial]) -> _Model | None:
    """A model of the objective; None where the trials that finished are too few or all alike."""
    values = [trial.value for trial in trials if trial.state == DONE]
    if len(values) < _LEAST_TRIALS or len(set(values)) == 1:
        return None
    from ax.adapter.registry import Generators

    return _Model(Generators.BOTORCH_MODULAR(experiment=experiment.ax), experiment.objective)


def _summary(
    objective: str, trials: list[Trial], best: Trial, command: str, test: dict[str, float | int | None] | None
) -> list[Markup]:
    counts = {state: sum(trial.state == state for trial in trials) for state in (DONE, STOPPED, FAILED)}
    figures = [(f"{best.value:.4f}", f"validation {spelled(objective)} of trial {best.number}")]
    if test is not None:
        shown = {name: test[name] for name in (objective, "accuracy")}
        figures += [(f"{value:.4f}", f"test {spelled(name)}") for name, value in shown.items() if value is not None]
    figures += [(str(number), f"trials {state}") for state, number in counts.items() if number]
    parts = [page.key_figures(figures), page.paragraph("To train it again:"), page.code(command)]
    parts.append(
        page.paragraph(
            "Every choice was made on the validation split; only the best trial saw the test split, once. The best "
            "of many trials looks better on validation than it is: the test figure is the one to quote."
        )
    )
    return parts


def _history(objective: str, trials: list[Trial]) -> Markup:
    finished = [trial for trial in trials if trial.state == DONE and trial.value is not None]
    stopped = [trial for trial in trials if trial.state == STOPPED and trial.value is not None]
    drawn, axes = page.new_figure(3.0)
    axes.scatter(*_points(finished), color=page.ACCENT, s=22, label="finished", zorder=3)
    if stopped:
        axes.scatter(*_points(stopped), color=page.MUTED, marker="x", s=26, label="stopped early", zorder=3)
    so_far: list[float] = []
    for trial in finished:
        value = trial.value or 0.0
        so_far.append(value if not so_far or better(value, so_far[-1], objective) else so_far[-1])
    axes.step(
        [trial.number for trial in finished], so_far, where="post", color=page.ACCENT, alpha=0.6, label="best so far"
    )
    axes.set(xlabel="trial", ylabel=f"validation {spelled(objective)}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return page.figure(drawn, "The objective of each trial, and the best so far.")


def _curves(objective: str, trials: list[Trial], best: Trial) -> Markup:
    drawn, axes = page.new_figure(3.0)
    for trial in trials:
        if trial.values and trial.number != best.number:
            color = page.ACCENT if trial.state == DONE else page.MUTED
            axes.plot(list(trial.values), list(trial.values.values()), color=color, alpha=0.35, linewidth=1)
    axes.plot(list(best.values), list(best.values.values()), color=page.ACCENT, linewidth=2.5, marker="o", markersize=3)
    axes.set(xlabel="epoch", ylabel=f"best {spelled(objective)} so far")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return page.figure(drawn, f"Each trial by epoch, in bold the best one (trial {best.number}).")


def _slices(objective: str, space: SearchSpace, trials: list[Trial], best: Trial, model: _Model | None) -> list[Markup]:
    """The trials along each parameter, with the model's mean and interval where all others are the best trial's."""
    shown = [trial for trial in trials if trial.value is not None and trial.state != FAILED]
    drawn, parts = page.new_figures(len(space.parameters), 2.6, _COLUMNS)
    for place, (axes, (name, parameter)) in enumerate(zip(parts, space.parameters.items(), strict=True)):
        grid = _along(parameter)
        # Choices stand side by side, numbers where they are.
        at = {value: i if isinstance(parameter, Choice) else float(value) for i, value in enumerate(grid)}
        if model is not None:
            mean, deviation = model.predict([{**best.point, name: value} for value in grid])
            if isinstance(parameter, Choice):
                axes.errorbar(range(len(grid)), mean, _INTERVAL * deviation, fmt="_", color=page.MUTED, capsize=4)
            else:
                low, high = mean - _INTERVAL * deviation, mean + _INTERVAL * deviation
                axes.fill_between(list(at.values()), low, high, color=page.MUTED, alpha=0.2, linewidth=0)
                axes.plot(list(at.values()), mean, color=page.MUTED, linewidth=1.5)
        for chosen, size in ((shown, 16), ([best], 60)):
            places = [at[t.point[name]] if isinstance(parameter, Choice) else float(t.point[name]) for t in chosen]
            values = [trial.value or 0.0 for trial in chosen]
            axes.scatter(places, values, s=size, color=page.ACCENT, alpha=0.8, linewidths=0, zorder=3)
        if isinstance(parameter, Choice):
            axes.set_xticks(range(len(grid)), [str(value) for value in grid])
            axes.set_xlim(-0.5, len(grid) - 0.5)
        elif parameter.log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if parameter.high < 100 * parameter.low else (1,)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlabel=spelled(name), ylabel=spelled(objective) if place % _COLUMNS == 0 else "")
    caption = "Each trial along each parameter; the large dot is the best."
    if model is not None:
        caption += " The band is where a model of all trials expects the objective (95 %), the others as in the best."
    return [page.figure(drawn, caption)]


def _along(parameter: Range | Choice) -> list[Any]:
    if isinstance(parameter, Choice):
        return list(parameter.values)
    if parameter.whole:
        return [int(value) for value in np.unique(np.linspace(parameter.low, parameter.high, _SLICE_POINTS).round())]
    if parameter.log:
        values = np.geomspace(parameter.low, parameter.high, _SLICE_POINTS)
    else:
        values = np.linspace(parameter.low, parameter.high, _SLICE_POINTS)
    return [float(value) for value in values.clip(parameter.low, parameter.high)]


def _certainty(objective: str, trials: list[Trial], model: _Model | None) -> list[Markup]:
    if model is None:
        return [page.paragraph(f"A model of the objective needs {_LEAST_TRIALS} finished trials that differ.")]
    shares = sorted(model.sensitivities().items(), key=lambda item: item[1])
    drawn, axes = page.new_figure(0.8 + 0.3 * len(shares))
    axes.barh([spelled(name) for name, _ in shares], [share for _, share in shares], color=page.ACCENT)
    axes.set(xlabel=f"share of the variance of {spelled(objective)} over the search space", xlim=(0, None))
    mattered = page.figure(
        drawn, "What mattered: total Sobol indices of the model; a parameter counts alone and with others."
    )
    checked = model.cross_validated()
    observed, expected, deviation = (np.array(values) for values in zip(*checked, strict=True))
    drawn, axes = page.new_figure(3.4)
    axes.errorbar(observed, expected, _INTERVAL * deviation, fmt="o", markersize=4, color=page.ACCENT, alpha=0.7)
    ends = [min(observed.min(), expected.min()), max(observed.max(), expected.max())]
    axes.plot(ends, ends, color=page.MUTED, linestyle=":", linewidth=1)
    axes.set(xlabel=f"{spelled(objective)} of a trial", ylabel="what the others foretell")
    correlation = float(np.corrcoef(observed, expected)[0, 1]) if np.ptp(observed) and np.ptp(expected) else math.nan
    trust = (
        f"How far to trust it: each trial as a model of all the others foretells it, with 95 % intervals; correlation "
        f"{correlation:.2f}. Near the dotted line it can be believed; near 0 it knows nothing."
    )
    return [mattered, page.figure(drawn, trust), _best_ones(objective, trials, model)]


def _best_ones(objective: str, trials: list[Trial], model: _Model) -> Markup:
    """The best trials as they were observed, and as the model, which averages out luck, sees them."""
    sign = 1 if objective in LOWER_IS_BETTER else -1
    best = sorted((t for t in trials if t.state == DONE and t.value is not None), key=lambda t: sign * (t.value or 0.0))
    best = best[:_SHOWN_BEST]
    means, deviations = model.predict([trial.point for trial in best])
    rows = [
        (str(trial.number), f"{trial.value:.4f}", f"{mean:.4f} ± {_INTERVAL * deviation:.4f}")
        for trial, mean, deviation in zip(best, means, deviations, strict=True)
    ]
    return page.table(("trial", f"{spelled(objective)}, observed", "by the model, 95 %"), rows)


def _table(objective: str, space: SearchSpace, trials: list[Trial]) -> Markup:
    columns: list[list[object]] = [
        [trial.number for trial in trials],
        [f"{trial.value:.4f}" if trial.value is not None else "" for trial in trials],
        [trial.state + (f": {trial.reason}" if trial.reason else "") for trial in trials],
        [len(trial.values) for trial in trials],
    ]
    meaningful = [space.meaningful(trial.point) for trial in trials]
    for name in space.parameters:
        values = [point.get(name, "") for point in meaningful]
        columns.append([f"{value:.4g}" if isinstance(value, float) else str(value) for value in values])
    header = ("trial", spelled(objective), "state", "epochs", *(spelled(name) for name in space.parameters))
    return page.sortable_table(header, columns)


def _points(trials: list[Trial]) -> tuple[list[int], list[float]]:
    return [trial.number for trial in trials], [trial.value or 0.0 for trial in trials]
