"""ProLIP: train CLIP's visual projection, held to where it started (Fahes et al., 2024, arXiv 2410.05270)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...method.families import family_of, image_head
from ...method.features import at_least_float32, normalize
from ..backbone import Backbone
from ..task import BATCH, ClassTexts, ImageSet
from .protocol import added
from .training import Batch, Recipe, train


def check_projection(model: Any) -> None:
    """Raise `ValueError` for a model, or the configuration of one, that has no visual projection."""
    family = family_of(model)
    if family.pools_images:
        raise ValueError(
            "ProLIP trains the linear map that ends CLIP's image encoder, and transformers' "
            f"{family.model.__name__} has none: it pools images by attention. Take another method."
        )


@dataclass(frozen=True)
class ProLIP:
    """The visual projection W, trained from its pre-trained W_0.

    `loss = CE(scale * normalize(x W^T) T^T) + lambda * ||W - W_0||^2` with features x before the projection, class
    texts T, and `lambda = regularization / N` for N shots per class.
    """

    regularization: float
    recipe: Recipe  # with augmentation every batch has new views
    ensemble: bool = added(False)  # T averages the data set's ensemble of templates, where it has one

    check = staticmethod(check_projection)

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> Projection:
        """Train the projection; N is the mean number of shots of a class. Raises as [`check_projection`]."""
        check_projection(backbone.clip)
        start = at_least_float32(image_head(backbone.clip).weight.detach())
        weight = start.clone().requires_grad_()
        texts = backbone.logit_scale * backbone.class_features(classes.in_ensemble(self.ensemble)).T
        penalty = self.regularization * len(classes.names) / len(shots)

        def loss(batch: Batch) -> Tensor:
            if batch.augment:
                parts = batch.rows.split(BATCH)
                seen = torch.cat([backbone.encode_unprojected(shots.pixels(rows, augment=True)) for rows in parts])
            else:
                seen = backbone.unprojected_features(shots)[batch.rows.to(backbone.device)]
            logits = normalize(seen @ weight.T) @ texts
            return F.cross_entropy(logits, batch.labels) + penalty * (weight - start).pow(2).sum()

        train([weight], loss, shots, self.recipe, seed)
        return Projection(backbone, weight.detach(), self.ensemble)


@dataclass(frozen=True, eq=False)
class Projection:
    """CLIP with another visual projection, `[d, d_v]`, for any classes."""

    backbone: Backbone
    weight: Tensor
    ensemble: bool

    @property
    def saved(self) -> dict[str, Tensor]:
        """`weight`."""
        return {"weight": self.weight}

    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        """Return logits `[n, C]`."""
        features = normalize(self.backbone.unprojected_features(images) @ self.weight.T)
        texts = self.backbone.class_features(classes.in_ensemble(self.ensemble))
        return (self.backbone.logit_scale * features @ texts.T).cpu()
