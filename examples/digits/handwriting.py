"""The real data: scikit-learn's 1,797 handwritten digits, in three fixed stratified parts."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SPLITS = ("recipe", "train", "test")
CLASS_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEMPLATE = "a photo of the digit {}."
IMAGE_SIZE = 32
MAX_INK = 16  # load_digits counts inked pixels in 4 x 4 blocks
SPLIT_SEED = 0


def split_indices(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Sorted rows of each split, of n labels: recipe 40 %, train 20 %, test 40 %, stratified by class."""
    rows = np.arange(len(labels))
    recipe, rest = train_test_split(rows, train_size=0.4, stratify=labels, random_state=SPLIT_SEED)
    train, test = train_test_split(rest, train_size=1 / 3, stratify=labels[rest], random_state=SPLIT_SEED)
    return {name: np.sort(part).astype(np.int64) for name, part in zip(SPLITS, (recipe, train, test), strict=True)}


def to_image(counts: np.ndarray) -> Image.Image:
    """One 8 x 8 array of ink counts (0..16) as a 32 x 32 RGB image, white strokes on black, bicubic."""
    grey = Image.fromarray(np.rint(counts * (255 / MAX_INK)).astype(np.uint8))
    return grey.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC).convert("RGB")


def load_split(name: str) -> tuple[list[Image.Image], np.ndarray]:
    """The n images of a split, RGB and 32 x 32 pixels, and their labels, int64 [n] in 0..9.

    `recipe` serves to choose the recipe of the pre-training and settings, `train` is the few-shot pool, and reported
    figures come from `test`.
    """
    if name not in SPLITS:
        raise ValueError(f"unknown split {name!r}: choose one of {', '.join(SPLITS)}")
    digits = load_digits()
    rows = split_indices(digits.target)[name]
    return [to_image(counts) for counts in digits.images[rows]], digits.target[rows].astype(np.int64)
