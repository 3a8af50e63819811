"""Robustness of an adapter and of zero-shot CLIP, for `anprompt evaluate --robustness`."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from anprompt_peft.data import ClipTransform
from anprompt_peft.evaluation.robustness import (
    IMAGE_FAMILIES,
    Family,
    Robustness,
    measure_robustness,
    text_families,
)
from anprompt_peft.evaluation.task import ClassTexts, ImageSet, Part
from anprompt_peft.files import read_json

from ..text import aligned
from .measuring import fitted_methods, templates_of

SEED = 0


def read_synonyms(path: Path) -> dict[str, list[str]]:
    """Read other names of classes: `{"class name": ["other name", ...]}`."""
    synonyms = read_json(path)
    fits = isinstance(synonyms, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) and name.strip() for name in names)
        for names in synonyms.values()
    )
    if not fits:
        raise ValueError(f'{path} must hold a JSON object {{"class name": ["other name", ...]}}.')
    return synonyms


def robustness_of(
    model: Any, parts: Mapping[str, Dataset], processor: Any, most: int, synonyms: Path | None
) -> list[Robustness]:
    """Measure the adapter and zero-shot CLIP on at most `most` images of each part, drawn at random."""
    families: list[Family] = [*text_families(read_synonyms(synonyms) if synonyms else None), *IMAGE_FAMILIES]
    methods = fitted_methods(model)
    templates = templates_of(model)
    measured = []
    for name, dataset in parts.items():
        rows = sorted(random.Random(SEED).sample(range(len(dataset)), min(most, len(dataset))))
        images = ImageSet(dataset.select(rows), ClipTransform(processor))
        part = Part(name, images, ClassTexts(images.class_names, templates))
        measured.append(measure_robustness(methods, part, families, SEED))
    return measured


def robustness_table(measured: Robustness) -> str:
    """Return the accuracies under every perturbation: the mean over all strengths, and at the greatest one."""
    names = dict.fromkeys(curve.method for curve in measured.curves)
    rows = {"": [head for name in names for head in (name, "greatest")]}
    for curve in measured.curves:
        row = rows.setdefault(curve.family, [])
        row += [f"{curve.area:.1f}", f"{curve.levels[-1].accuracy:.1f}"]
    head = (
        f"robustness, accuracy in % on {measured.images} images of {measured.part}: mean, and at the greatest strength"
    )
    return "\n".join([head, aligned([[family, *figures] for family, figures in rows.items()])])
