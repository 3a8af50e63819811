"""The anchored classifier alone: classes with shots by a regression held to their texts, all others by the texts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...anchored import fit_anchored, known_classes, share_among
from ..backbone import CLIPFeatures
from ..task import ClassTexts, ImageSet


@dataclass(frozen=True)
class AnchoredClassifier:
    """What [`~anprompt_peft.anchored.fit_anchored`] finds on the shots; `strength` is by default chosen by folds."""

    strength: float | None = None

    def fit(self, backbone: CLIPFeatures, shots: ImageSet, classes: ClassTexts, seed: int) -> Classifier:
        """Fit the regression; the seed draws the folds."""
        images, labels = backbone.image_features(shots), shots.labels.to(backbone.device)
        texts, scale = backbone.class_features(classes), backbone.logit_scale
        fitted = fit_anchored(images, labels, texts, scale, strength=self.strength, seed=seed)
        return Classifier(backbone, classes.names, fitted.rows, fitted.strength)


@dataclass(frozen=True, eq=False)
class Classifier:
    """Rows for the K classes it knows by name, float64 `[K, d]`, and zero-shot CLIP for all others."""

    backbone: CLIPFeatures
    names: tuple[str, ...]
    rows: Tensor
    strength: float

    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        """Return logits `[n, C]`; where known and other classes compete they are log-probabilities, see `share_among`.

        How a known class is written does not matter.
        """
        zero_shot = self.backbone.zero_shot_logits(images, classes).cpu()
        at, rows = known_classes(classes.names, self.names)
        features = self.backbone.image_features(images).to(self.rows)
        learned = (self.backbone.logit_scale * features @ self.rows[rows].T).to(zero_shot)
        return share_among(zero_shot, torch.tensor(at, dtype=torch.int64), learned)
