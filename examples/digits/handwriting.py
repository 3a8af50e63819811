"""The real data: scikit-learn's 1,797 handwritten digits, in three fixed stratified parts."""

from collections.abc import Sequence

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
    """Row numbers of each split: recipe 40 %, train 20 %, test 40 %, stratified by class.

    Args:
        labels: int array [n].

    Returns:
        Sorted int64 arrays, disjoint, together covering 0..n-1.
    """
    rows = np.arange(len(labels))
    recipe, rest = train_test_split(rows, train_size=0.4, stratify=labels, random_state=SPLIT_SEED)
    train, test = train_test_split(rest, train_size=1 / 3, stratify=labels[rest], random_state=SPLIT_SEED)
    return {name: np.sort(part).astype(np.int64) for name, part in zip(SPLITS, (recipe, train, test), strict=True)}


def to_image(counts: np.ndarray) -> Image.Image:
    """One 8 x 8 array of ink counts (0..16) as a 32 x 32 RGB image, white strokes on black, bicubic."""
    grey = Image.fromarray(np.rint(counts * (255 / MAX_INK)).astype(np.uint8))
    return grey.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC).convert("RGB")


def load_split(name: str) -> tuple[list[Image.Image], np.ndarray]:
    """Images and labels of one split.

    `recipe` serves only to choose the pre-training recipe, `train` is the few-shot pool, and reported
    figures come from `test`.

    Args:
        name: one of `SPLITS`.

    Returns:
        n RGB images of 32 x 32 pixels, and int64 labels [n] in 0..9.
    """
    if name not in SPLITS:
        raise ValueError(f"unknown split {name!r}: choose one of {', '.join(SPLITS)}")
    digits = load_digits()
    rows = split_indices(digits.target)[name]
    return [to_image(counts) for counts in digits.images[rows]], digits.target[rows].astype(np.int64)


def select_classes(
    images: Sequence[Image.Image], labels: np.ndarray, classes: Sequence[int]
) -> tuple[list[Image.Image], np.ndarray]:
    """Keep the images whose label is in `classes`, and renumber the labels to positions in `classes`.

    Args:
        images: n images.
        labels: int array [n].
        classes: k distinct labels to keep.

    Returns:
        m images and int64 labels [m] in 0..k-1.
    """
    position = {label: i for i, label in enumerate(classes)}
    if len(position) != len(classes):
        raise ValueError(f"classes repeat: {list(classes)}")
    kept = [i for i, label in enumerate(labels.tolist()) if label in position]
    return [images[i] for i in kept], np.array([position[int(labels[i])] for i in kept], dtype=np.int64)
