"""What the tiny CLIP is judged by while it is made: development concepts and the digits' "recipe" split, zero-shot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPProcessor

from anprompt_peft.method.features import evaluating
from handwriting import CLASS_NAMES, load_split
from handwriting import TEMPLATE as DIGIT_TEMPLATE
from icon_captions import TEMPLATE, UNSEEN_TEMPLATES, mistype
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


def development_figures(model: CLIPModel, processor: CLIPProcessor) -> dict[str, float]:
    """Zero-shot accuracies, 0..1.

    "Phosphor 50" is among the 50 of the development concepts, "Phosphor" among all of them, and "Phosphor, ..." among
    all of them with names or templates written differently. The digits are those of the "recipe" split.
    """
    concepts = development_concepts()
    rows = torch.randperm(len(concepts), generator=torch.Generator().manual_seed(0))[:FEW].sort().values
    written = {
        "": list(concepts),
        ", one typo": mistyped(concepts),
        ", synonyms in captions": first_of(caption_names(), concepts),
        ", unseen synonyms": first_of(unseen_names(), concepts),
    }
    figures = {}
    for family in UNSEEN:
        images, labels = images_of(family, concepts)
        features = encode_images(model, processor, images)
        for name, names in written.items():
            logits = features @ encode_texts(model, processor, names, TEMPLATE).T
            figures[f"{family.name}{name}"] = share_right(logits, labels)
            if not name:
                kept = np.isin(labels, rows.numpy())
                figures[f"{family.name} {FEW}"] = share_right(
                    logits[kept][:, rows], np.searchsorted(rows.numpy(), labels[kept])
                )
        unseen = [encode_texts(model, processor, concepts, template) for template in UNSEEN_TEMPLATES]
        figures[f"{family.name}, unseen templates"] = float(
            np.mean([share_right(features @ text.T, labels) for text in unseen])
        )
    return {**figures, **digit_figures(model, processor)}


def digit_figures(model: CLIPModel, processor: CLIPProcessor) -> dict[str, float]:
    """Zero-shot accuracies, 0..1, on the "recipe" split: of all ten digits, of either half, and with typing errors."""
    images, labels = load_split("recipe")
    features = encode_images(model, processor, images)
    text = encode_texts(model, processor, CLASS_NAMES, DIGIT_TEMPLATE)
    figures = {}
    for name, (low, high) in {"digits": (0, 10), "digits 0-4": (0, 5), "digits 5-9": (5, 10)}.items():
        kept = (labels >= low) & (labels < high)
        figures[name] = share_right(features[kept] @ text[low:high].T, labels[kept] - low)
    text = encode_texts(model, processor, mistyped(CLASS_NAMES), DIGIT_TEMPLATE)
    figures["digits, one typo"] = share_right(features @ text.T, labels)
    return figures


@torch.no_grad()
def encode_images(model: CLIPModel, processor: CLIPProcessor, images: Sequence[Image.Image]) -> torch.Tensor:
    """Features of n images, scaled to length 1: float32 [n, projection]."""
    with evaluating(model):
        pooled = model.vision_model(**processor(images=list(images), return_tensors="pt")).pooler_output
        return normalize(model.visual_projection(pooled), dim=1)


@torch.no_grad()
def encode_texts(model: CLIPModel, processor: CLIPProcessor, names: Sequence[str], template: str) -> torch.Tensor:
    """Features of the template with each of C names, scaled to length 1: float32 [C, projection]."""
    texts = [template.replace("{}", name) for name in names]
    with evaluating(model):
        pooled = model.text_model(
            **processor(text=texts, padding=True, truncation=True, return_tensors="pt")
        ).pooler_output
        return normalize(model.text_projection(pooled), dim=1)


def share_right(logits: torch.Tensor, labels: np.ndarray) -> float:
    """Share, 0..1, of rows whose largest logit, float [n, classes], is at the label, int64 [n]."""
    return float((logits.argmax(dim=1).numpy() == labels).mean())
