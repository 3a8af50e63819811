"""Counts and examples of predictions: accuracy by class, confusions, example images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import confusion_matrix

from .metrics import BaseToNew, Estimate, base_to_new, gain
from .predictions import Predictions


@dataclass(frozen=True)
class ClassRow:
    """How the images of one class were classified; `mistaken_for` is the most frequent wrong answer and its count."""

    name: str
    images: int
    right: int
    zero_shot_right: int | None
    mistaken_for: tuple[str, int] | None

    @property
    def accuracy(self) -> float:
        """Share 0..1 of the images classified correctly; only for a class with images."""
        return self.right / self.images


@dataclass(frozen=True)
class Example:
    """One image: its row, and the probabilities (0..1) of the predicted and of the true class, if known."""

    row: int
    source: str
    read: float | None
    actual: float | None


@dataclass(frozen=True)
class Confusion:
    """Images of one class predicted as another, with the most confident mistake beside an image of that class."""

    actual: str
    read_as: str
    count: int
    images: int
    mistake: Example
    right: Example | None


def estimates(parts: Sequence[Predictions]) -> dict[str, Estimate]:
    """Return the accuracy of each part by name and, for two, their harmonic mean, with intervals over the images."""
    hits = [part.hits[None] for part in parts]
    return _by_name(parts, base_to_new(hits[0], hits[-1]))


def gains(parts: Sequence[Predictions], zero_shot: Sequence[Predictions]) -> dict[str, Estimate]:
    """Return the same figures' gains over zero-shot CLIP on the same images, in points, with paired intervals."""
    hits, before = [part.hits[None] for part in parts], [part.hits for part in zero_shot]
    return _by_name(parts, gain(hits[0], hits[-1], before[0], before[-1]))


def count_confusions(part: Predictions) -> np.ndarray:
    """Return how many images of class i were predicted as class j, int `[C, C]`."""
    return confusion_matrix(part.labels, part.predicted, labels=np.arange(len(part.class_names)))


def class_rows(part: Predictions, zero_shot: Predictions | None) -> list[ClassRow]:
    """Return one row per class: the least accurate first, classes without images last."""
    counts = count_confusions(part)
    before = None if zero_shot is None else count_confusions(zero_shot).diagonal()
    rows = []
    for at, name in enumerate(part.class_names):
        wrong = counts[at].copy()
        wrong[at] = 0
        worst = int(wrong.argmax())
        mistaken_for = (part.class_names[worst], int(wrong[worst])) if wrong[worst] else None
        zero_shot_right = None if before is None else int(before[at])
        rows.append(ClassRow(name, int(counts[at].sum()), int(counts[at, at]), zero_shot_right, mistaken_for))
    return sorted(rows, key=lambda row: (not row.images, row.accuracy if row.images else 0))


def confused_pairs(counts: np.ndarray) -> list[tuple[int, int]]:
    """Return all (true, predicted) pairs of different classes that occur, the most frequent first."""
    pairs = [(int(true), int(read)) for true, read in zip(*np.nonzero(counts), strict=True) if true != read]
    return sorted(pairs, key=lambda pair: -counts[pair])


def confused_block(counts: np.ndarray, limit: int) -> list[int]:
    """Return up to `limit` classes that take part in the most frequent confusions, in label order."""
    chosen: dict[int, None] = {}
    for pair in confused_pairs(counts):
        if len(chosen.keys() | set(pair)) <= limit:
            chosen.update(dict.fromkeys(pair))
    return sorted(chosen)


def confusions(part: Predictions, limit: int) -> list[Confusion]:
    """Return the `limit` most frequent confusions with their example images."""
    counts = count_confusions(part)
    return [
        Confusion(
            part.class_names[true],
            part.class_names[read],
            int(counts[true, read]),
            int(counts[true].sum()),
            _example(part, true, read),
            _example(part, read, read) if counts[read, read] else None,
        )
        for true, read in confused_pairs(counts)[:limit]
    ]


def _by_name(parts: Sequence[Predictions], result: BaseToNew) -> dict[str, Estimate]:
    if len(parts) == 1:
        return {parts[0].name: result.base}
    return {parts[0].name: result.base, parts[1].name: result.new, "harmonic mean": result.harmonic_mean}


def _example(part: Predictions, true: int, read: int) -> Example:
    """Return the image of class `true` that was predicted as `read` with the highest probability, or the first one."""
    rows = np.flatnonzero((part.labels == true) & (part.predicted == read))
    row = int(rows[0] if part.probabilities is None else rows[part.probabilities[rows, read].argmax()])
    shares = (None, None) if part.probabilities is None else part.probabilities[row, [read, true]].tolist()
    return Example(row, part.sources[row] if part.sources else "", *shares)
