"""`lmk-shard`: parse the command line, call the module that does the work, print a summary."""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import tyro

from lmk_data import __version__
from lmk_data.options import Browse, Build, BuildOptions, Export, Report, Sample, Selection, Subset, Verify
from lmk_data.system.terminal import counted, run_command, say

if TYPE_CHECKING:
    from lmk_data.build import BuildResult
    from lmk_data.build.plan import Plan
    from lmk_data.sources.labels import LabelTable

_PROGRAM = "lmk-shard"
_SHOWN_PROBLEMS = 20
_SHOWN_FILES = 4
_DESCRIPTION = """Turn a labelled collection of images into WebDataset shards, once, and inspect the result.

In the folder where Kaggle's Google Landmark Recognition archive was unpacked, this is all there is to type:

    lmk-shard build --min-samples 6

`lmk-shard COMMAND --help` describes the options of a command. `lmk-shard --version` prints the version.
"""
Command = Build | Report | Verify | Subset | Browse | Export | Sample


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `lmk-shard` and return its exit code; exits with 2 for a command line that does not parse."""
    given = list(sys.argv[1:] if arguments is None else arguments)

    def run() -> None:
        if given == ["--version"]:
            say(f"{_PROGRAM} {__version__}")
        else:
            _run(parse(given))

    return run_command(_PROGRAM, run)


def parse(arguments: Sequence[str]) -> Command:
    """Return the options of one command.

    Raises UserError for a value that parses but makes no sense, SystemExit(2) for what does not parse.
    """
    commands: dict[str, Callable[..., Command]] = {
        "build": Build,
        "report": Report,
        "verify": Verify,
        "subset": Subset,
        "browse": Browse,
        "export": Export,
        "sample": Sample,
    }
    command: Command = tyro.extras.subcommand_cli_from_dict(
        commands,
        prog=_PROGRAM,
        description=_DESCRIPTION,
        args=list(arguments),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return command


def _run(command: Command) -> None:
    runners: dict[type, Callable[[Any], None]] = {
        Build: _build,
        Report: _report,
        Verify: _verify,
        Subset: _subset,
        Browse: _browse,
        Export: _export,
        Sample: _sample,
    }
    runners[type(command)](command)


def _build(command: Build) -> None:
    options = command.options
    if command.dry_run:
        from lmk_data.build import plan_build

        _print_plan(options, *plan_build(options))
        return
    from lmk_data.build.workers import started_beside_the_plan

    with started_beside_the_plan(options):
        from lmk_data.build import build

        result = build(options)
    if not options.quiet:
        _print_built(options, result)
    if not command.no_report:
        _report_build(options, result)
    if not options.quiet:
        say(f"next: {shlex.join(['lmk-train', '--shards', str(options.out)])}")


def _report_build(options: BuildOptions, result: "BuildResult") -> None:
    """Write the report of a build, unless there was nothing to build and its report is there."""
    from lmk_data.report import is_reported
    from lmk_data.system.storage import open_folder

    path = str(options.out)
    folder = _report_folder(path)
    if not (result.already_complete and is_reported(result.manifest, open_folder(folder))):
        _write_report(path, folder, options.workers, options.quiet)
    elif not options.quiet:
        _print_report(path, folder, None)


def _report(command: Report) -> None:
    folder = command.out or _report_folder(command.dataset)
    _write_report(command.dataset, folder, command.workers, command.quiet, base=command.base)


def _verify(command: Verify) -> None:
    from lmk_data.errors import DatasetError
    from lmk_data.verify.dataset import verify

    result = verify(
        command.dataset,
        base=command.base,
        quick=command.quick,
        thorough=command.thorough,
        workers=command.workers,
        quiet=command.quiet,
    )
    if result.problems:
        for problem in result.problems[:_SHOWN_PROBLEMS]:
            say(str(problem))
        more = len(result.problems) - _SHOWN_PROBLEMS
        if more > 0:
            say(f"and {more:,} more")
        number = len(result.problems)
        raise DatasetError(
            f"{command.dataset}: {number:,} problem{'s' * (number != 1)}, see above; copy the damaged files again from "
            "a good copy, or delete dataset.json and the damaged shards and run the build again"
        )
    if not command.quiet:
        decoded = "" if command.quick else f", {counted(result.num_decoded, 'picture')} decoded"
        say(
            f"{command.dataset}: good: {counted(result.num_files, 'file')}, {result.num_bytes / 1e6:,.1f} MB, "
            f"every byte of {counted(result.num_samples, 'sample')} accounted for{decoded}"
        )


def _subset(command: Subset) -> None:
    from lmk_data.dataset.format import SPLITS
    from lmk_data.dataset.reader import ShardedDataset
    from lmk_data.system.storage import is_url
    from lmk_data.views.copy import write_copy
    from lmk_data.views.view import write_view

    selection = _selection(command)
    with ShardedDataset.open(command.dataset, base=command.base) as dataset:
        write = write_copy if command.copy else write_view
        manifest = write(
            dataset,
            selection,
            command.out,
            workers=command.workers,
            overwrite=command.overwrite,
            quiet=command.quiet,
        )
    if not command.quiet:
        num_classes, written = manifest["classes"]["num_classes"], manifest["counts"]["written"]
        kind = "copy" if command.copy else "view"
        say(f"{command.out}: a {kind} of {counted(written, 'image')} of {counted(num_classes, 'class')}")
        for split, entry in manifest["splits"].items():
            say(f"  {split:5} {entry['num_samples']:>9,} images in {counted(len(entry['shards']), 'shard')}")
        origin = manifest["source"]["subset_of"] if command.copy else manifest["view_of"]
        base = "" if command.copy else manifest["view_of"]["path"]
        left_out: dict[str, Any] = {
            "left out by marks and lists of keys": origin["removed"].get("marked"),
            "duplicates left out": origin["removed"].get("duplicates"),
            "relabelled": origin.get("relabelled"),
        }
        for what, numbers in left_out.items():
            if numbers:
                say(f"  {what}: {', '.join(f'{numbers[split]:,} of {split}' for split in SPLITS)}")
        named = ["--base", base] if is_url(base) else []
        say(f"next: {shlex.join(['lmk-train', '--shards', str(command.out), *named])}")


def _browse(command: Browse) -> None:
    from lmk_data.errors import missing_extra

    try:
        from lmk_data.browse.server import browse
    except ModuleNotFoundError as error:
        raise missing_extra("lmk-shard browse", "browse", f"{error.name} is missing") from error

    def started(address: str, marks: str) -> None:
        if not command.quiet:
            say(f"{command.dataset}: marks are kept in {marks}")
        print(f"open {address}", flush=True)  # `say` would take the token out
        if not command.quiet:
            say("Ctrl-C ends it; every mark is saved at once")

    facts = browse(command, started)
    if not command.quiet:
        say("", f"{facts.marks}: {facts.marked.excluded:,} excluded, {facts.marked.relabelled:,} relabelled")
        if facts.marked.excluded or facts.marked.relabelled:
            say(f"next: {facts.subset_line}")


def _selection(command: Subset) -> Selection:
    """Return what the command line selects, with the content of the files that it names."""
    from lmk_data.views.lists import read_class_list, read_key_lists
    from lmk_data.views.marks import read_mark_files

    def paths(files: tuple[tuple[str, ...], ...]) -> list[str]:
        return [path for given in files for path in given]

    ignore, quiet = command.ignore_unknown, command.quiet
    return replace(
        command.selection,
        classes=read_class_list(command.classes) if command.classes else None,
        include=read_key_lists(paths(command.include), "--include") if command.include else None,
        exclude=read_key_lists(paths(command.exclude), "--exclude") if command.exclude else None,
        marks=read_mark_files(paths(command.marks), ignore_conflicts=ignore, quiet=quiet) if command.marks else None,
        ignore_unknown=ignore,
    )


def _export(command: Export) -> None:
    from lmk_data.dataset.manifest import read_manifest
    from lmk_data.dataset.reader import ShardedDataset
    from lmk_data.export.export import export, refuse_view
    from lmk_data.system.storage import open_folder

    folder = open_folder(command.dataset)
    refuse_view(folder.root, read_manifest(folder))  # before its base is opened
    with ShardedDataset.open(command.dataset) as dataset:
        exported = export(dataset, command.to, command.out or f"{dataset.location}-{command.to}", quiet=command.quiet)
    if not command.quiet:
        names = exported.written
        shown = ", ".join(names[:_SHOWN_FILES]) + (
            f" and {len(names) - _SHOWN_FILES:,} more" * (len(names) > _SHOWN_FILES)
        )
        say(f"{exported.folder}: {shown}; the tars are hard links")
        say("next: the snippet for this tool in docs/reuse.md")


def _sample(command: Sample) -> None:
    from lmk_data.sample import draw_sample

    drawn = draw_sample(
        command.out,
        num_classes=command.classes,
        num_images=command.images,
        seed=command.seed,
        workers=command.workers,
        quiet=command.quiet,
    )
    if not command.quiet:
        say(
            f"{drawn.folder}: {counted(drawn.num_images, 'image')} of {counted(drawn.num_classes, 'landmark')}, "
            "one unreadable, one missing"
        )
        options = {"--images": "train", "--labels": "train.csv", "--out": "shards"}
        words = [word for option, name in options.items() for word in (option, f"{drawn.folder}/{name}")]
        say(f"next: {shlex.join(['lmk-shard', 'build', *words])}")


def _report_folder(dataset: str) -> str:
    from lmk_data.dataset.format import REPORT_FOLDER

    return f"{dataset.rstrip('/')}/{REPORT_FOLDER}"


def _write_report(path: str, folder: str, workers: int | None, quiet: bool, *, base: str | None = None) -> None:
    from lmk_data.dataset.reader import ShardedDataset
    from lmk_data.report import terminal_summary, write_report
    from lmk_data.system.storage import open_folder

    with ShardedDataset.open(path, base=base) as dataset:
        report = write_report(dataset, open_folder(folder), workers=workers, quiet=quiet)
    if not quiet:
        say(*terminal_summary(report).split("\n"))
        _print_report(path, folder, base)


def _print_report(path: str, folder: str, base: str | None) -> None:
    say(f"report: {folder}/index.html")
    named = ["--base", base] if base else []
    say(f"look and mark: {shlex.join(['lmk-shard', 'browse', path, *named])}")


def _print_plan(options: BuildOptions, labels: "LabelTable", plan: "Plan") -> None:
    counts, num_samples = plan.counts, plan.samples["split"].value_counts()
    listed = f"{counted(labels.num_images, 'image')} of {counted(labels.num_classes, 'class')}"
    say(f"{labels.name} ({labels.layout}): {listed}")
    say(
        f"  {labels.conflicting:,} ids with two labels are left out, {labels.duplicate_rows:,} repeated rows count once"
    )
    say(
        f"  {counted(counts['below_min_samples'], 'image')} in classes under {options.rule.min_samples}, "
        f"{counts['outside_top']:,} outside the largest classes"
    )
    say(f"would write {counted(len(plan.samples), 'image')} of {counted(len(plan.classes), 'class')} to {options.out}:")
    for split, num_shards in plan.num_shards.items():
        share = num_samples[split] / len(plan.samples)
        say(f"  {split:5} {num_samples[split]:>9,} images ({share:6.2%}) in {counted(num_shards, 'shard')}")


def _print_built(options: BuildOptions, result: "BuildResult") -> None:
    if result.already_complete:
        written, num_classes = result.manifest["counts"]["written"], result.manifest["classes"]["num_classes"]
        of = f"{counted(written, 'image')} of {counted(num_classes, 'class')}"
        say(f"{options.out}: this build is already complete ({of}); nothing to do")
        return
    for ignored in result.ignored or []:
        if not ignored.may_be_missed:  # stderr has these
            say(f"ignored: {ignored}")
    encoder = result.manifest["recipe"]["encoder"]
    rate = result.built_images / max(result.seconds, 1e-9)
    resumed = f", resumed after {result.resumed_images:,} built earlier" if result.resumed_images else ""
    say(
        f"{options.out}: {counted(result.built_images, 'image')} in {result.seconds:,.1f} s ({rate:,.0f} a second on "
        f"{result.workers} workers, {encoder['distribution']} {encoder['version']}){resumed}"
    )


if __name__ == "__main__":
    sys.exit(main())
