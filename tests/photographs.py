"""Pictures with the statistics of photographs, made here: smooth random fields of colour."""

from __future__ import annotations

import numpy as np
from PIL import Image


def photograph(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Return a picture, another one for each seed."""
    rng = np.random.default_rng(seed)
    width, height = size
    picture = np.zeros((height, width, 3))
    for cells in (2, 4, 8, 16):
        field = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        picture += np.asarray(Image.fromarray(field).resize(size, Image.Resampling.BICUBIC)) / cells
    span = picture.max() - picture.min()
    return Image.fromarray((255 * (picture - picture.min()) / span).astype(np.uint8))
