"""How sure a paired difference of two methods is, over draws of shots and over images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student

from .grid.summary import TOLERANCE, Difference
from .metrics import LEVEL


def over_draws_and_images(apart: np.ndarray) -> Difference:
    """Return the mean difference in points, with an interval over the draws and over the images.

    Draws and images are crossed random effects: the variance of the mean is that of the analysis of variance without
    repetition, and the degrees of freedom are those of Hillis (2007, Statistics in Medicine 26:596), as for several
    readers of the same cases. A single draw leaves the images.

    Args:
        apart (`np.ndarray`): float `[S, n]`, for S draws and the same n images: 1 where only the first method is
            right, -1 where only the second is, else 0.

    Raises:
        ValueError: if it is empty.
    """
    if apart.ndim != 2 or not apart.size:
        raise ValueError(f"need a non-empty array [draws, images], got {apart.shape}.")
    draws, images = apart.shape
    value, by_draw, by_image = float(apart.mean()), apart.mean(axis=1), apart.mean(axis=0)
    rest = apart - by_draw[:, None] - by_image + value
    of_draws = images * by_draw.var(ddof=1) if draws > 1 else 0.0
    of_images = draws * by_image.var(ddof=1) if images > 1 else 0.0
    of_rest = (rest**2).sum() / max(1, (draws - 1) * (images - 1))
    both = of_draws + max(of_images - of_rest, 0.0)
    if both < TOLERANCE:
        return Difference(100 * value, None, None, draws)
    if draws == 1:
        freedom: float = images - 1
    else:
        freedom = both**2 / (of_draws**2 / (draws - 1)) if of_draws > TOLERANCE else math.inf
    return _interval(value, both / apart.size, freedom, draws)


def over_folds(apart: Sequence[np.ndarray], number: int) -> Difference:
    """Return the mean difference in points over the images, with an interval over the folds.

    The folds learn from much the same images, so the variance is that of Nadeau and Bengio (2003, Machine Learning
    52:239): `(1 / S + 1 / (k - 1)) * s^2` for S folds whose differences have the variance s^2, each one of k of a cut.

    Args:
        apart (`Sequence[np.ndarray]`): for each of S folds float `[n]`, as [`over_draws_and_images`] takes it.
        number (`int`): k, at least 2.

    Raises:
        ValueError: if there is none.
    """
    if not len(apart):
        raise ValueError("need a fold or more, got none.")
    means = np.array([fold.mean() for fold in apart])
    value, variance = float(np.concatenate(apart).mean()), means.var(ddof=1) if len(means) > 1 else 0.0
    if variance < TOLERANCE:
        return Difference(100 * value, None, None, len(means))
    return _interval(value, (1 / len(means) + 1 / (number - 1)) * variance, len(means) - 1, len(means))


def _interval(value: float, variance: float, freedom: float, draws: int) -> Difference:
    half = float(student.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    return Difference(100 * value, 100 * (value - half), 100 * (value + half), draws)
