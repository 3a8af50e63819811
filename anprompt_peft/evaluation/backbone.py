"""The frozen CLIP that all methods start from, and its features, which are computed once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import CLIPModel

from ..method.class_texts import tokenize
from ..method.families import family_of
from ..method.features import at_least_float32, ensemble, evaluating, frozen_text_features, normalize
from .task import ClassTexts, ImageSet


class CachedFeatures:
    """Features of image sets, computed at most once each, without gradients."""

    def __init__(self, encode: Callable[[Tensor], Tensor]) -> None:
        self.encode = encode  # pixel values [m, 3, H, W], on the CPU, to features [m, d]
        self._cached: WeakKeyDictionary[ImageSet, Tensor] = WeakKeyDictionary()

    @torch.no_grad()
    def of(self, images: ImageSet) -> Tensor:
        """Return the features of all images, `[n, d]`."""
        if images.within is not None:
            whole, rows = images.within
            features = self.of(whole)
            return features[rows.to(features.device)]
        if images not in self._cached:
            self._cached[images] = torch.cat([self.encode(pixels) for pixels in images.batches()])
        return self._cached[images]


class CLIPFeatures:
    """Cached features of a CLIP in evaluation mode, without gradients. The CLIP stays as it is."""

    def __init__(self, clip: CLIPModel, processor: Any) -> None:
        self.clip: Any = clip
        self.processor = processor
        self._images = CachedFeatures(self.encode_images)
        self._unprojected = CachedFeatures(self.encode_unprojected)
        self._texts: dict[tuple[str, ...], Tensor] = {}

    @property
    def device(self) -> torch.device:
        """Where the model is and its features are."""
        return self.clip.device

    @property
    def logit_scale(self) -> float:
        """The factor of cosine similarities, exp of CLIP's parameter."""
        return float(self.clip.logit_scale.detach().exp())

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Return the token ids of n texts, int64 `[n, L]`, padded and cut to the longest that CLIP takes."""
        if family_of(self.clip).pads:
            return tokenize(texts, self.processor.tokenizer, self.clip.config, truncate=True).to(self.device)
        tokenized = self.processor.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return tokenized["input_ids"].to(self.device)

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return the normalised features of pixel values `[m, 3, H, W]`, at least float32 `[m, d]`."""
        return normalize(self.project_images(pixels))

    @torch.no_grad()
    def project_images(self, pixels: Tensor) -> Tensor:
        """Return the same features before they are normalised."""
        with evaluating(self.clip):
            features = self.clip.get_image_features(pixels.to(self.device, self.clip.dtype)).pooler_output
        return at_least_float32(features)

    @torch.no_grad()
    def encode_unprojected(self, pixels: Tensor) -> Tensor:
        """Return what goes into the visual projection, of pixel values `[m, 3, H, W]`: at least float32 `[m, d_v]`."""
        with evaluating(self.clip):
            pooled = self.clip.vision_model(pixels.to(self.device, self.clip.dtype)).pooler_output
        return at_least_float32(pooled)

    def unprojected_features(self, images: ImageSet) -> Tensor:
        """Return what goes into the visual projection, of all images: at least float32 `[n, d_v]`."""
        return self._unprojected.of(images)

    def image_features(self, images: ImageSet) -> Tensor:
        """Return the normalised features of all images, at least float32 `[n, d]`."""
        return self._images.of(images)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return the normalised features of n texts, at least float32 `[n, d]`."""
        key = tuple(texts)  # whole lists: the last bits of a text's features depend on the texts beside it
        if key not in self._texts:
            self._texts[key] = frozen_text_features(self.clip, self.tokens(key))
        return self._texts[key]

    def class_features(self, classes: ClassTexts) -> Tensor:
        """Return per class the normalised mean of its texts' features, at least float32 `[C, d]`."""
        return ensemble(self.text_features(classes.texts), len(classes.templates))

    def zero_shot_logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        """Return the frozen CLIP's logits, at least float32 `[n, C]`."""
        return self.logit_scale * self.image_features(images) @ self.class_features(classes).T


class Backbone(CLIPFeatures):
    """The CLIP that methods start from, with its features; it is frozen and put into evaluation mode."""

    def __init__(self, clip: CLIPModel, processor: Any) -> None:
        super().__init__(clip.eval().requires_grad_(False), processor)

    def copy(self) -> Any:
        """Return a CLIP of its own for a method that changes it, frozen, in evaluation mode."""
        return copy.deepcopy(self.clip)

    def with_texts_of(self, clip: CLIPModel) -> Backbone:
        """Return the backbone of a CLIP that differs in its text encoder alone: both share features of images."""
        other = Backbone(clip, self.processor)
        other._images, other._unprojected = self._images, self._unprojected
        return other
