"""Stratified folds of labelled images, some of whose classes may have fewer images than there are folds."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.model_selection import StratifiedKFold


def stratified_folds(labels: np.ndarray, number: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows to learn from and those left out, int64, of each of so many folds of labels `[n]`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer images than folds
        return list(StratifiedKFold(number, shuffle=True, random_state=seed).split(labels, labels))
