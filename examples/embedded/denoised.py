"""What text denoisers are worth to zero-shot CLIP, on development data: accuracy with plain texts and under phrasing.

    python examples/embedded/denoised.py [DENOISER ...]

Each DENOISER is a folder of `anprompt denoise examples/embedded/tiny_clip`, by default the one in this folder.
Halves of the classes are drawn with three seeds, and each is classified by itself, as in the grids.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from anprompt_peft.data import ClipTransform
from anprompt_peft.denoising import load_denoised
from anprompt_peft.evaluation.backbone import Backbone
from anprompt_peft.evaluation.robustness import phrasing_families
from anprompt_peft.evaluation.task import ClassTexts, ImageSet
from data import digits_development, icons_development

FOLDER = Path(__file__).resolve().parent
MODEL, DENOISER = FOLDER / "tiny_clip", FOLDER / "tiny_denoiser"
SEEDS = (1, 2, 3)


def halves(count: int) -> list[Tensor]:
    """Both halves of so many classes for each seed, int64."""
    orders = (torch.randperm(count, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS)
    return [half.sort().values for order in orders for half in (order[: count // 2], order[count // 2 :])]


def accuracy(images: Tensor, labels: Tensor, texts: Tensor) -> float:
    """Mean accuracy over the halves, in %, of image features [n, d] with labels [n] by class features [C, d]."""
    shares = []
    for half in halves(len(texts)):
        own = torch.isin(labels, half)
        shares.append((half[(images[own] @ texts[half].T).argmax(dim=1)] == labels[own]).float().mean())
    return 100 * float(torch.stack(shares).mean())


def measured(denoisers: Iterable[Path | None]) -> dict[str, dict[str, list[float]]]:
    """Accuracy by data set and form, for each denoiser, and for the CLIP as it is in place of `None`."""
    processor = CLIPProcessor.from_pretrained(MODEL)
    plain = [CLIPModel.from_pretrained(MODEL) for _ in denoisers]
    clips = [clip if one is None else load_denoised(clip, one) for clip, one in zip(plain, denoisers, strict=True)]
    backbones = [Backbone(clip, processor) for clip in clips]
    tables: dict[str, dict[str, list[float]]] = {}
    for data in (icons_development(), digits_development()):
        shown = ImageSet(data.test, ClipTransform(processor))
        images, classes = backbones[0].image_features(shown), data.texts(data.class_names)
        forms: dict[str, list[ClassTexts]] = {"plain": [classes]}
        for family in phrasing_families(data.synonyms):
            forms[family.name] = [family.texts(classes, family.strengths[-1], draw) for draw in range(family.draws)]
        tables[data.name] = {
            form: [
                sum(accuracy(images, shown.labels, each.class_features(texts)) for texts in drawn) / len(drawn)
                for each in backbones
            ]
            for form, drawn in forms.items()
        }
    return tables


def main(arguments: list[str] | None = None) -> int:
    """Print a table for each data set; return the exit code."""
    parser = argparse.ArgumentParser(description="Measure zero-shot CLIP with text denoisers under phrasing.")
    parser.add_argument("denoisers", nargs="*", type=Path, default=[DENOISER], help="folders of denoisers")
    denoisers = [None, *parser.parse_args(arguments).denoisers]
    for name, table in measured(denoisers).items():
        print(f"\n| {name} |", *(f"{each.name if each else 'as it is'} |" for each in denoisers))
        print("|---|" + "---|" * len(denoisers))
        for form, accuracies in table.items():
            print(f"| {form} |", *(f"{each:.1f} |" for each in accuracies))
        plain, *others = table.values()
        lost = [own - sum(each) / len(each) for own, each in zip(plain, zip(*others, strict=True), strict=True)]
        print("| mean points lost |", *(f"{each:.1f} |" for each in lost))
        print("| in % of the first |", *(f"{100 * each / lost[0]:.0f} |" for each in lost))
    return 0


if __name__ == "__main__":
    sys.exit(main())
