"""What the tiny CLIP is judged by while it is made: development concepts and the digits' "recipe" split, zero-shot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import CLIPModel, CLIPProcessor

from handwriting import CLASS_NAMES, load_split, select_classes
from handwriting import TEMPLATE as DIGIT_TEMPLATE
from icon_captions import TEMPLATE, UNSEEN_TEMPLATES, mistype
from icons import UNSEEN, caption_names, development_concepts, images_of, unseen_names
from zeroshot import class_logits

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
        for name, names in written.items():
            logits = class_logits(model, processor, images, names, TEMPLATE)
            figures[f"{family.name}{name}"] = share_right(logits, labels)
            if not name:
                kept = np.isin(labels, rows.numpy())
                figures[f"{family.name} {FEW}"] = share_right(
                    logits[kept][:, rows], np.searchsorted(rows.numpy(), labels[kept])
                )
        unseen = [
            share_right(class_logits(model, processor, images, concepts, text), labels) for text in UNSEEN_TEMPLATES
        ]
        figures[f"{family.name}, unseen templates"] = float(np.mean(unseen))
    images, labels = load_split("recipe")
    for name, classes in {"digits": range(10), "digits 0-4": range(5), "digits 5-9": range(5, 10)}.items():
        some, renumbered = select_classes(images, labels, classes)
        names = [CLASS_NAMES[c] for c in classes]
        figures[name] = share_right(class_logits(model, processor, some, names, DIGIT_TEMPLATE), renumbered)
    logits = class_logits(model, processor, images, mistyped(CLASS_NAMES), DIGIT_TEMPLATE)
    figures["digits, one typo"] = share_right(logits, labels)
    return figures


def share_right(logits: torch.Tensor, labels: np.ndarray) -> float:
    """Share, 0..1, of rows whose largest logit, float [n, classes], is at the label, int64 [n]."""
    return float((logits.argmax(dim=1).numpy() == labels).mean())
