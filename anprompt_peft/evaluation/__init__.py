"""Measuring: predictions for labelled images, accuracies with intervals, tables."""

from .metrics import (
    BaseToNew,
    Estimate,
    balanced_accuracy,
    base_to_new,
    class_sizes,
    gain,
    harmonic_mean,
    is_imbalanced,
    macro_f1,
)
from .predictions import Predictions, predict_labelled

__all__ = [
    "BaseToNew",
    "Estimate",
    "Predictions",
    "balanced_accuracy",
    "base_to_new",
    "class_sizes",
    "gain",
    "harmonic_mean",
    "is_imbalanced",
    "macro_f1",
    "predict_labelled",
]
