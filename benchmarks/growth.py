"""How a cost grows: a straight line through it, and the exponent of its growth."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from statistics import linear_regression

FEWEST = 3


@dataclass(frozen=True)
class Growth:
    """What least squares found.

    Attributes:
        start: a of the line `y = a + b * x`.
        slope: its b.
        r_squared: share of the variance of y that the line explains.
        exponent: slope of log y over log x in the upper half of the points.
        exponent_r_squared: share of the variance of log y that this slope explains.
    """

    start: float
    slope: float
    r_squared: float
    exponent: float
    exponent_r_squared: float


def fit(x: list[float], y: list[float]) -> Growth | None:
    """Fit a line to all points, and the exponent to the upper half, at least three of them.

    Args:
        x: positive, at least two different values among the upper half.
        y: positive.

    Returns:
        `None` for fewer than three points, which a line fits by itself.
    """
    if len(x) < FEWEST:
        return None
    points = sorted(zip(x, y, strict=True))
    slope, start = linear_regression(x, y)
    upper = points[-max(FEWEST, math.ceil(len(points) / 2)) :]
    log_x, log_y = [math.log(at) for at, _ in upper], [math.log(value) for _, value in upper]
    exponent = linear_regression(log_x, log_y).slope
    return Growth(start, slope, _explained(x, y), exponent, _explained(log_x, log_y))


def _explained(x: list[float], y: list[float]) -> float:
    """R^2 of the line by least squares; 1 for a constant, which it fits."""
    return 1.0 if min(y) == max(y) else statistics.correlation(x, y) ** 2
