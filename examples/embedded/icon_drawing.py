"""Training images of icons: other stroke widths, outlines of filled shapes, mild deformation and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from character_drawing import CANVAS, normal, uniform, warp
from icons import MARGIN, SIZE, Glyph, draw_glyph

CANVAS_MARGIN = 8  # pixels
FRAME = (1 - 2 * CANVAS_MARGIN / CANVAS) / (1 - 2 * MARGIN / SIZE)  # share of the canvas that a plain image shows
LEAST_INK = 0.35  # of a glyph must remain after its strokes are changed, else it stays as it is


@dataclass(frozen=True)
class Variation:
    """Ranges that a training image's changes are drawn from, uniformly unless said otherwise."""

    thicker: float = 0.12  # probability of strokes one canvas pixel wider on every side
    thinner: float = 0.2  # probability of strokes one canvas pixel narrower on every side
    outlined: float = 0.25  # probability that of filled shapes only the edge is drawn
    edge: tuple[int, int] = (2, 4)  # canvas pixels, its width
    rotation: float = 10.0  # degrees, either way
    shear: float = 0.12  # either way
    zoom: tuple[float, float] = (0.85, 1.2)
    aspect: float = 0.1  # either way
    shift: float = 0.06  # of half a side, either way
    elastic: float = 0.015  # standard deviation of the 4 x 4 displacement grid, in half sides
    blur: float = 0.5  # largest share of a 3 x 3 box blur
    ink: tuple[float, float] = (0.75, 1.0)
    noise: float = 0.04  # largest standard deviation


def make_bank(glyphs: Sequence[Glyph]) -> Tensor:
    """Every glyph, large: uint8 [glyphs, CANVAS, CANVAS]."""
    return torch.from_numpy(np.stack([draw_glyph(glyph, CANVAS, CANVAS_MARGIN) for glyph in glyphs]))


def wider(ink: Tensor, by: int) -> Tensor:
    """Strokes that are some pixels wider on every side; float32 [n, 1, h, w], in and out."""
    return F.max_pool2d(ink, 2 * by + 1, stride=1, padding=by)


def narrower(ink: Tensor, by: int) -> Tensor:
    """Strokes that are some pixels narrower on every side; float32 [n, 1, h, w], in and out."""
    return -wider(-ink, by)


def change_strokes(ink: Tensor, how: Variation, rng: np.random.Generator) -> Tensor:
    """Draw some glyphs wider, narrower or as outlines; float32 [n, 1, CANVAS, CANVAS], in and out."""
    kind = uniform(rng, 0, 1, len(ink))
    edge = torch.from_numpy(rng.integers(how.edge[0], how.edge[1] + 1, len(ink)))
    changed = ink.clone()
    thick = kind < how.thicker
    thin = (kind >= how.thicker) & (kind < how.thicker + how.thinner)
    outlined = (kind >= how.thicker + how.thinner) & (kind < how.thicker + how.thinner + how.outlined)
    changed[thick] = wider(ink[thick], 1)
    changed[thin] = narrower(ink[thin], 1)
    for width in range(how.edge[0], how.edge[1] + 1):
        rows = outlined & (edge == width)
        changed[rows] = ink[rows] - narrower(ink[rows], width)
    lost = changed.sum(dim=(1, 2, 3)) < LEAST_INK * ink.sum(dim=(1, 2, 3))
    lost &= ~outlined
    return torch.where(lost[:, None, None, None], ink, changed)


def deform(ink: Tensor, how: Variation, rng: np.random.Generator) -> Tensor:
    """Turn, shear, scale, move and bend glyphs; float32 [n, 1, CANVAS, CANVAS], in and out."""
    n = len(ink)
    angle = torch.deg2rad(uniform(rng, -how.rotation, how.rotation, n))
    shear = uniform(rng, -how.shear, how.shear, n)
    zoom, aspect = uniform(rng, *how.zoom, n), uniform(rng, -how.aspect, how.aspect, n)
    across, down = FRAME * zoom * (1 + aspect), FRAME * zoom * (1 - aspect)
    x, y = uniform(rng, -how.shift, how.shift, n), uniform(rng, -how.shift, how.shift, n)
    top = torch.stack([across * angle.cos(), across * (angle.cos() * shear - angle.sin()), x], dim=1)
    bottom = torch.stack([down * angle.sin(), down * (angle.sin() * shear + angle.cos()), y], dim=1)
    return warp(ink, top, bottom, how.elastic, rng)


def draw_icons(bank: Tensor, rows: np.ndarray, rng: np.random.Generator, how: Variation | None = None) -> Tensor:
    """Training images of glyphs of a bank, by their rows [n]: float32 [n, SIZE, SIZE], white (1) on black (0)."""
    how = how or Variation()
    ink = bank[torch.from_numpy(rows)][:, None].float() / 255
    small = F.avg_pool2d(deform(change_strokes(ink, how, rng), how, rng), CANVAS // SIZE)
    n = len(small)
    blurred = F.avg_pool2d(small, 3, stride=1, padding=1)
    small = torch.lerp(small, blurred, uniform(rng, 0, how.blur, n)[:, None, None, None])
    small = small * uniform(rng, *how.ink, n)[:, None, None, None]
    noise = normal(rng, 1, *small.shape) * uniform(rng, 0, how.noise, n)[:, None, None, None]
    return (small + noise).clamp(0, 1)[:, 0]
