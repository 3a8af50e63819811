"""Which method to take for some photos, in words: what it gains, what it costs, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..evaluation.grid.ranking import Ranking, rank
from ..evaluation.grid.summary import Difference
from ..evaluation.paired import over_draws_and_images, over_folds
from ..evaluation.predictions import Predictions
from ..evaluation.tables import class_rows
from .methods import COMPARED, PROBE, ZERO_SHOT

FEW_IMAGES = 100


@dataclass(frozen=True, eq=False)
class Measured:
    """What a method did in all draws.

    Args:
        predictions (`Sequence[Predictions]`): one for each draw of the shots, or for each fold.
        seconds (`float`): of learning from the shots, the median over the draws.
        size (`int`): bytes of what is saved of it.
    """

    predictions: Sequence[Predictions]
    seconds: float
    size: int

    @property
    def accuracy(self) -> float:
        """In per cent, over all draws and images."""
        return 100 * float(np.concatenate([each.hits for each in self.predictions]).mean())


@dataclass(frozen=True, eq=False)
class Comparison:
    """What all methods did on the same photos.

    Args:
        methods (`Mapping[str, Measured]`): by name, the cheapest first; zero-shot CLIP is among them.
        shots (`int`): at most so many images per class were learned from.
        folds (`int`): k, where the draws are folds of all photos; 0 where images are held out.
        half (`Sequence[Predictions]`): the linear probe's with half of the shots, empty if that was not measured.
    """

    methods: Mapping[str, Measured]
    shots: int
    folds: int = 0
    half: Sequence[Predictions] = ()

    @property
    def class_names(self) -> list[str]:
        """The classes, in the order of the labels."""
        return list(self.methods[ZERO_SHOT].predictions[0].class_names)

    def difference(self, ours: str, theirs: str) -> Difference:
        """Return the paired difference of two methods in points, with its 95 % interval."""
        return self._apart(*(self.methods[name].predictions for name in (ours, theirs)))

    def over_half(self) -> Difference:
        """Return what the linear probe gains by all shots over half of them."""
        return self._apart(self.methods[PROBE].predictions, self.half)

    def _apart(self, ours: Sequence[Predictions], theirs: Sequence[Predictions]) -> Difference:
        apart = [first.hits.astype(float) - second.hits for first, second in zip(ours, theirs, strict=True)]
        return over_folds(apart, self.folds) if self.folds else over_draws_and_images(np.stack(apart))

    @property
    def best(self) -> str:
        """The method with the highest accuracy, the cheapest of several."""
        return max(self.methods, key=lambda name: self.methods[name].accuracy)

    @property
    def chosen(self) -> str:
        """The cheapest method that is not told apart from the best."""
        return next(name for name in self.methods if not self.difference(self.best, name).told_apart)

    def ranking(self, data: str) -> Ranking:
        """Return the methods by accuracy on photos of this name, with the intervals of the verdict."""
        values = pd.Series({name: each.accuracy for name, each in self.methods.items()})
        return rank(data, "test", values, self.difference)

    def table(self) -> pd.DataFrame:
        """Return a row for each method: accuracy, differences from zero-shot CLIP and the linear probe, and costs."""
        return pd.DataFrame(self._row(name) for name in self.methods)

    def classes(self) -> pd.DataFrame:
        """Return a row for each class: images, accuracy of zero-shot CLIP and of the chosen method, and confusions."""
        rows = class_rows(self.pooled(self.chosen), self.pooled(ZERO_SHOT))
        return pd.DataFrame(
            {
                "class": row.name,
                "images": row.images,
                ZERO_SHOT: 100 * (row.zero_shot_right or 0) / row.images,
                "chosen": 100 * row.accuracy,
                "taken for": row.mistaken_for[0] if row.mistaken_for else "",
                "times": row.mistaken_for[1] if row.mistaken_for else 0,
            }
            for row in rows
            if row.images
        )

    def pooled(self, name: str) -> Predictions:
        """Return a method's predictions of all draws as one."""
        return self.pool(self.methods[name].predictions)

    @staticmethod
    def pool(draws: Sequence[Predictions]) -> Predictions:
        """Return the predictions of several draws as one."""
        labels = np.concatenate([each.labels for each in draws])
        return Predictions("test", draws[0].class_names, labels, np.concatenate([each.predicted for each in draws]))

    def _row(self, name: str) -> dict[str, Any]:
        measured = self.methods[name]
        row: dict[str, Any] = {"method": name, "accuracy": measured.accuracy, "draws": len(measured.predictions)}
        for other in (ZERO_SHOT, PROBE, self.best):
            if other in self.methods:
                found = asdict(self.difference(name, other))
                label = "best" if other == self.best and other not in (ZERO_SHOT, PROBE) else other
                row |= {f"over {label}": found["value"], f"over {label}, low": found["low"]}
                row[f"over {label}, high"] = found["high"]
        return {**row, "seconds": measured.seconds, "bytes": measured.size, "chosen": name == self.chosen}

    def line(self, name: str) -> str:
        """Return what a method did in one line."""
        measured = self.methods[name]
        gain = "" if name == ZERO_SHOT else f", {points(self.difference(name, ZERO_SHOT))} over zero-shot"
        return f"{name}: {measured.accuracy:.1f} %{gain}, {cost(measured)}"

    def verdict(self) -> list[str]:
        """Return the conclusion as sentences."""
        chosen, best, methods = self.chosen, self.best, self.methods
        title = COMPARED[chosen].title
        lines = [
            f"Take {title}: {methods[chosen].accuracy:.1f} % of {self._images()}, {self._draws()}.",
            *self._gains(chosen),
        ]
        if best != chosen:
            apart = self.difference(best, chosen)
            lines.append(
                f"{_capital(COMPARED[best].title)} has the highest mean, {methods[best].accuracy:.1f} %, and is not "
                f"told apart from it: {points(apart)}, at {cost(methods[best])}."
            )
        lines.append(f"It costs {cost(methods[chosen])}. {self._sure()}")
        return lines

    def _gains(self, chosen: str) -> list[str]:
        lines = []
        for other in (ZERO_SHOT, PROBE):
            if other in self.methods and list(self.methods).index(other) < list(self.methods).index(chosen):
                title, accuracy = COMPARED[other].title, self.methods[other].accuracy
                lines.append(f"Over {title} ({accuracy:.1f} %) it gains {points(self.difference(chosen, other))}.")
        return lines

    def _images(self) -> str:
        first = self.methods[ZERO_SHOT].predictions
        if self.folds:
            return f"{sum(len(each.labels) for each in first[: self.folds])} images right"
        return f"{len(first[0].labels)} held-out images right"

    def _draws(self) -> str:
        number = len(self.methods[ZERO_SHOT].predictions)
        if self.folds:
            return f"each by what the other folds of {self.folds} teach, with up to {self.shots} shots per class"
        return f"the mean of {number} draws of up to {self.shots} shots per class"

    def _sure(self) -> str:
        covered = "folds" if self.folds else "draws of shots and held-out images"
        images = sum(len(each.labels) for each in self.methods[ZERO_SHOT].predictions[: self.folds or 1])
        more = f" More photos to measure on would tell more than these {images}." if images < FEW_IMAGES else ""
        return f"Intervals in brackets are 95 % ones, paired, over {covered}.{more}"


def points(difference: Difference) -> str:
    """Return a difference as text: `+1.2 points [-0.3, +2.7]`."""
    text = f"{difference.value:+.1f} points"
    return text if difference.low is None else f"{text} [{difference.low:+.1f}, {difference.high:+.1f}]"


def cost(measured: Measured) -> str:
    """Return what a method costs: time to learn and what is saved."""
    if not measured.size:
        return "no training and no file"
    return f"{duration(measured.seconds)} of training and a file of {file_size(measured.size)}"


def duration(seconds: float) -> str:
    """Return a time as text: `0.4 s`, `25 s`, `4 min`, `1.5 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def file_size(size: int) -> str:
    """Return a number of bytes as text: `24 kB`, `1.2 MB`."""
    return f"{max(1, round(size / 1e3))} kB" if size < 1e6 else f"{size / 1e6:.1f} MB"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
