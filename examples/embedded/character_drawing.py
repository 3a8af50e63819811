"""Training images of characters: glyphs of matplotlib's fonts, redrawn with a pen and sampled like the real digits.

Each glyph is thinned to its skeleton once. A training image redraws the skeleton with a pen of random
width after a random deformation, then goes through the sampling of the UCI digits: a 32 x 32 bitmap fitted
to the glyph, ink counted in 4 x 4 blocks (0..16), and bicubic up-sampling to 32 x 32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt
from torch import Tensor

# DejaVu Sans Mono is left out for its dotted zero, the other bundled fonts for lacking digits or letters.
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmb10",
    "cmmi10",
    "cmr10",
    "cmss10",
    "cmti10",
    "cmtt10",
)
DIGITS = "0123456789"
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnpqrstuvwxyz"  # without I, l, O, o: drawn alone they are 1 and 0
CHARS = DIGITS + LETTERS
CANVAS = 64  # pixels, side of the square a skeleton is stored in
GLYPH = 40  # pixels, longer side of a glyph on that canvas
BITMAP = 32  # pixels, side of the fitted bitmap and of the finished image
BLOCK = 4  # pixels, side of the squares in which ink is counted
BBOX_PEN = 1.5  # canvas pixels, half-width of the pen that the bounding box is measured with


@dataclass(frozen=True)
class Deformation:
    """Ranges that a training image's deformation is drawn from, uniformly unless said otherwise."""

    rotation: float = 15.0  # degrees, either way
    shear: float = 0.35  # horizontal shift per vertical unit, either way
    elastic: float = 0.07  # standard deviation of the 4 x 4 displacement grid, in half canvas sides
    lift: float = 0.0  # probability that the pen lifts somewhere
    lift_radius: tuple[float, float] = (4.0, 10.0)  # canvas pixels, of the disc in which it leaves no ink
    width: tuple[float, float] = (14.0, 28.0)  # pixels of the 32 x 32 bitmap
    margin: float = 1.5  # pixels, most that the bitmap's top and bottom edges move, either way
    ink: tuple[float, float] = (0.22, 0.38)  # share of the bitmap that is inked
    blur: float = 0.5  # largest share of a 5 x 5 box blur mixed into the bitmap
    noise: float = 0.03  # standard deviation, full ink = 1


def render(char: str, font: str, size: int = 96) -> np.ndarray:
    """One character as a bool array [CANVAS, CANVAS], its longer side scaled to GLYPH pixels, centred."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    face = ImageFont.truetype(str(path), size)
    page = Image.new("L", (3 * size, 3 * size))
    ImageDraw.Draw(page).text((size, size), char, font=face, fill=255)
    box = page.getbbox()
    if box is None:
        raise ValueError(f"font {font} draws nothing for {char!r}")
    crop = page.crop(box)
    scale = GLYPH / max(crop.size)
    crop = crop.resize((max(2, round(crop.width * scale)), max(2, round(crop.height * scale))), Image.Resampling.BOX)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(crop, ((CANVAS - crop.width) // 2, (CANVAS - crop.height) // 2))
    return np.asarray(canvas) > 127


def thin(ink: np.ndarray) -> np.ndarray:
    """Skeletons by Zhang and Suen's thinning; bool array [n, h, w] with an empty border, in and out."""
    ink = ink.copy()
    changed = True
    while changed:
        changed = False
        for first in (True, False):
            ring = [
                np.roll(ink, shift, axis=(1, 2))  # clockwise from the neighbour above
                for shift in ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))
            ]
            neighbours = np.sum(ring, axis=0)
            rises = np.sum([~a & b for a, b in zip(ring, ring[1:] + ring[:1], strict=True)], axis=0)
            up, right, down, left = ring[::2]
            kept = (up & right & down | right & down & left) if first else (up & right & left | up & down & left)
            removed = ink & (neighbours >= 2) & (neighbours <= 6) & (rises == 1) & ~kept
            ink &= ~removed
            changed |= bool(removed.any())
    return ink


def make_bank(chars: str = CHARS, fonts: tuple[str, ...] = FONTS) -> Tensor:
    """Distance to each glyph's skeleton, in canvas pixels: float32 [chars, fonts, CANVAS, CANVAS]."""
    ink = np.stack([render(char, font) for char in chars for font in fonts])
    distance = np.stack([distance_transform_edt(~skeleton) for skeleton in thin(ink)])
    return torch.from_numpy(distance.astype(np.float32)).reshape(len(chars), len(fonts), CANVAS, CANVAS)


def uniform(rng: np.random.Generator, low: float, high: float, n: int) -> Tensor:
    """Float32 tensor [n], uniform in low..high."""
    return torch.from_numpy(rng.uniform(low, high, n).astype(np.float32))


def normal(rng: np.random.Generator, scale: float, *shape: int) -> Tensor:
    """Float32 tensor of the given shape, normal with mean 0 and the given standard deviation."""
    return torch.from_numpy((scale * rng.standard_normal(shape)).astype(np.float32))


def lift_pen(distance: Tensor, how: Deformation, rng: np.random.Generator) -> Tensor:
    """Leave a disc of some skeletons undrawn; float32 distance maps [n, 1, CANVAS, CANVAS], in and out."""
    n = len(distance)
    radius = uniform(rng, *how.lift_radius, n) * (uniform(rng, 0, 1, n) < how.lift)
    low, high = (CANVAS - GLYPH) / 2, (CANVAS + GLYPH) / 2
    x, y = uniform(rng, low, high, n), uniform(rng, low, high, n)
    at = torch.arange(CANVAS) + 0.5
    apart = torch.hypot(at - x[:, None, None], at[:, None] - y[:, None, None])
    return distance.masked_fill((apart < radius[:, None, None])[:, None], CANVAS)


