"""What a fitted method answers for the images of a part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .calibration import adaptive_calibration_error, expected_calibration_error
from .peers.protocol import Fitted
from .task import Part


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers for n images, and figures about them in per cent.

    Attributes:
        labels (`np.ndarray`): int64 `[n]`, the true classes.
        predicted (`np.ndarray`): int64 `[n]`, the most probable classes.
        confidence (`np.ndarray`): float32 `[n]`, their probabilities.
        accuracy (`float`): share of the images whose predicted class is the true one.
        ece (`float`): expected calibration error.
        adaptive_ece (`float`): the same with bins of equally many images.
    """

    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    accuracy: float
    ece: float
    adaptive_ece: float

    @classmethod
    def of(cls, fitted: Fitted, part: Part) -> Answers:
        """Ask a method for its logits; a softmax in float64 gives the probabilities.

        Raises:
            ValueError: if the logits are not `[n, C]`, or not finite.
        """
        logits, shape = fitted.logits(part.images, part.classes), (len(part.images), len(part.classes.names))
        if tuple(logits.shape) != shape:
            raise ValueError(f"the logits for part {part.name!r} have shape {tuple(logits.shape)}, not {shape}.")
        if not torch.isfinite(logits).all():
            raise ValueError(f"the logits for part {part.name!r} are not all finite.")
        probabilities, labels = logits.detach().cpu().double().softmax(-1).numpy(), part.images.labels.numpy()
        predicted = probabilities.argmax(axis=1)
        return cls(
            labels,
            predicted,
            probabilities.max(axis=1).astype(np.float32),
            100 * float((labels == predicted).mean()),
            expected_calibration_error(probabilities, labels),
            adaptive_calibration_error(probabilities, labels),
        )
