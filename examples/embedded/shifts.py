"""Shifts of the embedded images: changes that base and new classes, shots and tests share, as another domain would.

Strengths are set on development concepts, so that the tiny CLIP reads 25 to 60 % of the images zero-shot; see
docs/embedded.md for the figures. Icons have finer strokes than digits and take less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from PIL import Image
from scipy import ndimage

SEED = 0  # of the textures
PERIODS = (5.0, 12.0)  # pixels, of the waves of a texture

Change = Callable[[np.ndarray], np.ndarray]
"""From and to grey images with white ink, float32 [n, h, w] in 0..1."""


def turned(ink: np.ndarray, degrees: float) -> np.ndarray:
    """Turn counterclockwise, with black where nothing was."""
    return ndimage.rotate(ink, degrees, axes=(2, 1), reshape=False, order=1)


def thickened(ink: np.ndarray, share: float) -> np.ndarray:
    """Blend with strokes that are two pixels wider on every side."""
    return (1 - share) * ink + share * ndimage.grey_dilation(ink, size=(1, 5, 5))


def pale(ink: np.ndarray, contrast: float) -> np.ndarray:
    """Lower the contrast around middle grey."""
    return 0.5 + contrast * (ink - 0.5)


def inverted(ink: np.ndarray) -> np.ndarray:
    """Draw black on white."""
    return 1 - ink


def mirrored(ink: np.ndarray) -> np.ndarray:
    """Swap left and right."""
    return ink[:, :, ::-1]


def textured(ink: np.ndarray, brightness: float) -> np.ndarray:
    """Lay the ink on waves of a direction and a period of its own for each image."""
    rng = np.random.default_rng(SEED)
    angle, phase = rng.uniform(0, 2 * np.pi, (2, len(ink), 1, 1))
    period = rng.uniform(*PERIODS, (len(ink), 1, 1))
    down, across = np.mgrid[: ink.shape[1], : ink.shape[2]]
    waves = np.sin(2 * np.pi * (across * np.cos(angle) + down * np.sin(angle)) / period + phase)
    return np.maximum(ink, brightness * (waves + 1) / 2)


def small(ink: np.ndarray, scale: float) -> np.ndarray:
    """Shrink into the upper left corner, on black."""
    side = round(scale * ink.shape[1])
    shrunk = ndimage.zoom(ink, (1, side / ink.shape[1], side / ink.shape[2]), order=1)
    return np.pad(shrunk, ((0, 0), (0, ink.shape[1] - side), (0, ink.shape[2] - side)))


ICONS: Mapping[str, Change] = {
    "turned": partial(turned, degrees=18),
    "thickened": partial(thickened, share=0.9),
    "pale": partial(pale, contrast=0.3),
    "mirrored": mirrored,
    "textured": partial(textured, brightness=0.4),
    "small": partial(small, scale=0.85),
}
DIGITS: Mapping[str, Change] = {
    "turned": partial(turned, degrees=30),
    "pale": partial(pale, contrast=0.3),
    "inverted": inverted,
    "mirrored": mirrored,
    "textured": partial(textured, brightness=0.4),
    "small": partial(small, scale=0.8),
}


def shifts_of(data: str) -> Mapping[str, Change]:
    """Return the shifts of a data set of `data.py`, by the name of its function."""
    return ICONS if data.startswith("icons") else DIGITS


def shift(images: Sequence[Image.Image], change: Change) -> list[Image.Image]:
    """Return changed copies of n RGB images of one size."""
    ink = np.stack([np.asarray(image.convert("L"), dtype=np.float32) / 255 for image in images])
    levels = np.clip(change(ink) * 255, 0, 255).round().astype(np.uint8)
    return [Image.fromarray(level).convert("RGB") for level in levels]
