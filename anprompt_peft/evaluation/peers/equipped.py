"""Any method with what ANPrompt has beside its prompts, so that both can be compared alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...anchored import join, known_classes
from ...data import select_classes
from ...denoising import load_denoised
from ...method.config import ANPromptConfig, mismatch
from ...training.folds import FOLDS, Fold, HeldOut, ShareChoice, choose_share, class_folds
from ..backbone import Backbone
from ..task import ClassTexts, Fitted, ImageSet
from .anchored import AnchoredClassifier, Classifier
from .anprompt import BARE, ANPrompt
from .protocol import Method, added, settings_of
from .registry import make_method
from .training import Recipe, thrown_away
from .zero_shot import FrozenCLIP

OFF: Mapping[str, float | None] = {"frozen_share": 0.0, "classifier_weight": 0.0, "denoiser": None}
"""What ANPrompt's own configuration may have as well, and the values at which it has it not."""


@dataclass(frozen=True)
class Equipped:
    """Another method with a denoised text encoder, an anchored classifier and a share of the frozen CLIP.

    Args:
        of (`str`): the method, as [`make_method`] takes it.
        settings (`Mapping`): its settings.
        frozen_share (`float` or `"folds"`, *optional*): share of the frozen CLIP's logits where not all classes were
            trained on, `(1 - share) * method + share * frozen`. `folds` chooses it by [`choose_share`], which takes
            two trainings on half of the classes. Default: the method's logits as they are.
        denoiser (`str`, *optional*): folder or Hub id of a text denoiser ([`~anprompt_peft.denoising.load_denoised`]).
            The method starts from the CLIP with it, and so do the frozen CLIP's logits and the classifier.
        classifier_weight (`float`): of the log-probabilities of an anchored classifier ([`fit_anchored`]) among the
            classes that were trained on, beside the method's ([`join`]). 0 fits none.
        classifier_strength (`float`, *optional*): how it is held to the class texts. Default: by folds over the shots.

    Raises:
        ValueError: for an unknown method, a value outside its range, or what ANPrompt's own configuration has already.
    """

    of: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    frozen_share: float | str | None = None
    denoiser: str | None = added(None)
    classifier_weight: float = added(0.0)
    classifier_strength: float | None = added(None)

    def __post_init__(self) -> None:
        share = self.frozen_share
        if share != FOLDS and mismatch(share, float | None, 0, 1):
            raise ValueError(f"frozen_share={share!r} must be a number between 0 and 1, {FOLDS!r}, or None.")
        method = self.method
        if isinstance(method, Equipped):
            raise ValueError(f"of={self.of!r} is equipped itself: name the method that it is made of.")
        if mismatch(self.classifier_weight, float, 0):
            raise ValueError(f"classifier_weight={self.classifier_weight!r} must be a number of at least 0.")
        strength = self.classifier_strength
        if strength is not None and (mismatch(strength, float, 0) or not strength):
            raise ValueError(f"classifier_strength={strength!r} must be a number above 0, or None.")
        if isinstance(method, ANPrompt):
            self._check_own(method.config)

    def _check_own(self, config: Mapping[str, Any]) -> None:
        """Raise if ANPrompt would have twice what it is given here, or a share in another order."""
        has = {**{name: getattr(ANPromptConfig, name) for name in OFF}, **BARE, **config}
        for name, off in OFF.items():
            own, given = has[name], getattr(self, name)
            if own != off and given != getattr(Equipped, name):
                raise ValueError(
                    f"{name}={given!r}: {self.of} has a {name} of its own, {own!r}, and both would add up. Give it "
                    f"settings={{'config': {{{name!r}: {off}}}}}."
                )
        if has["denoiser"] is not None and (self.frozen_share is not None or self.classifier_weight):
            raise ValueError(
                f"{self.of} has a denoiser of its own, and the frozen CLIP beside it would read texts without it. "
                f"Move denoiser={has['denoiser']!r} from its config to the settings beside `of`."
            )
        if self.frozen_share is not None and has["classifier_weight"]:
            raise ValueError(
                f"frozen_share={self.frozen_share!r} would mix in behind the classifier that {self.of} has. Give the "
                "classifier_weight here, and settings={'config': {'classifier_weight': 0.0}}."
            )

    @property
    def method(self) -> Method:
        """The method itself."""
        return make_method(self.of, **self.settings)

    def for_data(self, data: str) -> Equipped:
        """Return the same with all settings of the method for a data set, those given among them at any value."""
        made: Any = make_method(self.of, data, **self.settings)
        given = {name: value for name, value in asdict(made).items() if name in self.settings}
        return replace(self, settings={**settings_of(made), **given})

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> FittedEquipped:
        """Choose the share, if the data are to choose it, and fit the method."""
        start = backbone
        if self.denoiser is not None:
            start = backbone.with_texts_of(load_denoised(backbone.copy(), self.denoiser))
        share, classifier = self.frozen_share or 0.0, None
        chosen: dict[str, Any] = {}
        if isinstance(share, str):
            choice = share_by_folds(self.method, start, shots, classes, seed)
            share, chosen["frozen_share"] = choice.share, choice.to_dict()
        if self.classifier_weight:
            classifier = AnchoredClassifier(self.classifier_strength).fit(start, shots, classes, seed)
            chosen["classifier_strength"] = classifier.strength
        fitted = self.method.fit(start, shots, classes, seed)
        weight = self.classifier_weight
        return FittedEquipped(fitted, FrozenCLIP(start), classes.names, share, chosen, classifier, weight)


@dataclass(frozen=True, eq=False)
class FittedEquipped:
    """A fitted method beside the frozen CLIP."""

    fitted: Fitted
    frozen: FrozenCLIP
    trained: tuple[str, ...]  # names of the classes that it was trained on
    share: float
    chosen: Mapping[str, Any]  # by the data, as JSON values: part of a cell's record
    classifier: Classifier | None = None
    weight: float = 0.0  # of the classifier

    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        """Return the logits `[n, C]`. Names say which classes were trained on, however they are written."""
        logits = self.fitted.logits(images, classes)
        known, rows = known_classes(classes.names, self.trained)
        if self.share and len(known) < len(classes.names):
            logits = (1 - self.share) * logits + self.share * self.frozen.logits(images, classes).to(logits)
        if self.classifier is None:
            return logits
        clip, learned = self.frozen.backbone, self.classifier.rows[rows].cpu()
        features = clip.image_features(images).cpu().to(learned)
        return join(logits, torch.tensor(known, dtype=torch.int64), features, learned, clip.logit_scale, self.weight)


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
    return replace(shots, dataset=dataset, within=None), replace(classes, names=names, written=written)


def shortened(method: Any, share: float) -> Method:
    """Return a method with a share of its recipe's steps, so that it passes over fewer images as often."""
    recipe = getattr(method, "recipe", None)
    if not isinstance(recipe, Recipe) or recipe.steps is None:
        return method
    return replace(method, recipe=replace(recipe, steps=max(1, round(share * recipe.steps))))
