"""The jobs of `anprompt benchmark`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from joblib.externals.loky.process_executor import TerminatedWorkerError

from anprompt_peft.evaluation.grid import (
    Cell,
    Failed,
    RunEnvironment,
    Setup,
    choose_shard,
    collect,
    is_done,
    make_cells,
    make_tables,
    read_results,
    run_grid,
    summarise,
    title_of,
)
from anprompt_peft.evaluation.peers import make_method
from anprompt_peft.report.benchmark import write_benchmark
from anprompt_peft.text import plain_markdown, printable

from ..benchmark import BenchmarkOptions, BenchmarkReportOptions
from ..errors import Failure, Interrupted
from .models import choose_device, disable_progress_bars, load_clip


def run_benchmark(
    options: BenchmarkOptions, methods: Mapping[str, tuple[str, dict[str, Any]]], seeds: Sequence[int]
) -> list[str]:
    """Run the cells of a grid that are not there, and collect all that are; return a line for each reason of failures.

    `methods` says, by the names in tables, what to make and with which settings.
    """
    assert options.output is not None
    assert options.data is not None
    setup = Setup(
        options.model,
        options.protocol,
        options.shots,
        options.halves,
        options.sampling,
        options.source,
        tuple(options.target or ()),
        tuple(options.robustness or ()),
    )
    makers = {name: partial(make_method, kind, **settings) for name, (kind, settings) in methods.items()}
    cells = choose_shard(make_cells(setup, options.data, makers, seeds), options.shard)
    root = None if options.root is None else str(options.root)
    place = RunEnvironment(options.output, root, str(choose_device(options.device)), options.threads)

    def prepare() -> None:
        disable_progress_bars()
        load_clip(options.model)  # says what is wrong with it, once

    try:
        failed = run_grid(cells, place, options.jobs, prepare)
    except KeyboardInterrupt:
        done = sum(is_done(place.output, cell) for cell in cells)
        raise Interrupted(
            f"interrupted: {done} of {len(cells)} cells are done. The same command runs the others."
        ) from None
    except TerminatedWorkerError as error:
        raise Failure(
            "a process was killed, most likely because memory ran out: use fewer --jobs. Finished cells stay."
        ) from error
    if len(failed) < len(cells):
        collect(place.output)
    return reasons(failed)


def report_benchmark(options: BenchmarkReportOptions) -> str:
    """Return the tables of a grid as Markdown, and write them as a page if one is asked for."""
    collect(options.folder)
    summaries = summarise(read_results(options.folder))
    if options.html:
        write_benchmark(summaries, options.reference, options.html)
    blocks = []
    for summary in summaries:
        blocks.append(f"## {plain_markdown(title_of(summary))}")
        blocks += [table.markdown() for table in make_tables(summary, options.reference)]
    return "\n\n".join(blocks)


def reasons(failed: Sequence[Failed]) -> list[str]:
    """Return a line for each reason for which cells failed."""
    by_error: dict[str, list[Cell]] = {}
    for each in failed:
        by_error.setdefault(each.error, []).append(each.cell)
    return [printable(f"failed: {'; '.join(map(str, cells))}: {error}") for error, cells in by_error.items()]
