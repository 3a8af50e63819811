"""Tip-Adapter: a cache of the shots' features beside zero-shot CLIP (Zhang et al., 2022, arXiv 2207.09519)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...method.features import normalize
from ..backbone import Backbone
from ..task import BATCH, ClassTexts, ImageSet
from .protocol import added
from .training import Batch, Recipe, seeded, train


@dataclass(frozen=True)
class TipAdapter:
    """A cache whose keys are the shots' features and whose values are their labels; with a recipe, Tip-Adapter-F.

    `logits = scale * f W^T + alpha * exp(-beta * (1 - f K^T)) L`: features f, class texts W, keys K, one-hot labels L
    (equations 4 to 6).
    """

    alpha: float  # weight of the cache
    beta: float  # sharpness of the affinities
    views: int  # augmented views whose mean feature is a key; 0 takes the shot as it is
    recipe: Recipe | None = None  # trains the keys
    ensemble: bool = added(False)  # W averages the data set's ensemble of templates, where it has one

    @property
    def revision(self) -> int:
        """1 where keys average views: earlier runs normalised these first."""
        return 1 if self.views else 0

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> Cache:
        """Fill the cache, and train its keys if there is a recipe."""
        with seeded(seed):
            keys = self._mean_features(backbone, shots).clone()
        labels = F.one_hot(shots.labels, len(classes.names)).to(keys)
        cache = Cache(backbone, classes.names, keys, labels, self.alpha, self.beta, self.ensemble)
        if self.recipe is not None:
            texts = backbone.logit_scale * backbone.class_features(classes.in_ensemble(self.ensemble)).T
            keys.requires_grad_()

            def loss(batch: Batch) -> Tensor:
                features = batch.features(backbone)
                return F.cross_entropy(features @ texts + cache.scores(features, labels), batch.labels)

            train([keys], loss, shots, self.recipe, seed)
            keys.requires_grad_(False)
        return cache

    def _mean_features(self, backbone: Backbone, shots: ImageSet) -> Tensor:
        """Return the normalised mean of the shots' features over views, `[n, d]`; these are not normalised before."""
        if not self.views or shots.augmentation is None:
            return backbone.image_features(shots)

        def encode(rows: Tensor) -> Tensor:
            views = [backbone.project_images(shots.pixels(rows, augment=True)) for _ in range(self.views)]
            return torch.stack(views).mean(0)

        return normalize(torch.cat([encode(rows) for rows in torch.arange(len(shots)).split(BATCH)]))


@dataclass(frozen=True, eq=False)
class Cache:
    """Keys of n shots, float `[n, d]`, their one-hot labels `[n, K]` in the order of K names, and the settings."""

    backbone: Backbone
    names: tuple[str, ...]
    keys: Tensor
    labels: Tensor
    alpha: float
    beta: float
    ensemble: bool

    @property
    def saved(self) -> dict[str, Tensor]:
        """`keys` and `labels`, int64 `[n]`."""
        return {"keys": self.keys, "labels": self.labels.argmax(dim=1)}

    def scores(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return what the cache adds to the logits of m features: `[m, C]` for one-hot labels `[n, C]`."""
        return self.alpha * torch.exp(-self.beta * (1 - features @ self.keys.T)) @ labels

    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        """Return logits `[n, C]`: zero-shot CLIP's for classes that the cache has no labels for."""
        columns = torch.zeros(len(self.names), len(classes.names)).to(self.labels)
        for column, name in enumerate(classes.names):
            if name in self.names:
                columns[self.names.index(name), column] = 1
        cached = self.scores(self.backbone.image_features(images), self.labels @ columns)
        return (self.backbone.zero_shot_logits(images, classes.in_ensemble(self.ensemble)) + cached).cpu()
