"""Measuring: predictions for labelled images, accuracies with intervals, tables."""

from .intervals import BaseToNew, Estimate, base_to_new, gain, harmonic_mean
from .predictions import Predictions, predict_labelled
from .tables import balanced_accuracy, class_sizes, is_imbalanced, macro_f1

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
