"""The accuracy that `ANPromptTrainer` reports unless it is given another metric."""

from __future__ import annotations

import math

import torch
from transformers import EvalPrediction

from ..clip import IGNORED
from ..publish.non_finite import NonFiniteError


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Return the share of images whose most likely class is the right one, for Trainer's `compute_metrics`.

    Images with the label -100 do not count. With `eval_do_concat_batches=False` predictions are lists of batches.

    Raises:
        NonFiniteError: if a logit is NaN or infinite.
    """
    return _share(*_count_right(prediction))


class Accuracy:
    """[`accuracy`] that can also count batch by batch, as `batch_eval_metrics=True` asks for."""

    def __init__(self) -> None:
        self._right = self._images = 0

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Count a batch, or all images; with `compute_result` return the accuracy and reset."""
        right, images = _count_right(prediction)
        self._right, self._images = self._right + right, self._images + images
        if not compute_result:
            return {}
        share = _share(self._right, self._images)
        self._right = self._images = 0
        return share


def _count_right(prediction: EvalPrediction) -> tuple[int, int]:
    logits, labels = prediction.predictions, prediction.label_ids
    if isinstance(logits, list):
        batches = [_count_right(EvalPrediction(*batch)) for batch in zip(logits, labels, strict=True)]
        return sum(right for right, _ in batches), sum(images for _, images in batches)
    logits, labels = (torch.as_tensor(each[0] if isinstance(each, tuple) else each) for each in (logits, labels))
    if not logits.isfinite().all():
        raise NonFiniteError("The model's logits hold NaN or infinity, so there is no accuracy.")
    counted = labels != IGNORED
    return int(((logits.argmax(dim=-1) == labels) & counted).sum()), int(counted.sum())


def _share(right: int, images: int) -> dict[str, float]:
    return {"accuracy": right / images if images else math.nan}
