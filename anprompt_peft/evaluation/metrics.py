"""Figures about predictions: accuracies with intervals, calibration errors, and means over classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import f1_score, recall_score

if TYPE_CHECKING:
    from .predictions import Predictions

RESAMPLES = 10_000
LEVEL = 0.95
BINS = 15
IMBALANCED = 1.5


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval, all in per cent."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


@dataclass(frozen=True)
class BaseToNew:
    """Accuracy on base and on new classes, and their harmonic mean H (Xian et al., 2017), in per cent."""

    base: Estimate
    new: Estimate
    harmonic_mean: Estimate

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return the figures as plain numbers."""
        return asdict(self)


def harmonic_mean(base: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return `2 * base * new / (base + new)`, and 0 where both are 0."""
    total = base + new
    return np.divide(2 * base * new, total, out=np.zeros_like(total, dtype=float), where=total > 0)


def base_to_new(base_correct: np.ndarray, new_correct: np.ndarray, seed: int = 0) -> BaseToNew:
    """Summarise which test images each run classified correctly.

    A figure is the mean over the runs; H is the mean of the runs' own harmonic means. The intervals are percentiles
    of a bootstrap that resamples runs and test images, so they cover the choice of shots and of test images. A single
    run (zero-shot CLIP, which has no shots) leaves the images.

    Args:
        base_correct (`np.ndarray`): bool `[S, n]`, S runs on n images of base classes.
        new_correct (`np.ndarray`): bool `[S, m]`, the same S runs on m images of new classes.
        seed (`int`): seed of the bootstrap.

    Raises:
        ValueError: if the numbers of runs differ or anything is empty.
    """
    if base_correct.ndim != 2 or new_correct.ndim != 2 or not base_correct.size or not new_correct.size:
        raise ValueError(f"need non-empty [runs, images] arrays, got {base_correct.shape} and {new_correct.shape}.")
    if len(base_correct) != len(new_correct):
        raise ValueError(f"need the same runs on both halves, got {len(base_correct)} and {len(new_correct)}.")
    rng = np.random.default_rng(seed)
    runs = rng.integers(len(base_correct), size=(RESAMPLES, len(base_correct)))
    return BaseToNew(*(_estimate(*each) for each in _with_h((base_correct, new_correct), runs, rng)))


def gain(
    base_correct: np.ndarray, new_correct: np.ndarray, base_before: np.ndarray, new_before: np.ndarray, seed: int = 0
) -> BaseToNew:
    """Return what runs gained over one other result on the same images, as paired differences in percentage points.

    Each resample of [`base_to_new`]'s bootstrap draws the same images for both, so what they have in common cancels.

    Args:
        base_correct (`np.ndarray`): bool `[S, n]`, S runs on n images of base classes.
        new_correct (`np.ndarray`): bool `[S, m]`, the same S runs on m images of new classes.
        base_before (`np.ndarray`): bool `[n]`, zero-shot CLIP, say, on the same images.
        new_before (`np.ndarray`): bool `[m]`, the same.
        seed (`int`): seed of the bootstrap.

    Raises:
        ValueError: if the numbers of images differ.
    """
    rng = np.random.default_rng(seed)
    runs = rng.integers(len(base_correct), size=(RESAMPLES, len(base_correct)))
    runs = np.column_stack([runs, np.full(RESAMPLES, len(base_correct))])
    both = np.vstack([base_correct, base_before]), np.vstack([new_correct, new_before])
    return BaseToNew(
        *(_estimate(mean[:-1] - mean[-1], drawn[:, :-1] - drawn[:, -1:]) for mean, drawn in _with_h(both, runs, rng))
    )


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Return the ECE of n predictions in per cent: `sum_b |B_b| / n * |accuracy(B_b) - confidence(B_b)|`.

    Bins `(low, high]` of the largest probability have equal width (Guo et al., "On Calibration of Modern Neural
    Networks", 2017, eq. 3).

    Args:
        probabilities (`np.ndarray`): float `[n, C]`.
        labels (`np.ndarray`): int `[n]`.
        bins (`int`): their number.

    Raises:
        ValueError: if there are no predictions, the shapes do not fit, or there is no bin.
    """
    return error_by_width(*_confidence(probabilities, labels, bins), bins)


def adaptive_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Return the same sum in per cent over bins that hold equally many predictions, in the order of confidence.

    Where n is not a multiple of the bins, the first ones hold one more. Predictions of equal confidence stay in the
    order given (Nguyen and O'Connor, "Posterior calibration and exploratory analysis for natural language processing
    models", 2015; used for prompts of CLIP in arXiv 2402.04655).

    Args:
        probabilities (`np.ndarray`): float `[n, C]`.
        labels (`np.ndarray`): int `[n]`.
        bins (`int`): their number; with fewer predictions each has a bin of its own.

    Raises:
        ValueError: if there are no predictions, the shapes do not fit, or there is no bin.
    """
    return error_by_mass(*_confidence(probabilities, labels, bins), bins)


def error_by_width(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error of n predictions, from their confidence and whether they are right."""
    places = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    return _error((places == at for at in range(bins)), confidence, correct)


def error_by_mass(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Return the adaptive calibration error of the same."""
    return _error(np.array_split(np.argsort(confidence, kind="stable"), bins), confidence, correct)


def balanced_accuracy(part: Predictions) -> float:
    """Return the mean recall over the classes that have images, in per cent."""
    return 100 * float(recall_score(part.labels, part.predicted, labels=np.unique(part.labels), average="macro"))


def macro_f1(part: Predictions) -> float:
    """Return the mean F1 over the classes that have images, in per cent.

    A class's F1 is the harmonic mean of its precision and its recall; 0 for a class that the model never chose.
    """
    labels = np.unique(part.labels)
    return 100 * float(f1_score(part.labels, part.predicted, labels=labels, average="macro", zero_division=0))


def class_sizes(part: Predictions) -> tuple[int, int]:
    """Return the fewest and the most images of a class; classes without images do not count."""
    counts = np.unique(part.labels, return_counts=True)[1]
    return int(counts.min()), int(counts.max())


def is_imbalanced(part: Predictions) -> bool:
    """Whether the largest class has more than 1.5 times the images of the smallest; see [`class_sizes`]."""
    fewest, most = class_sizes(part)
    return most > IMBALANCED * fewest


def _confidence(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not probabilities.size:
        raise ValueError(
            f"need probabilities [n, C] and labels [n] of at least one image, got {probabilities.shape} and "
            f"{labels.shape}."
        )
    if bins < 1:
        raise ValueError(f"bins={bins} must be at least 1.")
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == labels


def _error(bins: Iterable[np.ndarray], confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the sum over bins, each of which chooses predictions."""
    gap = correct.astype(float) - confidence
    return 100 * sum(abs(float(gap[chosen].sum())) for chosen in bins) / len(gap)


def _with_h(
    halves: Sequence[np.ndarray], runs: np.ndarray, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the accuracies of the runs `[S]` and of resamples `[resamples, S]`: of both halves, and their H."""
    per_run = [correct.mean(axis=1) for correct in halves]
    resampled = [_resampled_accuracies(correct, runs, rng) for correct in halves]
    return [*zip(per_run, resampled, strict=True), (harmonic_mean(*per_run), harmonic_mean(*resampled))]


def _resampled_accuracies(correct: np.ndarray, runs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the accuracies `[resamples, S]` of resampled runs on resampled images."""
    images = correct.shape[1]  # those that the same runs got right are interchangeable: only their number is drawn
    patterns, counts = np.unique(correct, axis=1, return_counts=True)
    drawn = rng.multinomial(images, counts / images, size=len(runs))
    return np.take_along_axis(drawn @ patterns.T / images, runs, axis=1)


def _estimate(per_run: np.ndarray, resampled: np.ndarray) -> Estimate:
    low, high = np.quantile(resampled.mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(*(100 * float(figure) for figure in (per_run.mean(), low, high)))
