"""What a method must implement to be measured beside the others."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..backbone import Backbone
from ..task import ClassTexts, ImageSet


class Fitted(Protocol):
    """A method after it has learned from the shots."""

    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        """Return the logits of n images for any C classes, learned or not: at least float32 `[n, C]`, on the CPU.

        A softmax over them gives the method's probabilities.
        """


class Method(Protocol):
    """A way to adapt CLIP. An implementation is a frozen dataclass whose fields are its settings."""

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> Fitted:
        """Learn from labelled images.

        Args:
            backbone (`Backbone`): must be left as it is; `backbone.copy()` gives a CLIP to change.
            shots (`ImageSet`): labels are positions in the classes.
            classes (`ClassTexts`): the classes to learn.
            seed (`int`): of all random numbers; the same seed gives the same result on the same machine.
        """
