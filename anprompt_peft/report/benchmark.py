"""The page of a grid: an answer and a picture for each data set, then its tables and paired differences, folded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..evaluation.grid import (
    Difference,
    Ranking,
    Summary,
    Table,
    make_tables,
    rank_all,
    rank_average,
    sentence,
    title_of,
)
from ..evaluation.grid.summary import H
from ..evaluation.grid.tables import MEAN_H
from .page import render, shown, write_page

Rankings = Sequence[Sequence[Ranking]]


def write_benchmark(
    summaries: Sequence[Summary],
    reference: str,
    path: str | os.PathLike[str],
    lead: Sequence[str] = (),
    rankings: Rankings = (),
) -> Path:
    """Write the page of a grid atomically, as one HTML file without scripts and references to anything outside it.

    Args:
        summaries (`Sequence[Summary]`): one for each setup.
        reference (`str`): the method that others are compared with in the tables.
        path (`str` or `Path`): the file; its folder is made, and an older file is replaced.
        lead (`Sequence[str]`): the answer in sentences, the first one in large letters, in place of the page's own.
        rankings (`Sequence[Sequence[Ranking]]`): of the pictures, one or two for each data set, in place of the
            summary's own.

    Returns:
        `Path`: the file written.
    """
    return write_page(render_benchmark(summaries, reference, lead, rankings), path)


def render_benchmark(
    summaries: Sequence[Summary], reference: str, lead: Sequence[str] = (), rankings: Rankings = ()
) -> str:
    """Return the page as text. The same runs give the same text."""
    from . import charts  # matplotlib takes a second

    parts = [_part(summary, reference, lead, rankings) for summary in summaries]
    names = dict.fromkeys(name for summary in summaries for name in summary.data)
    return render(
        "benchmark.html", title=f"Methods on {shown([*names])}", parts=parts, reference=reference, charts=charts
    )


def write_poster(summaries: Iterable[Summary], path: str | os.PathLike[str]) -> Path:
    """Write the pictures of all data sets beside each other as one SVG file, for light and dark schemes."""
    from . import charts

    colours, _, _ = files(__package__).joinpath("style.css").read_text(encoding="utf-8").partition("* {")
    ranked = [rankings for summary in summaries for rankings in rank_all(summary)]
    pictures = {each[0].data: charts.ranking_chart(each[0].data, each) for each in ranked}
    return write_page(charts.poster(pictures, _legend(ranked), colours), path)


def _part(summary: Summary, reference: str, lead: Sequence[str], rankings: Rankings) -> dict[str, Any]:
    from . import charts  # matplotlib takes a second

    title, own = title_of(summary), rank_all(summary)
    rankings = rankings or own
    averages = [rank_average(summary)] if len(summary.data) > 1 and summary.complete else []
    ranked = {each[0].data: each for each in (*own, *averages)}
    return {
        "title": title,
        "summary": summary,
        "answers": lead[:1] or [sentence(each) for each in rankings],
        "further": lead[1:],
        "pictures": [(each[0].data, charts.ranking_chart(f"{each[0].data}, {title}", each)) for each in rankings],
        "legend": _legend(rankings),
        "tables": [_sorted(table, ranked.get(table.title, ())) for table in make_tables(summary, reference)],
        "charts": _charts(summary, reference),
    }


def _legend(rankings: Rankings) -> list[str]:
    columns = (each.column for each in max(rankings, key=len))
    return [column if column.startswith(H) else f"accuracy ({column})" for column in columns]


def _sorted(table: Table, rankings: Sequence[Ranking]) -> tuple[Table, Mapping[str, Sequence[str]]]:
    """Return a table in the order of its first ranking, and the methods to mark by column."""
    if not rankings:
        return table, {}
    order = [each.method for each in rankings[0].methods]
    rows = sorted(table.rows, key=lambda row: order.index(row[0]) if row[0] in order else len(order))
    marks = {MEAN_H if each.column == H else each.column: each.leaders for each in rankings}
    return replace(table, rows=tuple(rows)), marks


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
