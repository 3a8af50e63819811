"""How well confidence matches accuracy: the expected calibration error, with bins of equal width or of equal mass."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BINS = 15


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Return the ECE of n answers in per cent: `sum_b |B_b| / n * |accuracy(B_b) - confidence(B_b)|`.

    Bins `(low, high]` of the largest probability have equal width (Guo et al., "On Calibration of Modern Neural
    Networks", 2017, eq. 3).

    Args:
        probabilities (`np.ndarray`): float `[n, C]`.
        labels (`np.ndarray`): int `[n]`.
        bins (`int`): their number.

    Raises:
        ValueError: if there are no answers, the shapes do not fit, or there is no bin.
    """
    confidence, correct = _answers(probabilities, labels, bins)
    places = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    return _error((places == at for at in range(bins)), confidence, correct)


def adaptive_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Return the same sum in per cent over bins that hold equally many answers, in the order of confidence.

    Where n is no multiple of the bins, the first ones hold one answer more. Answers of equal confidence stay in the
    order given (Nguyen and O'Connor, "Posterior calibration and exploratory analysis for natural language processing
    models", 2015; used for prompts of CLIP in arXiv 2402.04655).

    Args:
        probabilities (`np.ndarray`): float `[n, C]`.
        labels (`np.ndarray`): int `[n]`.
        bins (`int`): their number; with fewer answers each has a bin of its own.

    Raises:
        ValueError: if there are no answers, the shapes do not fit, or there is no bin.
    """
    confidence, correct = _answers(probabilities, labels, bins)
    return _error(iter(np.array_split(np.argsort(confidence, kind="stable"), bins)), confidence, correct)


def _answers(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the confidence of n answers, and whether they are right."""
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not probabilities.size:
        raise ValueError(
            f"need probabilities [n, C] and labels [n] of at least one image, got {probabilities.shape} and "
            f"{labels.shape}."
        )
    if bins < 1:
        raise ValueError(f"bins={bins} must be at least 1.")
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == labels


def _error(bins: Iterator[np.ndarray], confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the sum over bins, each of which chooses answers."""
    gap = correct.astype(float) - confidence
    return 100 * sum(abs(float(gap[chosen].sum())) for chosen in bins) / len(gap)
