"""The page of a grid: its tables, and paired differences as pictures in plain coordinates."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..evaluation.grid import Difference, Summary, make_tables, title_of
from .curves import Point, linear_ticks
from .page import render, write_page

WIDTH, LEFT, RIGHT, TOP, ROW, BOTTOM = 360, 158, 12, 8, 22, 26
MARGIN = 0.05
TICKS = 5
LONGEST = 22


@dataclass(frozen=True)
class Mark:
    """One method's difference: its place, the ends of its interval, and what it stands for."""

    method: str
    at: Point
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Forest:
    """The differences of all methods in one figure on one data set, over a common scale with 0 in it."""

    data: str
    column: str
    marks: list[Mark]
    ticks: list[Point]
    zero: float
    height: float


def write_benchmark(summaries: Sequence[Summary], reference: str, path: str | os.PathLike[str]) -> Path:
    """Write the page of a grid atomically, as one HTML file without scripts and references to anything outside it.

    Args:
        summaries (`Sequence[Summary]`): one for each setup.
        reference (`str`): the method that others are compared with.
        path (`str` or `Path`): the file; its folder is made, and an older file is replaced.

    Returns:
        `Path`: the file written.
    """
    return write_page(render_benchmark(summaries, reference), path)


def render_benchmark(summaries: Sequence[Summary], reference: str) -> str:
    """Return the page as text. The same runs give the same text."""
    parts = [
        {
            "title": title_of(summary),
            "summary": summary,
            "tables": make_tables(summary, reference),
            "forests": forests(summary, reference),
        }
        for summary in summaries
    ]
    return render(
        "benchmark.html",
        title="Benchmark",
        parts=parts,
        reference=reference,
        width=WIDTH,
        left=LEFT,
        top=TOP,
        bottom=BOTTOM,
    )


def forests(summary: Summary, reference: str) -> list[Forest]:
    """Lay out the paired differences from a reference: a picture for each data set, and for the average, and figure.

    All pictures of one data set have the same scale.
    """
    found: dict[str, dict[str, dict[str, Difference]]] = {}
    for method, data, column, difference in summary.comparisons(reference):
        found.setdefault(data, {}).setdefault(column, {})[method] = difference
    return [
        _forest(data, column, differences, _range(columns))
        for data, columns in found.items()
        for column, differences in columns.items()
    ]


def _range(columns: Mapping[str, Mapping[str, Difference]]) -> tuple[float, float]:
    """Return a range that holds all intervals and 0, a little widened."""
    ends = [0.0]
    for difference in (each for differences in columns.values() for each in differences.values()):
        ends += [end for end in (difference.low, difference.value, difference.high) if end is not None]
    low, high = min(ends), max(ends)
    margin = MARGIN * (high - low) or 1.0
    return low - margin, high + margin


def _forest(data: str, column: str, differences: Mapping[str, Difference], across: tuple[float, float]) -> Forest:
    def place(value: float) -> float:
        return float(np.interp(value, across, (LEFT, WIDTH - RIGHT)))

    def mark(row: int, method: str, each: Difference) -> Mark:
        text, low, high = f"{method} {each.value:+.2f}", None, None
        if each.low is not None and each.high is not None:
            text, low, high = f"{text} [{each.low:+.2f}, {each.high:+.2f}]", place(each.low), place(each.high)
        return Mark(_short(method), Point(place(each.value), TOP + ROW * (row + 0.5), text), low, high)

    height = TOP + ROW * len(differences) + BOTTOM
    return Forest(
        data,
        column,
        [mark(row, method, each) for row, (method, each) in enumerate(differences.items())],
        [
            Point(place(value), height - BOTTOM, f"{value:+g}" if value else "0")
            for value in linear_ticks(*across, most=TICKS)
        ],
        place(0),
        height,
    )


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
