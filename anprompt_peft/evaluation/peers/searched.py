"""A method whose settings the shots choose, by stratified folds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbone import Backbone
from ..stratified import stratified_folds
from ..task import ClassTexts, Fitted, ImageSet
from .protocol import Method
from .registry import make_method
from .training import thrown_away

MOST_FOLDS = 3


@dataclass(frozen=True)
class Searched:
    """Another method with those of some settings that have the least cross entropy of left-out shots.

    There are 3 folds, or as many as the largest class has shots; where no class has two, the first candidate is taken.
    """

    of: str  # a preset, or module:Class
    candidates: tuple[Mapping[str, Any], ...]  # settings in place of the preset's

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> FittedChoice:
        """Choose by folds that the seed draws, and learn from all shots."""
        made = [make_method(self.of, **each) for each in self.candidates]
        best = 0
        if folds := _folds(shots, seed):
            with thrown_away():
                losses = [sum(_loss(each, backbone, shots, classes, seed, fold) for fold in folds) for each in made]
            best = int(np.argmin(losses))
        return FittedChoice(made[best].fit(backbone, shots, classes, seed), self.candidates[best])


@dataclass(frozen=True, eq=False)
class FittedChoice:
    """A fitted method, and the settings that were chosen for it."""

    fitted: Fitted
    chosen: Mapping[str, Any]

    @property
    def saved(self) -> dict[str, Tensor]:
        """The method's tensors."""
        return getattr(self.fitted, "saved", {})

    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        """Return the method's logits `[n, C]`."""
        return self.fitted.logits(images, classes)


def _folds(shots: ImageSet, seed: int) -> list[tuple[Any, Any]]:
    """Return the rows to learn from and those left out of each fold."""
    number = min(MOST_FOLDS, int(torch.bincount(shots.labels).max()))
    return stratified_folds(shots.labels.numpy(), number, seed) if number > 1 else []


def _loss(
    method: Method, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int, fold: tuple[Any, Any]
) -> float:
    learn, left_out = (shots.select(torch.from_numpy(rows)) for rows in fold)
    logits = method.fit(backbone, learn, classes, seed).logits(left_out, classes)
    return float(F.cross_entropy(logits.double(), left_out.labels, reduction="sum"))
