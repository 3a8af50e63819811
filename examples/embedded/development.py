"""What the tiny CLIP is judged by while it is made: development concepts and the digits' "recipe" split, zero-shot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from anprompt_peft.evaluation.backbone import CLIPFeatures
from captions import ICON_TEMPLATE, UNSEEN_TEMPLATES, mistype
from handwriting import CLASS_NAMES, load_split
from handwriting import TEMPLATE as DIGIT_TEMPLATE
from icons import UNSEEN, caption_names, development_concepts, images_of, unseen_names

FEW = 50
BAND = {"Phosphor 50": (0.45, 0.80), "Remix 50": (0.45, 0.80), "digits": (0.60, 0.85)}
"""Fixed before the pre-training: below, there is nothing to adapt; above, nothing to gain."""


def mistyped(names: Sequence[str], seed: int = 0) -> list[str]:
    """Every name with one typing error."""
    rng = np.random.default_rng(seed)
    return [mistype(name, rng) for name in names]


def first_of(names: dict[str, tuple[str, ...]], concepts: Sequence[str]) -> list[str]:
    """Another name of each concept, the first that is not its own; its own where there is none."""
    return [next((name for name in names[concept] if name != concept), concept) for concept in concepts]


def development_figures(model: PreTrainedModel, processor: ProcessorMixin) -> dict[str, float]:
    """Zero-shot accuracies, 0..1.

    "Phosphor 50" is among the 50 of the development concepts, "Phosphor" among all of them, and "Phosphor, ..." among
    all of them with names or templates written differently; "digits" are those of the "recipe" split.
    """
    clip, concepts = CLIPFeatures(model, processor), development_concepts()
    few = torch.randperm(len(concepts), generator=torch.Generator().manual_seed(0))[:FEW].sort().values
    own = list(concepts)
    written = {
        "": (own, None),
        f" {FEW}": (own, few),
        ", one typo": (mistyped(concepts), None),
        ", synonyms in captions": (first_of(caption_names(), concepts), None),
        ", unseen synonyms": (first_of(unseen_names(), concepts), None),
    }
    figures = {}
    for family in UNSEEN:
        icons = encode(clip, *images_of(family, concepts))
        for name, (names, among) in written.items():
            figures[f"{family.name}{name}"] = accuracy(clip, icons, names, ICON_TEMPLATE, among)
        unseen = [accuracy(clip, icons, own, template) for template in UNSEEN_TEMPLATES]
        figures[f"{family.name}, unseen templates"] = float(np.mean(unseen))
    digits = encode(clip, *load_split("recipe"))
    for name, classes in {"digits": range(10), "digits 0-4": range(5), "digits 5-9": range(5, 10)}.items():
        figures[name] = accuracy(clip, digits, CLASS_NAMES, DIGIT_TEMPLATE, torch.tensor(classes))
    figures["digits, one typo"] = accuracy(clip, digits, mistyped(CLASS_NAMES), DIGIT_TEMPLATE)
    return figures


def encode(clip: CLIPFeatures, images: list[Image.Image], labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Features of n images, float32 [n, d], and their labels, int64 [n]."""
    return clip.encode_images(clip.processor(images=images, return_tensors="pt")["pixel_values"]), torch.tensor(labels)


def accuracy(
    clip: CLIPFeatures, images: tuple[Tensor, Tensor], names: Sequence[str], template: str, among: Tensor | None = None
) -> float:
    """Share, 0..1, of the images of some classes, by default of all, that are classified right among these."""
    features, labels = images
    texts = clip.text_features([template.replace("{}", name) for name in names])
    among = torch.arange(len(names)) if among is None else among
    kept = torch.isin(labels, among)
    predicted = among[(features[kept] @ texts[among].T).argmax(dim=1)]
    return float((predicted == labels[kept]).double().mean())