def affine_grid(matrix: Tensor, side: int) -> Tensor:
    """Sampling grid [n, side, side, 2] for `grid_sample` from float32 matrices [n, 2, 3]."""
    return F.affine_grid(matrix, [len(matrix), 1, side, side], align_corners=False)


def deform(distance: Tensor, how: Deformation, rng: np.random.Generator) -> Tensor:
    """Rotate, shear and bend distance maps; float32 [n, 1, CANVAS, CANVAS], in and out."""
    n = len(distance)
    angle = torch.deg2rad(uniform(rng, -how.rotation, how.rotation, n))
    shear = uniform(rng, -how.shear, how.shear, n)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(n)
    top = torch.stack([cos, cos * shear - sin, zero], dim=1)
    bottom = torch.stack([sin, sin * shear + cos, zero], dim=1)
    return warp(distance, top, bottom, how.elastic, rng, "border")


def warp(
    images: Tensor, top: Tensor, bottom: Tensor, elastic: float, rng: np.random.Generator, padding: str = "zeros"
) -> Tensor:
    """Sample images [n, 1, CANVAS, CANVAS] along affine maps, whose rows are [n, 3], and bend them at random."""
    grid = affine_grid(torch.stack([top, bottom], dim=1), CANVAS)
    bend = F.interpolate(normal(rng, elastic, len(images), 2, 4, 4), size=CANVAS, mode="bicubic", align_corners=True)
    return F.grid_sample(images, grid + bend.permute(0, 2, 3, 1), padding_mode=padding, align_corners=False)


def extent(ink: Tensor) -> tuple[Tensor, Tensor]:
    """First and last inked position of rows [n, length], in grid units -1..1; without ink, both ends: two [n]."""
    length = ink.shape[1]
    empty = ~ink.any(dim=1)
    first = ink.int().argmax(dim=1).masked_fill(empty, 0)
    last = (length - ink.flip(1).int().argmax(dim=1)).masked_fill(empty, length)
    return 2 * first / length - 1, 2 * last / length - 1


def fit(distance: Tensor, how: Deformation, rng: np.random.Generator) -> Tensor:
    """Crop deformed distance maps [n, 1, CANVAS, CANVAS] so that each glyph fills the height: [n, BITMAP, BITMAP]."""
    n = len(distance)
    drawn = distance[:, 0] < BBOX_PEN
    left, right = extent(drawn.any(dim=1))
    top, bottom = extent(drawn.any(dim=2))
    edge = how.margin * 2 / BITMAP
    y_scale = (bottom - top) / 2 * (1 + uniform(rng, -edge, edge, n))
    y_shift = (bottom + top) / 2 + (bottom - top) / 2 * uniform(rng, -edge, edge, n)
    x_scale = (right - left) / 2 * BITMAP / uniform(rng, *how.width, n)
    x_shift = (right + left) / 2 + x_scale * uniform(rng, -edge, edge, n)
    zero = torch.zeros(n)
    across = torch.stack([x_scale, zero, x_shift], dim=1)
    down = torch.stack([zero, y_scale, y_shift], dim=1)
    grid = affine_grid(torch.stack([across, down], dim=1), BITMAP)
    return F.grid_sample(distance, grid, padding_mode="border", align_corners=False)[:, 0]


def enlarge(grey: Tensor) -> Tensor:
    """Bicubic up-sampling by BLOCK as Pillow does it, one axis after the other: float32 0..255 [n, 1, h, w]."""
    height, width = grey.shape[2:]
    for size in ((height, width * BLOCK), (height * BLOCK, width * BLOCK)):
        grey = F.interpolate(grey, size=size, mode="bicubic", antialias=True, align_corners=False)
        grey = grey.round().clamp(0, 255)
    return grey


def sample(distance: Tensor, how: Deformation, rng: np.random.Generator) -> Tensor:
    """Draw fitted distance maps [n, BITMAP, BITMAP] with a pen and sample them: uint8 [n, BITMAP, BITMAP]."""
    n = len(distance)
    flat = distance.flatten(1).sort(dim=1).values
    rank = (uniform(rng, *how.ink, n) * flat.shape[1]).long()
    pen = flat.gather(1, rank[:, None])[:, :, None]
    bitmap = (distance < pen).float()[:, None]
    blurred = F.avg_pool2d(bitmap, 5, stride=1, padding=2)
    share = uniform(rng, 0, how.blur, n)[:, None, None, None]
    counts = F.avg_pool2d(torch.lerp(bitmap, blurred, share), BLOCK)
    levels = BLOCK * BLOCK
    noisy = counts + normal(rng, how.noise, *counts.shape) * (counts > 0)
    quantised = (noisy * levels).round().clamp(0, levels) * (255 / levels)
    return enlarge(quantised.round())[:, 0].to(torch.uint8)


def draw(bank: Tensor, chars: np.ndarray, rng: np.random.Generator, how: Deformation | None = None) -> Tensor:
    """Training images of characters of a bank, by their rows [n], in random fonts: uint8 [n, BITMAP, BITMAP]."""
    how = how or Deformation()
    fonts = rng.integers(bank.shape[1], size=len(chars))
    distance = lift_pen(bank[torch.from_numpy(chars), torch.from_numpy(fonts)][:, None], how, rng)
    return sample(fit(deform(distance, how, rng), how, rng), how, rng)
