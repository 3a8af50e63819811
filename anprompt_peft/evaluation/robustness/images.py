"""Graded changes of images with Pillow, the same for the same image whenever it is changed.

An image larger than what CLIP sees is first shrunk to that, as in ImageNet-C (Hendrycks and Dietterich, 2019): noise
or JPEG blocks of a large photo would vanish when CLIP's transform shrinks it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import ClassVar

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from ...data.images import to_rgb
from ..task import ImageChange, ImageSet, Part

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class ImageFamily:
    """One way to change images, in five severities.

    Args:
        name (`str`): for records and headings.
        levels (`tuple[float, ...]`): what `change` is given for severity 1 to 5.
        change (`Callable`): changes an RGB image by a level, with random numbers.
    """

    name: str
    levels: tuple[float, float, float, float, float]
    change: Callable[[Image.Image, float, np.random.Generator], Image.Image]

    kind: ClassVar[str] = "image"
    unit: ClassVar[str] = "severity"
    strengths: ClassVar[tuple[float, ...]] = SEVERITIES
    draws: ClassVar[int] = 1

    def perturbed(self, part: Part, strength: float, draw: int = 0, seed: int = 0) -> Part:
        """Return the part with changed images and the same texts; see [`images`]. Draws differ in their seed."""
        return replace(part, images=self.images(part.images, int(strength), seed + draw))

    def images(self, images: ImageSet, severity: int, seed: int = 0) -> ImageSet:
        """Return the changed images; severity 0 gives back `images`.

        Raises:
            ValueError: if the severity is not a whole number from 0 to 5.
        """
        if severity not in (0, *SEVERITIES):
            raise ValueError(f"severity={severity} must be 0 (unchanged) or one of {SEVERITIES}.")
        return images.changed(self.at(severity, min(images.transform.crop), seed)) if severity else images

    def at(self, severity: int, side: int, seed: int = 0) -> ImageChange:
        """Return the change of one severity.

        Args:
            severity (`int`): 1 to 5.
            side (`int`): pixels of the shorter side that images are shrunk to; smaller ones keep their size.
            seed (`int`): with the image's content it decides all random numbers.
        """
        level = self.levels[severity - 1]

        def change(image: Image.Image) -> Image.Image:
            image = _shrunk(to_rgb(image), side)
            digest = blake2b(image.tobytes(), digest_size=16, key=f"{self.name} {seed}".encode()).digest()
            return self.change(image, level, np.random.default_rng(int.from_bytes(digest)))

        return change


def add_noise(image: Image.Image, deviation: float, rng: np.random.Generator) -> Image.Image:
    """Add Gaussian noise of a standard deviation, in units of the pixel range."""
    pixels = np.asarray(image) / 255
    return _image(pixels + rng.normal(scale=deviation, size=pixels.shape))


def blur(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """Blur with a Gaussian whose deviation is a share of the shorter side."""
    return image.filter(ImageFilter.GaussianBlur(share * min(image.size)))


def lower_contrast(image: Image.Image, factor: float, rng: np.random.Generator) -> Image.Image:
    """Scale the distance to the mean grey by a factor."""
    return ImageEnhance.Contrast(image).enhance(factor)


def brighten(image: Image.Image, shift: float, rng: np.random.Generator) -> Image.Image:
    """Add a part of the pixel range to all pixels."""
    return _image(np.asarray(image) / 255 + shift)


def compress(image: Image.Image, quality: float, rng: np.random.Generator) -> Image.Image:
    """Save as JPEG with a quality, and read it back."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(quality))
    return to_rgb(Image.open(buffer))


def pixelate(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """Shrink both sides to a share, averaging, and enlarge again without smoothing."""
    width, height = (max(1, round(share * side)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def occlude(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """Cover a share of the area with a rectangle of the image's proportions and mean colour, somewhere inside."""
    width, height = (max(1, round(math.sqrt(share) * side)) for side in image.size)
    left, top = (int(rng.random() * (side - size + 1)) for side, size in zip(image.size, (width, height), strict=True))
    covered = image.copy()
    colour = np.asarray(image).mean(axis=(0, 1)).round().astype(int)
    covered.paste(tuple(colour.tolist()), (left, top, left + width, top + height))
    return covered


def rotate(image: Image.Image, degrees: float, rng: np.random.Generator) -> Image.Image:
    """Turn to the left or the right; the corners get the median colour of the border."""
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = tuple(np.median(border, axis=0).astype(int).tolist())
    angle = degrees if rng.random() < 0.5 else -degrees
    return image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=colour)


IMAGE_FAMILIES = (
    ImageFamily("noise", (0.08, 0.12, 0.18, 0.26, 0.38), add_noise),
    ImageFamily("blur", (1 / 224, 2 / 224, 3 / 224, 4 / 224, 6 / 224), blur),
    ImageFamily("contrast", (0.4, 0.3, 0.2, 0.1, 0.05), lower_contrast),
    ImageFamily("brightness", (0.1, 0.2, 0.3, 0.4, 0.5), brighten),
    ImageFamily("JPEG", (25, 18, 15, 10, 7), compress),
    ImageFamily("pixelation", (0.6, 0.5, 0.4, 0.3, 0.25), pixelate),
    ImageFamily("occlusion", (0.05, 0.1, 0.2, 0.3, 0.4), occlude),
    ImageFamily("rotation", (5, 10, 15, 20, 30), rotate),
)
"""All changes. The levels of the first six are ImageNet-C's for images of 224 pixels."""


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    shorter = min(image.size)
    if shorter <= side:
        return image
    width, height = (max(side, round(length * side / shorter)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _image(pixels: np.ndarray) -> Image.Image:
    """Return the image of float pixels, clipped to 0..1."""
    return Image.fromarray((255 * pixels.clip(0, 1)).round().astype(np.uint8))
