"""ProLIP: train CLIP's visual projection, held to where it started (Fahes et al., 2024, arXiv 2410.05270)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...method.features import at_least_float32, normalize
from ..backbone import Backbone, KeptFeatures
from ..task import BATCH, ClassTexts, ImageSet
from .training import Batch, Recipe, train


@dataclass(frozen=True)
class ProLIP:
    """The visual projection W, trained from its pre-trained W_0.

    `loss = CE(scale * normalize(x W^T) T^T) + lambda * ||W - W_0||^2` with features x before the projection, class
    texts T, and `lambda = regularization / N` for N shots per class.

    Args:
        regularization (`float`): see above.
        recipe (`Recipe`): of the training; with augmentation every batch has new views.
    """

    regularization: float
    recipe: Recipe

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> Projection:
        """Train the projection; N is the mean number of shots of a class."""
        start = at_least_float32(backbone.clip.visual_projection.weight.detach())
        weight = start.clone().requires_grad_()
        texts = backbone.logit_scale * backbone.class_features(classes).T
        penalty = self.regularization * len(classes.names) / len(shots)
        unprojected = KeptFeatures(lambda pixels: pooled(backbone, pixels))

        def loss(batch: Batch) -> Tensor:
            if batch.augment:
                parts = batch.rows.split(BATCH)
                seen = torch.cat([pooled(backbone, shots.pixels(rows, augment=True)) for rows in parts])
            else:
                seen = unprojected.of(shots)[batch.rows.to(backbone.device)]
            logits = normalize(seen @ weight.T) @ texts
            return F.cross_entropy(logits, batch.labels) + penalty * (weight - start).pow(2).sum()

        train([weight], loss, shots, self.recipe, seed)
        return Projection(backbone, weight.detach(), unprojected)


@torch.no_grad()
def pooled(backbone: Backbone, pixels: Tensor) -> Tensor:
    """Return the frozen image encoder's output before the projection, at least float32 `[m, d_v]`."""
    output = backbone.clip.vision_model(pixels.to(backbone.device, backbone.clip.dtype))
    return at_least_float32(output.pooler_output)


@dataclass(frozen=True, eq=False)
class Projection:
    """CLIP with another visual projection, `[d, d_v]`, for any classes."""

    backbone: Backbone
    weight: Tensor
    unprojected: KeptFeatures

    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        """Return logits `[n, C]`."""
        features = normalize(self.unprojected.of(images) @ self.weight.T)
        return (self.backbone.logit_scale * features @ self.backbone.class_features(classes).T).cpu()
