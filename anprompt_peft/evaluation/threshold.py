"""From which confidence on answers are right often enough, told by images whose classes are known."""

from __future__ import annotations

import numpy as np


def threshold_for(confidence: np.ndarray, correct: np.ndarray, accuracy: float) -> float:
    """Return the lowest confidence from which on at least a share `accuracy` of the answers is right.

    Of all thresholds that hold it on these images, it leaves the fewest of them unanswered.

    Args:
        confidence (`np.ndarray`): float `[n]`, the probability of each answer.
        correct (`np.ndarray`): bool `[n]`, whether it is right.
        accuracy (`float`): the share (0..1).

    Raises:
        ValueError: if there are no images, or no threshold holds it.
    """
    if not len(confidence) or confidence.shape != correct.shape:
        raise ValueError(f"need confidence and correctness [n] of at least one image, got {confidence.shape}.")
    levels, counts = np.unique(-confidence, return_counts=True)
    ends = np.cumsum(counts)  # answers with at least this confidence
    right = np.cumsum(correct[np.argsort(-confidence, kind="stable")])[ends - 1]
    holding = np.flatnonzero(right >= accuracy * ends - 1e-9)
    if not len(holding):
        best = float((right / ends).max())
        raise ValueError(f"no threshold makes {accuracy:.1%} of the answers right: {best:.1%} is the most.")
    return float(-levels[holding[-1]])
