"""`anprompt benchmark` and `anprompt benchmark report`."""

from __future__ import annotations

import sys

import typer

from .errors import FAILED
from .grid_file import choose_methods, parse_seeds
from .options import BenchmarkOptions, BenchmarkReportOptions, command
from .wording import in_options

benchmark = typer.Typer(no_args_is_help=True, invoke_without_command=True)


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
