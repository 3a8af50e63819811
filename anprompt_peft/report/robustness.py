"""Accuracy over the strength of perturbations as pictures in plain coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ..evaluation.robustness import Curve, Robustness
from .curves import Point, linear_ticks

WIDTH, HEIGHT = 320, 220
LEFT, RIGHT, TOP, BOTTOM = 34, 14, 12, 38
BESIDE = 3
Y_TICKS = 6


@dataclass(frozen=True)
class Line:
    """One method's mean accuracies, and below each, a little aside, that of the worst draw; `colour` is its number."""

    method: str
    colour: int
    area: float
    means: list[Point]
    worst: list[Point]


@dataclass(frozen=True)
class Chart:
    """The curves of one family of perturbations."""

    family: str
    kind: str
    unit: str
    lines: list[Line]
    x_ticks: list[Point]
    y_ticks: list[Point]


def charts(robustness: Robustness) -> list[Chart]:
    """Lay out one chart per family; all charts of a part have the same scale of accuracy."""
    accuracies = [
        accuracy for curve in robustness.curves for level in curve.levels for accuracy in (level.accuracy, level.worst)
    ]
    low, high = max(0.0, min(accuracies) - 2), min(100.0, max(accuracies) + 2)
    by_family = groupby(robustness.curves, key=lambda curve: curve.family)
    return [_chart(list(curves), low, high) for _, curves in by_family]


def _chart(curves: Sequence[Curve], low: float, high: float) -> Chart:
    strengths = [level.strength for level in curves[0].levels]

    def place(strength: float, accuracy: float, text: str, aside: float = 0) -> Point:
        x = np.interp(strength, (0, strengths[-1]), (LEFT, WIDTH - RIGHT))
        return Point(float(x) + aside, float(np.interp(accuracy, (low, high), (HEIGHT - BOTTOM, TOP))), text)

    def line(colour: int, curve: Curve) -> Line:
        means, worst = [], []
        for level in curve.levels:
            where = f"{curve.method}, {curve.family} {level.strength:g}"
            means.append(place(level.strength, level.accuracy, f"{where}: {level.accuracy:.1f} %"))
            text = f"{where}, worst draw: {level.worst:.1f} %"
            worst.append(place(level.strength, level.worst, text, BESIDE * (colour - (len(curves) - 1) / 2)))
        return Line(curve.method, colour, curve.area, means, worst)

    first = curves[0]
    return Chart(
        first.family,
        first.kind,
        first.unit,
        [line(colour, curve) for colour, curve in enumerate(curves)],
        [place(strength, low, f"{strength:g}") for strength in strengths],
        [place(0, accuracy, f"{accuracy:g}") for accuracy in linear_ticks(low, high, Y_TICKS)],
    )
