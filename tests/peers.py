"""Random images and a float64 CLIP for the tests of the methods that are compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from torch import Tensor
from transformers import CLIPProcessor

from anprompt_peft.data import ClipTransform
from anprompt_peft.evaluation.backbone import Backbone
from anprompt_peft.evaluation.peers import Batch, Recipe
from anprompt_peft.evaluation.task import ClassTexts, ImageSet
from conftest import MakeClip

BASE = ClassTexts(("cat", "dog", "small fish"))
MIXED = ClassTexts(("red bird", "small fish", "cat", "drawing"))
NEW = ClassTexts(("red bird", "drawing"))
SIZE = 20

ONE_STEP = Recipe(learning_rate=0.1, momentum=0, batch_size=None, schedule="constant")
"""Plain gradient descent, one step on all shots: the parameters move by -0.1 times the gradient."""


def make_backbone(make_clip: MakeClip, clip_folder: Path, dtype: torch.dtype = torch.float64) -> Backbone:
    """A small random CLIP with its processor."""
    return Backbone(make_clip(dtype=dtype), CLIPProcessor.from_pretrained(clip_folder))


def image_set(
    backbone: Backbone, labels: list[int], names: tuple[str, ...], seed: int = 0, augment: bool = False
) -> ImageSet:
    """Random images with labels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), SIZE, SIZE, 3), dtype=np.uint8)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(names))})
    dataset = Dataset.from_dict({"image": list(pixels), "label": labels}, features=features)
    augmentation = ClipTransform(backbone.processor, augment=True) if augment else None
    return ImageSet(dataset, ClipTransform(backbone.processor), augmentation)


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1."""
    return rows / rows.norm(dim=-1, keepdim=True)


def images_of(clip: Any, images: ImageSet) -> Tensor:
    """Normalised image features by CLIP's own forward."""
    return unit(clip.get_image_features(images.pixels().to(clip.dtype)).pooler_output)


def texts_of(clip: Any, backbone: Backbone, texts: list[str]) -> Tensor:
    """Normalised features of texts, each encoded by itself, without padding."""
    tokenizer = backbone.processor.tokenizer
    rows = [clip.get_text_features(**tokenizer(text, return_tensors="pt")).pooler_output for text in texts]
    return unit(torch.cat(rows))


class Spy:
    """Stands in for `train` in a method's module: keeps the loss and gradients of a batch of all shots.

    Args:
        scatter (`float`): how far the parameters are moved at random before, in place.
    """

    loss: Tensor
    gradients: list[Tensor]
    parameters: list[Tensor]

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: ModuleType, scatter: float = 0.0) -> None:
        self.scatter = scatter
        monkeypatch.setattr(module, "train", self)

    def __call__(
        self, parameters: Any, loss_of_batch: Callable[[Batch], Tensor], shots: ImageSet, recipe: Recipe, seed: int
    ) -> None:
        self.parameters, self.recipe = list(parameters), recipe
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for each in self.parameters:
                each.add_(self.scatter * torch.randn(each.shape, generator=generator).to(each))
        self.loss = loss_of_batch(Batch(shots, torch.arange(len(shots)), self.parameters[0]))
        self.gradients = list(torch.autograd.grad(self.loss, self.parameters))
