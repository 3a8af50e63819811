"""Random images and a float64 CLIP for the tests of the methods that are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPProcessor, SiglipImageProcessorPil

from anprompt_peft.data import ClipTransform
from anprompt_peft.evaluation.backbone import Backbone
from anprompt_peft.evaluation.peers import METHODS, Batch, Recipe, make_method
from anprompt_peft.evaluation.task import ClassTexts, ImageSet
from anprompt_peft.method.families import FAMILIES
from helpers import IMAGE_SIZE, make_clip, make_model, tiny_tokenizer, tokenizer_of

BASE = ClassTexts(("cat", "dog", "small fish"))
MIXED = ClassTexts(("red bird", "small fish", "cat", "drawing"))
NEW = ClassTexts(("red bird", "drawing"))
SIZE = 20

ONE_STEP = Recipe(learning_rate=0.1, momentum=0, batch_size=None, schedule="constant")
"""Plain gradient descent, one step on all shots: the parameters move by -0.1 times the gradient."""


PROCESSOR = CLIPProcessor(
    image_processor=CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    ),
    tokenizer=tiny_tokenizer(),
)
BACKBONE = Backbone(make_clip(dtype=torch.float64), PROCESSOR)
"""The tiny CLIP in float64, which methods leave as it is."""


def processor_of(family: str) -> Any:
    """The processor of the tiny model of a family."""
    if family != "siglip":
        return FAMILIES[family].processor(image_processor=PROCESSOR.image_processor, tokenizer=tokenizer_of(family))
    images = SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return FAMILIES[family].processor(image_processor=images, tokenizer=tokenizer_of(family))


def backbone_of(family: str, dtype: torch.dtype = torch.float32) -> Backbone:
    """The tiny model of a family, with its processor."""
    return Backbone(make_model(family, dtype=dtype), processor_of(family))


def quick(name: str) -> Any:
    """A method with its preset's settings, and a training of two steps or so."""
    settings = METHODS[name].settings
    short: dict[str, Any] = {"recipe": {"epochs": 2, "learning_rate": 0.01}} if settings.get("recipe") else {}
    if "steps_per_shot" in settings:
        short["steps_per_shot"] = 1
    return make_method(name, **short)


class Mirrored(ClipTransform):
    """An augmentation that draws nothing."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"pixel_values": super().__call__(batch)["pixel_values"].flip(-1)}


def image_set(
    labels: Sequence[int], names: Sequence[str] = BASE.names, seed: int = 0, augmentation: ClipTransform | None = None
) -> ImageSet:
    """Random images with labels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), SIZE, SIZE, 3), dtype=np.uint8)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(names))})
    dataset = Dataset.from_dict({"image": list(pixels), "label": list(labels)}, features=features)
    return ImageSet(dataset, ClipTransform(PROCESSOR), augmentation)


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1."""
    return rows / rows.norm(dim=-1, keepdim=True)


def images_of(images: ImageSet, clip: Any = BACKBONE.clip) -> Tensor:
    """Normalised image features by CLIP's own forward."""
    return unit(clip.get_image_features(images.pixels().to(clip.dtype)).pooler_output)


def texts_of(texts: list[str], clip: Any = BACKBONE.clip) -> Tensor:
    """Normalised features of texts, each encoded by itself, without padding."""
    tokenizer = tiny_tokenizer()
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
