"""Other ways to make zero-shot CLIP see through phrasing, beside a text denoiser, on development data.

    python examples/embedded/denoised_controls.py

Closed forms map the text features alone: a ridge regression from noisy to clean features, held to the identity, and a
projection that removes the directions in which noise moves features most. The ensemble reads each class in five
templates, phrased alike. `compound` is a denoiser of fewer steps whose names are half of the time names of characters
in Unicode, and `single` one of as many steps whose names are drawn as ever.
"""

from __future__ import annotations

import random
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from statistics import mean
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from anprompt_peft.data import ClipTransform
from anprompt_peft.denoising import load_denoised
from anprompt_peft.denoising.grammar import FORMS, Grammar
from anprompt_peft.denoising.train import Denoising, Texts, train_denoiser
from anprompt_peft.evaluation.backbone import Backbone
from anprompt_peft.evaluation.robustness import phrasing_families
from anprompt_peft.evaluation.task import ClassTexts, ImageSet
from anprompt_peft.method.features import frozen_text_features, normalize
from data import digits_development, icons_development
from denoised import DENOISER, MODEL, accuracy

PAIRS, CHUNK, STEPS = 20_000, 500, 1000
PULLS, REMOVED = (0.01, 0.1, 1.0), (2, 8, 32)
PICTOGRAPHS = range(0x1F300, 0x1FAFF)
Features = Callable[[ClassTexts], Tensor]


def pairs_of(clip: CLIPModel, processor: CLIPProcessor) -> tuple[Tensor, Tensor]:
    """Features of clean texts and of noisy ones, `[PAIRS, d]`."""
    texts, rng = Texts(clip, processor.tokenizer), random.Random(1)
    drawn = [texts.draw(CHUNK, rng) for _ in range(PAIRS // CHUNK)]
    clean, noisy = zip(*drawn, strict=True)
    return (
        torch.cat([frozen_text_features(clip, each) for each in clean]),
        torch.cat([frozen_text_features(clip, each) for each in noisy]),
    )


def ridge(clean: Tensor, noisy: Tensor, pull: float) -> Tensor:
    """The matrix M `[d, d]` that minimises mean `|n M - t|^2 + pull |M - I|^2 / d`."""
    moments = noisy.T @ noisy / len(noisy)
    strength = pull * moments.trace() / len(moments) * torch.eye(len(moments))
    return torch.linalg.solve(moments + strength, noisy.T @ clean / len(noisy) + strength)


def without_noise(clean: Tensor, noisy: Tensor, count: int) -> Tensor:
    """The projection `[d, d]` that removes the `count` main directions of noise."""
    axes = torch.linalg.svd(noisy - clean, full_matrices=False).Vh[:count]
    return torch.eye(axes.shape[1]) - axes.T @ axes


def pictograph_names() -> list[str]:
    """The names of pictographs in Unicode, in lower case."""
    names = (unicodedata.name(chr(code), "") for code in PICTOGRAPHS)
    return [name.lower() for name in names if name and "-" not in name]


class Compound(Grammar):
    """A grammar that takes every second name from a list."""

    def _form(self, kind: str, rng: random.Random) -> str:
        text = super()._form(kind, rng)
        if kind == "phrases" and rng.random() < 0.5:
            return text.replace("{}", rng.choice(pictograph_names()))
        return text


def trained(kind: type[Grammar]) -> CLIPModel:
    """The tiny CLIP with a denoiser of `STEPS` steps, whose texts a grammar of this kind draws."""
    clip, processor = CLIPModel.from_pretrained(MODEL), CLIPProcessor.from_pretrained(MODEL)
    with patch("anprompt_peft.denoising.train.Grammar", kind):
        model: Any = train_denoiser(clip, processor.tokenizer, Denoising(steps=STEPS))
    merged: CLIPModel = model.merge_and_unload()
    return merged


def main() -> int:
    """Print a row for each way."""
    clip, processor = CLIPModel.from_pretrained(MODEL), CLIPProcessor.from_pretrained(MODEL)
    plain = Backbone(clip, processor)
    clean, noisy = pairs_of(clip, processor)
    maps = {f"ridge regression, pull {pull}": ridge(clean, noisy, pull) for pull in PULLS}
    maps |= {f"without {count} directions": without_noise(clean, noisy, count) for count in REMOVED}

    def mapped(by: Tensor) -> Features:
        return lambda classes: normalize(plain.class_features(classes) @ by)

    ways: dict[str, Features] = {"as it is": plain.class_features}
    ways |= {name: mapped(by) for name, by in maps.items()}
    ways["ensemble of templates"] = plain.class_features
    denoised = Backbone(load_denoised(CLIPModel.from_pretrained(MODEL), DENOISER), processor)
    ways["denoiser"] = denoised.class_features
    for name, kind in (("single", Grammar), ("compound", Compound)):
        ways[f"denoiser, {name}"] = Backbone(trained(kind), processor).class_features
    figures: dict[str, list[float]] = {name: [] for name in ways}
    for data in (icons_development(), digits_development()):
        shown = ImageSet(data.test, ClipTransform(processor))
        images, classes = plain.image_features(shown), data.texts(data.class_names)
        templates = [each for each in FORMS["templates"] if "{}" in each]
        several = replace(classes, templates=tuple(templates))
        for name, features in ways.items():
            asked = several if name == "ensemble of templates" else classes
            figures[name].append(accuracy(images, shown.labels, features(asked)))
            forms = [
                mean(
                    accuracy(images, shown.labels, features(family.texts(asked, family.strengths[-1], draw)))
                    for draw in range(family.draws)
                )
                for family in phrasing_families(data.synonyms)
            ]
            figures[name].append(mean(forms))
    print("| | icons: plain | phrased | digits: plain | phrased |\n|---|---|---|---|---|")
    for name, row in figures.items():
        print(f"| {name} |", *(f"{each:.1f} |" for each in row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
