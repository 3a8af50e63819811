"""`anprompt benchmark` and `anprompt benchmark report`."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from .choices import Halves, Protocol, Sampling, Source
from .config_file import Values, set_defaults
from .errors import FAILED
from .options import CLIP, DATA, OUTPUT, RUN, TRAINING, RunOptions, argument, command, file, number, option
from .wording import in_options

METHODS = "methods"

benchmark = typer.Typer(no_args_is_help=True, invoke_without_command=True)


def use_grid(context: typer.Context, path: Path | None) -> Path | None:
    """Make a file's values the defaults of the options, and its methods sections: the callback of `--config`."""
    return set_defaults(context, path, [METHODS], _take_methods, aliases=True)


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(RunOptions):
    """Options of `anprompt benchmark`. Nothing is required by typer, as `anprompt benchmark report` needs none."""

    output: Path | None = option(
        "Folder of the grid: a folder for each cell. Cells that are there are skipped.", OUTPUT
    )
    config: Path | None = file(
        "YAML or JSON file with options (`shots: 16`) and with settings of methods (`methods:`).",
        is_eager=True,
        callback=use_grid,
    )
    data: list[str] | None = option(
        "Data set: a name of the catalog, a folder, an id on the Hub, or module:function; repeat it.",
        DATA,
        metavar="NAME",
    )
    root: Path | None = option("Folder that holds the catalog's data sets.", DATA, file_okay=False)
    source: Source = option("Read data sets of the catalog below --root, or from the Hub.", DATA, default="folder")
    protocol: Protocol = option("What is learned and measured.", DATA, default="base-to-new")
    target: list[str] | None = option("Data set to measure on, of cross-data; repeat it.", DATA, metavar="NAME")
    shots: int = number("Images per class.", DATA, default=16)
    halves: Halves = option("Base classes: the first half, or drawn with the seed.", DATA, default="order")
    sampling: Sampling = option("Shots: those of CoOp's code, or a stream for each class.", DATA, default="coop")
    method: list[str] | None = option(
        "Method: a preset, one named in the file, or module:Class; repeat it. Default: those of the file.",
        TRAINING,
        metavar="NAME",
    )
    robustness: list[str] | None = option(
        "Measure under perturbations as well: text, image, phrasing, undecided, or a family; repeat it.",
        DATA,
        metavar="NAME",
    )
    seeds: list[str] | None = option("Seed, or a range such as 1-3; repeat it. Default: 1-3.", TRAINING, metavar="N")
    model: str = option("CLIP to adapt: its id on the Hub, or a folder.", default=CLIP)
    jobs: int = number("Processes.", RUN, default=1)
    threads: int = number("Threads of each process.", RUN, default=1)
    shard: str = option("Run one of N parts of the grid.", RUN, default="1/1", metavar="I/N")


@dataclass(frozen=True, kw_only=True)
class BenchmarkReportOptions:
    """Options of `anprompt benchmark report`."""

    folder: Path = argument("FOLDER", "Folder of a grid.", exists=True, file_okay=False)
    reference: str = option("Method that all others are compared with.", default="anprompt", metavar="NAME")
    html: Path | None = option("Write the tables and plots as one HTML file.", dir_okay=False)


@benchmark.callback()
@command
def run(context: typer.Context, options: BenchmarkOptions) -> None:
    """Measure methods beside each other: a grid of data sets, methods and seeds.

    * `anprompt benchmark --data photos --method zero-shot --method anprompt --output grid`
    * `anprompt benchmark report grid`

    Cells that are in the folder are skipped, so the same command continues a grid that was stopped.
    """
    if context.invoked_subcommand:
        return
    methods = choose_methods(options.method, context.obj.sections)
    required = {"--output": options.output, "--data": options.data, "--method": methods}
    if missing := [name for name, value in required.items() if not value]:
        raise ValueError(
            f"{', '.join(missing)}: give at least one of each. `anprompt benchmark --help` shows examples."
        )
    seeds = parse_seeds(options.seeds or ["1-3"])
    from .jobs.benchmark import run_benchmark

    if failed := run_benchmark(options, methods, seeds):
        print(*(in_options(line, options) for line in failed), sep="\n", file=sys.stderr)
        raise typer.Exit(FAILED)
    print(f"Done: `anprompt benchmark report {options.output}` shows the tables.", file=sys.stderr)


@benchmark.command(no_args_is_help=True)
@command
def report(options: BenchmarkReportOptions) -> None:
    """Tabulate a grid: accuracies with deviations, and paired differences from one method.

    * `anprompt benchmark report grid`
    * `anprompt benchmark report grid --reference zero-shot --html page.html`
    """
    from .jobs.benchmark import report_benchmark

    print(report_benchmark(options))


def choose_methods(wanted: Sequence[str] | None, settings: Mapping[str, Values]) -> dict[str, tuple[str, Values]]:
    """Return by the name in tables what to make of the methods that are wanted, or all of a file, and its settings."""
    chosen = {}
    for name in wanted or settings:
        values = dict(settings.get(name, {}))
        chosen[name] = (str(values.pop("method", name)), values)
    return chosen


def parse_seeds(texts: Sequence[str]) -> list[int]:
    """Return seeds given as numbers and ranges: `["1-3", "7"]` is 1, 2, 3, 7."""
    seeds: list[int] = []
    for text in texts:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise ValueError(f"--seeds {text} must be a number, or a range such as 1-3.")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def _take_methods(values: Values) -> tuple[Values, dict[str, Values]]:
    methods: Any = values.pop(METHODS, None) or {}
    if not isinstance(methods, dict) or not all(isinstance(each or {}, dict) for each in methods.values()):
        raise ValueError(f"{METHODS} must hold names with settings, such as `coop: {{recipe: {{epochs: 50}}}}`.")
    return values, {str(name): dict(each or {}) for name, each in methods.items()}
