"""Any method with what ANPrompt has beside its prompts, so that both can be compared alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...data import select_classes
from ...method.class_texts import as_read
from ...method.config import ANPromptConfig, mismatch
from ...training.folds import FOLDS, Fold, HeldOut, ShareChoice, choose_share, class_folds
from ..backbone import Backbone
from ..task import ClassTexts, Fitted, ImageSet
from .anprompt import ANPrompt
from .protocol import Method, settings_of
from .registry import make_method
from .training import Recipe, thrown_away
from .zero_shot import FrozenCLIP


@dataclass(frozen=True)
class Equipped:
    """Another method with a share of the frozen CLIP in its answers, as ANPrompt has it.

    Args:
        of (`str`): the method, as [`make_method`] takes it.
        settings (`Mapping`): its settings.
        frozen_share (`float` or `"folds"`, *optional*): share of the frozen CLIP's logits where not all classes were
            trained on, `(1 - share) * method + share * frozen`. `folds` chooses it by [`choose_share`], which takes
            two trainings on half of the classes. Default: the method's logits as they are.

    Raises:
        ValueError: for an unknown method, a share that is none, or one that ANPrompt has already.
    """

    of: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    frozen_share: float | str | None = None

    def __post_init__(self) -> None:
        share = self.frozen_share
        if share != FOLDS and mismatch(share, float | None, 0, 1):
            raise ValueError(f"frozen_share={share!r} must be a number between 0 and 1, {FOLDS!r}, or None.")
        method = self.method
        if isinstance(method, Equipped):
            raise ValueError(f"of={self.of!r} is equipped itself: name the method that it is made of.")
        own = method.config.get("frozen_share", ANPromptConfig.frozen_share) if isinstance(method, ANPrompt) else 0
        if share is not None and own:
            raise ValueError(
                f"frozen_share={share!r}: {self.of} has a frozen_share of its own, {own}, and both would add up. Give "
                "it settings={'config': {'frozen_share': 0.0}}."
            )

    @property
    def method(self) -> Method:
        """The method itself."""
        return make_method(self.of, **self.settings)

    def for_data(self, data: str) -> Equipped:
        """Return the same with all settings of the method for a data set."""
        return replace(self, settings=settings_of(make_method(self.of, data, **self.settings)))

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> FittedEquipped:
        """Choose the share, if the data are to choose it, and fit the method."""
        share, chosen = self.frozen_share or 0.0, {}
        if isinstance(share, str):
            choice = share_by_folds(self.method, backbone, shots, classes, seed)
            share, chosen = choice.share, {"frozen_share": choice.to_dict()}
        fitted = self.method.fit(backbone, shots, classes, seed)
        return FittedEquipped(fitted, FrozenCLIP(backbone), classes.names, share, chosen)


@dataclass(frozen=True, eq=False)
class FittedEquipped:
    """A fitted method beside the frozen CLIP."""

    fitted: Fitted
    frozen: FrozenCLIP
    trained: tuple[str, ...]  # names of the classes that it was trained on
    share: float
    chosen: Mapping[str, Any]  # by the data, as JSON values: part of a cell's record

    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        """Return the logits `[n, C]`. Names say which classes were trained on, however they are written."""
        logits = self.fitted.logits(images, classes)
        if {*map(as_read, classes.names)} <= {*map(as_read, self.trained)} or not self.share:
            return logits
        return (1 - self.share) * logits + self.share * self.frozen.logits(images, classes).to(logits)


def share_by_folds(method: Method, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> ShareChoice:
    """Choose a method's frozen share; its steps, if its recipe counts them, shrink with the number of shots."""
    folds = class_folds(classes.names, seed)
    with thrown_away():
        answers = [_answer(method, fold, backbone, shots, classes, seed) for fold in folds]
    return choose_share(folds, answers, seed)


def _answer(
    method: Method, fold: Fold, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int
) -> HeldOut:
    learned, held_out = (_restricted(shots, classes, names) for names in fold)
    fitted = shortened(method, len(learned[0]) / len(shots)).fit(backbone, *learned, seed)
    rows = torch.tensor([row for row, label in enumerate(shots.labels) if classes.names[label] in fold.held_out])
    frozen = FrozenCLIP(backbone).logits(*held_out)
    return HeldOut(rows, held_out[0].labels, fitted.logits(*held_out), frozen)


def _restricted(shots: ImageSet, classes: ClassTexts, names: tuple[str, ...]) -> tuple[ImageSet, ClassTexts]:
    """Return the shots of some classes, and these."""
    labels = [classes.names.index(name) for name in names]
    dataset: Any = select_classes(shots.dataset, [shots.class_names[label] for label in labels])
    written = tuple(classes.written[label] for label in labels)
    return replace(shots, dataset=dataset), replace(classes, names=names, written=written)


def shortened(method: Any, share: float) -> Method:
    """Return a method with a share of its recipe's steps, so that it passes over fewer images as often."""
    recipe = getattr(method, "recipe", None)
    if not isinstance(recipe, Recipe) or recipe.steps is None:
        return method
    return replace(method, recipe=replace(recipe, steps=max(1, round(share * recipe.steps))))
