"""The report of a search: the best parameters as a command, every trial, and the importance of each parameter."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from lmk_data.report import page
from lmk_data.system.files import check_no_link, make_folder, write_bytes
from lmk_data.system.terminal import without_secrets
from lmk_train.evaluation.metrics import LOWER_IS_BETTER, spelled
from lmk_train.runs.folder import SearchFolder
from lmk_train.tuning.experiment import Experiment, Trial, better
from lmk_train.tuning.history import DONE, FAILED, STOPPED
from lmk_train.tuning.space import Choice, Range, SearchSpace
from lmk_train.tuning.surrogate import MIN_TRIALS, CrossValidation, Surrogate, fit_surrogate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SLICE_POINTS = 41
_INTERVAL = 1.96  # standard deviations: 95 %
_NUM_BEST = 5
_COLUMNS = 2
_MAX_LABELS = 6  # on the axis of a plot of half the width


@dataclass(frozen=True)
class SearchResult:
    """A search with at least one finished trial.

    Attributes:
        experiment: The experiment, which defines the objective.
        space: The parameters and their ranges.
        trials: All trials by number.
        best: The best of them.
        command: The command that trains the best trial again.
        test: The test metrics of the best trial; None without a test split.
    """

    experiment: Experiment
    space: SearchSpace
    trials: list[Trial]
    best: Trial
    command: str
    test: dict[str, float | int | None] | None

    @property
    def objective(self) -> str:
        """The metric of the validation split that the search optimises."""
        return self.experiment.objective

    @property
    def finished(self) -> list[tuple[Trial, float]]:
        """The trials that ran to their end, with their objectives."""
        return self._with_objective(DONE)

    @property
    def stopped(self) -> list[tuple[Trial, float]]:
        """The trials that were stopped early, with the objectives that they had reached."""
        return self._with_objective(STOPPED)

    def _with_objective(self, state: str) -> list[tuple[Trial, float]]:
        return [(trial, trial.value) for trial in self.trials if trial.state == state and trial.value is not None]


def write_search_report(out: Path, search: SearchResult) -> Path:
    """Write report/index.html into the folder of a search and return its path."""
    surrogate = fit_surrogate(search.experiment, search.trials)
    sections = [
        page.Section("Summary", _summary(search)),
        page.Section("Trials and epochs", [_history_plot(search), _curves_plot(search)]),
        page.Section("Objective by parameter", [_parameter_plots(search, surrogate)]),
        page.Section("Importance of the parameters", _importance(search, surrogate)),
        page.Section("All trials", [_trial_table(search)]),
    ]
    dataset = without_secrets(search.space.base.shards)
    subtitle = (
        f"{len(search.trials)} trials on {dataset}, judged by {spelled(search.objective)} of the validation split"
    )
    path = SearchFolder(out).report
    check_no_link(path.parent)
    make_folder(path.parent)
    write_bytes(path, page.render_page(out.resolve().name, subtitle, sections).encode())
    return path


def _summary(search: SearchResult) -> list[Markup]:
    best, objective = search.best, spelled(search.objective)
    figures = [(f"{best.value:.4f}", f"validation {objective} of trial {best.number}")]
    if search.test is not None:
        metrics = {name: search.test[name] for name in (search.objective, "accuracy")}
        figures += [(f"{value:.4f}", f"test {spelled(name)}") for name, value in metrics.items() if value is not None]
    counts = {state: sum(trial.state == state for trial in search.trials) for state in (DONE, STOPPED, FAILED)}
    figures += [(str(number), f"trials {state}") for state, number in counts.items() if number]
    return [
        page.key_figures(figures),
        page.paragraph("To train the best trial again:"),
        page.code(search.command),
        page.paragraph(
            "All choices were made on the validation split; only the best trial was evaluated on the test split, once. "
            "The best of many trials looks better on the validation split than it is: quote the test metrics."
        ),
    ]


def _history_plot(search: SearchResult) -> Markup:
    drawn, axes = page.new_figure(3.0)
    numbers, values = [trial.number for trial, _ in search.finished], [value for _, value in search.finished]
    axes.scatter(numbers, values, color=page.ACCENT, s=22, label="finished", zorder=3)
    if search.stopped:
        stopped = [trial.number for trial, _ in search.stopped], [value for _, value in search.stopped]
        axes.scatter(*stopped, color=page.MUTED, marker="x", s=26, label="stopped early", zorder=3)
    best_values: list[float] = []
    for value in values:
        is_better = not best_values or better(value, best_values[-1], search.objective)
        best_values.append(value if is_better else best_values[-1])
    axes.step(numbers, best_values, where="post", color=page.ACCENT, alpha=0.6, label="best so far")
    axes.set(xlabel="trial", ylabel=f"validation {spelled(search.objective)}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)  # above the dots
    return page.figure(drawn, "The objective of each trial, and the best so far.")


def _curves_plot(search: SearchResult) -> Markup:
    drawn, axes = page.new_figure(3.0)
    best = search.best
    for trial in search.trials:
        if trial.values and trial.number != best.number:
            color = page.ACCENT if trial.state == DONE else page.MUTED
            marker = "." if len(trial.values) == 1 else ""  # one epoch makes no line
            epochs, values = list(trial.values), list(trial.values.values())
            axes.plot(epochs, values, color=color, alpha=0.35, linewidth=1, marker=marker)
    axes.plot(list(best.values), list(best.values.values()), color=page.ACCENT, linewidth=2.5, marker="o", markersize=3)
    axes.set(xlabel="epoch", ylabel=f"best {spelled(search.objective)} so far")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return page.figure(drawn, f"Each trial by epoch, the best one (trial {best.number}) in bold.")


def _parameter_plots(search: SearchResult, surrogate: Surrogate | None) -> Markup:
    """Return the trials along each parameter, and the model's mean and interval with all others as in the best one."""
    drawn, parts = page.new_figures(len(search.space.parameters), 2.6, _COLUMNS)
    for position, (axes, name) in enumerate(zip(parts, search.space.parameters, strict=True)):
        _draw_parameter(axes, name, search, surrogate)
        axes.set(xlabel=spelled(name), ylabel=spelled(search.objective) if position % _COLUMNS == 0 else "")
    caption = "Each trial along each parameter. Large dot: the best trial."
    if surrogate is not None:
        caption += " Band: the model's 95 % interval with all other parameters as in the best trial."
    return page.figure(drawn, caption)


