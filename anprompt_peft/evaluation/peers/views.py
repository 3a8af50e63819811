"""Frozen features of the shots, of augmented views of them where a recipe asks for these."""

from __future__ import annotations

import torch
from torch import Tensor

from ...method.features import normalize
from ..backbone import Backbone
from ..task import BATCH, ImageSet
from .training import Batch


def features_of(backbone: Backbone, batch: Batch) -> Tensor:
    """Return the frozen, normalised features of a batch, of new random views of it if it is augmented: `[m, d]`."""
    if batch.augment:
        return backbone.encode_images(batch.pixels)
    return backbone.image_features(batch.shots)[batch.rows.to(backbone.device)]


def mean_features(backbone: Backbone, shots: ImageSet, views: int) -> Tensor:
    """Return the normalised mean of the frozen features of random views of each shot, `[n, d]`.

    As in Tip-Adapter's code the features are not normalised before they are averaged.

    Args:
        backbone (`Backbone`): the frozen CLIP.
        shots (`ImageSet`): taken as they are if they have no augmentation.
        views (`int`): per shot, drawn from torch's random numbers; 0 takes the shots as they are.
    """
    if not views or shots.augmentation is None:
        return backbone.image_features(shots)
    return normalize(
        torch.cat(
            [
                torch.stack([backbone.project_images(shots.pixels(rows, augment=True)) for _ in range(views)]).mean(0)
                for rows in torch.arange(len(shots)).split(BATCH)
            ]
        )
    )
