"""The page of a grid: its tables, and paired differences as charts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..evaluation.grid import Difference, Summary, make_tables, title_of
from .page import render, write_page


def write_benchmark(
    summaries: Sequence[Summary], reference: str, path: str | os.PathLike[str], lead: Sequence[str] = ()
) -> Path:
    """Write the page of a grid atomically, as one HTML file without scripts and references to anything outside it.

    Args:
        summaries (`Sequence[Summary]`): one for each setup.
        reference (`str`): the method that others are compared with.
        path (`str` or `Path`): the file; its folder is made, and an older file is replaced.
        lead (`Sequence[str]`): sentences above the tables.

    Returns:
        `Path`: the file written.
    """
    return write_page(render_benchmark(summaries, reference, lead), path)


def render_benchmark(summaries: Sequence[Summary], reference: str, lead: Sequence[str] = ()) -> str:
    """Return the page as text. The same runs give the same text."""
    parts = [
        {
            "title": title_of(summary),
            "summary": summary,
            "tables": make_tables(summary, reference),
            "charts": _charts(summary, reference),
        }
        for summary in summaries
    ]
    return render("benchmark.html", title="Benchmark", parts=parts, reference=reference, lead=lead)


def _charts(summary: Summary, reference: str) -> list[tuple[str, str]]:
    """Return a heading and a chart for each data set, the average included, and accuracy; data sets have scales."""
    from . import charts  # matplotlib takes a second

    found: dict[str, dict[str, dict[str, Difference]]] = {}
    for method, data, column, difference in summary.comparisons(reference):
        found.setdefault(data, {}).setdefault(column, {})[method] = difference
    drawn = []
    for data, columns in found.items():
        limits = charts.difference_limits(each for differences in columns.values() for each in differences.values())
        for column, differences in columns.items():
            heading = f"{data}: {'mean H' if column == 'H' else column}"
            label = f"{heading}, {title_of(summary)}"
            drawn.append((heading, charts.difference_chart(label, differences, limits)))
    return drawn