def _draw_parameter(axes: "Axes", name: str, search: SearchResult, surrogate: Surrogate | None) -> None:
    parameter, best = search.space.parameters[name], search.best
    grid = _grid(parameter)
    # Choices are spaced evenly, numbers are at their values.
    x = {value: i if isinstance(parameter, Choice) else float(value) for i, value in enumerate(grid)}
    if surrogate is not None:
        mean, deviation = surrogate.predict([{**best.point, name: value} for value in grid])
        if isinstance(parameter, Choice):
            axes.errorbar(range(len(grid)), mean, _INTERVAL * deviation, fmt="_", color=page.MUTED, capsize=4)
        else:
            low, high = mean - _INTERVAL * deviation, mean + _INTERVAL * deviation
            axes.fill_between(list(x.values()), low, high, color=page.MUTED, alpha=0.2, linewidth=0)
            axes.plot(list(x.values()), mean, color=page.MUTED, linewidth=1.5)
    trials = [trial for trial in search.trials if trial.value is not None and trial.state != FAILED]
    for shown, size in ((trials, 16), ([best], 60)):
        values = [trial.point[name] for trial in shown]
        places = [x[value] if isinstance(parameter, Choice) else float(value) for value in values]
        objectives = [trial.value or 0.0 for trial in shown]
        axes.scatter(places, objectives, s=size, color=page.ACCENT, alpha=0.8, linewidths=0, zorder=3)
    if isinstance(parameter, Choice):
        axes.set_xticks(range(len(grid)), [str(value) for value in grid])
        axes.set_xlim(-0.5, len(grid) - 0.5)
    elif parameter.log:
        axes.set_xscale("log")
        page.label_log_axis(axes.xaxis, parameter.high / parameter.low, _MAX_LABELS)


