"""CLIP as it is."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..backbone import Backbone
from ..task import ClassTexts, ImageSet


@dataclass(frozen=True)
class ZeroShot:
    """The frozen CLIP, without learning: cosine similarity of images and class texts.

    A class is the normalised mean of its texts' normalised features (Radford et al., 2021, section 3.1.4).
    """

    templates: tuple[str, ...] = ()  # used with the task's own

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> FrozenCLIP:
        """Learn nothing."""
        return FrozenCLIP(backbone, tuple(self.templates))


@dataclass(frozen=True, eq=False)
class FrozenCLIP:
    """A CLIP that reads classes in further templates beside the task's, or in these alone."""

    backbone: Backbone
    templates: tuple[str, ...] = ()
    alone: bool = False

    def image_features(self, images: ImageSet) -> Tensor:
        """Return the normalised features of n images, `[n, d]`."""
        return self.backbone.image_features(images)

    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        """Return CLIP's logits `[n, C]`."""
        texts = self.templates if self.alone else tuple(dict.fromkeys((*classes.templates, *self.templates)))
        return self.backbone.zero_shot_logits(images, replace(classes, templates=texts)).cpu()
