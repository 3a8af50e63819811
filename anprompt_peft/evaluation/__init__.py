"""Measuring: predictions for labelled images, accuracies with intervals, tables."""

from .intervals import BaseToNew, Estimate, base_to_new, gain, harmonic_mean
from .predictions import Predictions, predict_labelled

__all__ = ["BaseToNew", "Estimate", "Predictions", "base_to_new", "gain", "harmonic_mean", "predict_labelled"]