def _grid(parameter: Range | Choice) -> list[Any]:
    """Return the values of a parameter at which the model is evaluated."""
    if isinstance(parameter, Choice):
        return list(parameter.values)
    if parameter.whole:
        return [int(value) for value in np.unique(np.linspace(parameter.low, parameter.high, _SLICE_POINTS).round())]
    space = np.geomspace if parameter.log else np.linspace
    values = space(parameter.low, parameter.high, _SLICE_POINTS)
    return [float(value) for value in values.clip(parameter.low, parameter.high)]


def _importance(search: SearchResult, surrogate: Surrogate | None) -> list[Markup]:
    if surrogate is None:
        return [page.paragraph(f"A model of the objective needs {MIN_TRIALS} finished trials that differ.")]
    objective = spelled(search.objective)
    return [
        _sensitivity_plot(surrogate.sensitivities(), objective),
        _validation_plot(surrogate.cross_validate(), objective),
        _best_table(search, surrogate),
    ]


def _sensitivity_plot(sensitivities: dict[str, float], objective: str) -> Markup:
    shares = sorted(sensitivities.items(), key=lambda item: item[1])
    drawn, axes = page.new_figure(0.8 + 0.3 * len(shares))
    axes.barh([spelled(name) for name, _ in shares], [share for _, share in shares], color=page.ACCENT)
    axes.set(xlabel=f"share of the variance of {objective} over the search space", xlim=(0, None))
    return page.figure(drawn, "Total Sobol indices of the model: the effect of each parameter, alone and with others.")


def _validation_plot(validation: CrossValidation, objective: str) -> Markup:
    drawn, axes = page.new_figure(3.4)
    observed, mean, interval = validation.observed, validation.mean, _INTERVAL * validation.deviation
    axes.errorbar(observed, mean, interval, fmt="o", markersize=4, color=page.ACCENT, alpha=0.7)
    ends = [min(observed.min(), mean.min()), max(observed.max(), mean.max())]
    axes.plot(ends, ends, color=page.MUTED, linestyle=":", linewidth=1)
    axes.set(xlabel=f"{objective} of a trial", ylabel="prediction from the others")
    caption = (
        "Cross-validation of the model: each trial predicted from all others, with 95 % intervals. Correlation "
        f"{validation.correlation:.2f}: near 1 the model can be trusted, near 0 it knows nothing."
    )
    return page.figure(drawn, caption)


def _best_table(search: SearchResult, surrogate: Surrogate) -> Markup:
    """Return the best trials as they were observed, and as the model, which averages out luck, predicts them."""
    sign = 1 if search.objective in LOWER_IS_BETTER else -1
    best = sorted(search.finished, key=lambda item: sign * item[1])[:_NUM_BEST]
    means, deviations = surrogate.predict([trial.point for trial, _ in best])
    rows = [
        (trial.number, page.Number(f"{value:.4f}"), page.Number(f"{mean:.4f} ± {_INTERVAL * deviation:.4f}"))
        for (trial, value), mean, deviation in zip(best, means, deviations, strict=True)
    ]
    return page.table(("trial", f"observed {spelled(search.objective)}", "by the model, 95 %"), rows)


def _trial_table(search: SearchResult) -> Markup:
    trials, parameters = search.trials, search.space.parameters
    points = [search.space.meaningful(trial.point) for trial in trials]
    columns: list[Sequence[object]] = [
        [trial.number for trial in trials],
        [page.Number("" if trial.value is None else f"{trial.value:.4f}") for trial in trials],
        [trial.state + (f": {trial.reason}" if trial.reason else "") for trial in trials],
        [len(trial.values) for trial in trials],
        *([_shown(point.get(name, "")) for point in points] for name in parameters),
    ]
    header = ("trial", spelled(search.objective), "state", "epochs", *(spelled(name) for name in parameters))
    return page.sortable_table(header, columns)


def _shown(value: object) -> str:
    return page.Number(f"{value:.4g}") if isinstance(value, float) else str(value)
