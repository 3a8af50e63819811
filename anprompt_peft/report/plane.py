"""Text features and noise prompts in the plane that shows most of their spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from sklearn.decomposition import PCA

from .curves import Point
from .data import Geometry

WIDTH = 480
MARGIN = 48
LOWEST, HIGHEST = 240, 400
LABELLED = 30
LABEL_LENGTH, LABEL_GAP, LETTER, LINE = 24, 9, 8, 15


@dataclass(frozen=True)
class Plane:
    """Points `[n, 2]` by kind, in the plane of the two first principal components.

    Attributes:
        points (`dict[str, np.ndarray]`): float64 coordinates by kind: clean, prompted, perturbed, noise prompt.
        explained (`tuple[float, float]`): shares 0..1 of the variance of all points along the two axes.
    """

    points: dict[str, np.ndarray]
    explained: tuple[float, float]


@dataclass(frozen=True)
class Label:
    """A class name beside its prompted feature; `anchor` is SVG's `text-anchor`."""

    x: float
    y: float
    text: str
    anchor: str

    @property
    def span(self) -> tuple[float, float]:
        """Where it starts and ends from left to right, about."""
        length = LETTER * len(self.text)
        start = self.x - length * {"start": 0, "middle": 0.5, "end": 1}[self.anchor]
        return start, start + length

    def covers(self, other: Label) -> bool:
        """Whether two labels overlap."""
        (start, end), (other_start, other_end) = self.span, other.span
        return abs(self.y - other.y) < LINE and start < other_end and other_start < end


@dataclass(frozen=True)
class FeaturePlot:
    """A plane laid out with the same scale on both axes: marks by kind, moves from clean to prompted, and labels."""

    marks: dict[str, list[Point]]
    moves: list[tuple[Point, Point]]
    labels: list[Label]
    height: float


def project(geometry: Geometry) -> Plane:
    """Project all points of a geometry on their two first principal components.

    The signs are those of scikit-learn: in each component the loading of the largest absolute value is positive.
    """
    kinds = {
        "perturbed": geometry.perturbed,
        "clean": geometry.clean,
        "prompted": geometry.prompted,
        "noise prompt": geometry.noise_prompts,
    }
    given = {kind: rows for kind, rows in kinds.items() if rows is not None and len(rows)}
    pca = PCA(2, svd_solver="full").fit(np.concatenate(list(given.values())))
    first, second = pca.explained_variance_ratio_.tolist()
    return Plane({kind: pca.transform(rows) for kind, rows in given.items()}, (first, second))


def feature_plot(geometry: Geometry, plane: Plane) -> FeaturePlot:
    """Lay out a plane, with labels if the classes are few enough."""
    everything = np.concatenate(list(plane.points.values()))
    (left, low), (right, high) = everything.min(axis=0), everything.max(axis=0)
    unit = (WIDTH - 2 * MARGIN) / max(right - left, 1e-12)
    unit = min(unit, (HIGHEST - 2 * MARGIN) / max(high - low, 1e-12))
    height = max(LOWEST, (high - low) * unit + 2 * MARGIN)

    def place(x: float, y: float, text: str) -> Point:
        return Point(WIDTH / 2 + (x - (left + right) / 2) * unit, height / 2 - (y - (low + high) / 2) * unit, text)

    marks = {
        kind: [
            place(x, y, f"{geometry.class_names[row]}, {kind}" if kind != "noise prompt" else f"{kind} {row + 1}")
            for row, (x, y) in enumerate(rows.tolist())
        ]
        for kind, rows in plane.points.items()
    }
    moves = list(zip(marks["clean"], marks["prompted"], strict=True))
    labels = _labels(moves, geometry.class_names) if len(moves) <= LABELLED else []
    return FeaturePlot(marks, moves, labels, height)


def _labels(moves: Sequence[tuple[Point, Point]], names: Sequence[str]) -> list[Label]:
    """Place each name beside its prompted feature where it covers no other name; leave it out if there is no room."""
    placed: list[Label] = []
    for (clean, prompted), name in zip(moves, names, strict=True):
        text = name if len(name) <= LABEL_LENGTH else name[: LABEL_LENGTH - 1] + "…"
        right = Label(prompted.x + LABEL_GAP, prompted.y + 4, text, "start")
        left = Label(prompted.x - LABEL_GAP, prompted.y + 4, text, "end")
        above = Label(prompted.x, prompted.y - LABEL_GAP, text, "middle")
        below = Label(prompted.x, prompted.y + LABEL_GAP + 9, text, "middle")
        sides = (left, right) if prompted.x < clean.x else (right, left)
        free = (label for label in (*sides, above, below) if _fits(label, placed))
        placed.extend(islice(free, 1))
    return placed


def _fits(label: Label, placed: Sequence[Label]) -> bool:
    start, end = label.span
    return start >= 0 and end <= WIDTH and not any(label.covers(other) for other in placed)
