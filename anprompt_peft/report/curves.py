"""Loss terms over time: a table, and the same as a picture in plain coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TERMS = (
    "loss", "cross_entropy_class", "cross_entropy_prototype", "similarity_image", "similarity_text", "waloss",
    "similarity_rephrased",
)  # fmt: skip
NAMES = (*TERMS, *(f"eval_{term}" for term in TERMS))
WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 12, 40
DECADES = 4
MARKED = 40


@dataclass(frozen=True)
class LossTable:
    """Loss terms by name at each `time`, which is `epoch` or `step`; rows in the order of time."""

    time: str
    columns: list[str]
    rows: list[dict[str, float]]


@dataclass(frozen=True)
class Point:
    """A place in a picture, in units from its top left corner, and what it stands for."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Curve:
    """One loss term; `colour` is its position in `TERMS`."""

    name: str
    colour: int
    points: list[Point]
    first: float
    last: float

    @property
    def evaluation(self) -> bool:
        """Whether it was measured on evaluation images."""
        return self.name not in TERMS

    @property
    def marked(self) -> bool:
        """Whether the points are few enough to be marked."""
        return len(self.points) <= MARKED


@dataclass(frozen=True)
class LossChart:
    """Curves over a logarithmic scale that ends at `bottom`; `clipped` says whether smaller values lie there too."""

    curves: list[Curve]
    x_ticks: list[Point]
    y_ticks: list[Point]
    bottom: float
    clipped: bool


def loss_table(history: Sequence[Mapping[str, Any]]) -> LossTable | None:
    """Collect the loss terms of Trainer's log, `None` if it holds none.

    Raises:
        ValueError: if the records with loss terms cannot be placed in time.
    """
    records = [record for record in history if any(name in record for name in NAMES)]
    if not records:
        return None
    time = next((key for key in ("epoch", "step") if all(key in record for record in records)), None)
    if time is None:
        raise ValueError("every record of the loss history must have an 'epoch', or every one a 'step'.")
    rows: dict[float, dict[str, float]] = {}
    for record in records:
        values = {name: record[name] for name in NAMES if name in record}
        rows.setdefault(record[time], {time: record[time]}).update(values)
    columns = [name for name in NAMES if any(name in row for row in rows.values())]
    return LossTable(time, columns, [rows[at] for at in sorted(rows)])


def loss_chart(table: LossTable) -> LossChart:
    """Lay out a table as curves.

    The scale spans at most four powers of ten; smaller values, 0 and less included, are drawn at its lower end.
    Values that are not finite are left out.
    """
    values = [row[name] for row in table.rows for name in table.columns if name in row]
    positive = [value for value in values if value > 0 and math.isfinite(value)] or [1.0]
    bottom = max(min(positive), max(positive) / 10**DECADES)
    times = [row[table.time] for row in table.rows]
    across = _widened(min(times[0], 0), times[-1])
    up = _widened(math.log10(bottom), math.log10(max(positive)), 0.04)

    def place(at: float, value: float, text: str) -> Point:
        x = np.interp(at, across, (LEFT, WIDTH - RIGHT))
        y = np.interp(math.log10(value), up, (HEIGHT - BOTTOM, TOP))
        return Point(float(x), float(y), text)

    def curve(name: str) -> Curve:
        series = [(row[table.time], row[name]) for row in table.rows if name in row]
        points = [
            place(at, max(value, bottom), f"{name} {value:.4g} at {table.time} {at:g}")
            for at, value in series
            if math.isfinite(value)
        ]
        return Curve(name, TERMS.index(name.removeprefix("eval_")), points, series[0][1], series[-1][1])

    return LossChart(
        [curve(name) for name in table.columns],
        [place(at, 10 ** up[0], f"{at:g}") for at in linear_ticks(*across)],
        [place(across[0], value, f"{value:g}") for value in log_ticks(*up)],
        bottom,
        min(values) < bottom,
    )


def linear_ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Return at most `most` round numbers between `low` and `high`, evenly spaced."""
    magnitude = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step for factor in (1, 2, 5, 10, 20) if (high - low) / (step := factor * magnitude) <= most - 1)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return the numbers 1, 2 and 5 times powers of ten between `10**low` and `10**high`; over 2 decades only 1."""
    factors = (1, 2, 5) if high - low < 2 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    numbers = [factor * 10.0**power for power in powers for factor in factors]
    return [number for number in numbers if low <= math.log10(number) <= high]


def _widened(low: float, high: float, margin: float = 0.0) -> tuple[float, float]:
    """Return a range of some length that holds `low` and `high`, with a margin relative to its length."""
    length = high - low or 1.0
    return low - margin * length, low + length + margin * length
