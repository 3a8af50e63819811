"""Logistic regression on frozen image features: what any adaptation of CLIP has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ...anchored import known_classes, share_among
from ..backbone import CLIPFeatures
from ..task import ClassTexts, ImageSet


@dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression on the frozen CLIP's normalised image features (Radford et al., 2021, 3.2).

    It minimises `C * sum_i CE(W x_i + b, y_i) + ||W||^2 / 2` with L-BFGS.
    """

    C: float
    max_iterations: int

    def fit(self, backbone: CLIPFeatures, shots: ImageSet, classes: ClassTexts, seed: int) -> Probe:
        """Fit the regression; nothing is random in it."""
        features = backbone.image_features(shots).double().cpu().numpy()
        if len(shots.labels.unique()) == 1:  # there is nothing to tell apart
            zeros = torch.zeros(1, features.shape[1], dtype=torch.float64)
            return Probe(backbone, (classes.names[shots.labels[0]],), zeros, zeros[:, 0])
        probe = LogisticRegression(C=self.C, max_iter=self.max_iterations).fit(features, shots.labels.numpy())
        weight, bias = torch.from_numpy(probe.coef_), torch.from_numpy(probe.intercept_)
        if len(weight) == 1:  # of two classes scikit-learn states the difference
            weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
        names = tuple(classes.names[label] for label in probe.classes_)
        return Probe(backbone, names, weight, bias)


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier of the classes it knows by name, and zero-shot CLIP for all others.

    Where both kinds compete, [`share_among`] joins them.
    """

    backbone: CLIPFeatures
    names: tuple[str, ...]  # the K classes that it knows
    weight: Tensor  # W, float64 [K, d]
    bias: Tensor  # b, float64 [K]

    @property
    def saved(self) -> dict[str, Tensor]:
        """`weight` and `bias`."""
        return {"weight": self.weight, "bias": self.bias}

    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        """Return logits `[n, C]`; where known and other classes compete they are log-probabilities.

        How a known class is written does not matter.
        """
        zero_shot = self.backbone.zero_shot_logits(images, classes).cpu()
        at, rows = known_classes(classes.names, self.names)
        features = self.backbone.image_features(images).double().cpu()
        learned = (features @ self.weight[rows].T + self.bias[rows]).to(zero_shot.dtype)
        return share_among(zero_shot, torch.tensor(at), learned)
