"""What a model says about labelled images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import RandomSampler
from tqdm import tqdm

from ..method.features import evaluating
from ..tuner import adapted_clip
from .metrics import balanced_accuracy, error_by_mass, error_by_width, macro_f1
from .task import Fitted, Part


class LogitsError(ValueError):
    """Logits do not fit, or are not finite."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model said about n labelled images of C classes.

    Args:
        name (`str`): what the images are, for headings: `"base"`, `"new"`, `"test"`.
        class_names (`Sequence[str]`): the C classes, in label order.
        labels (`np.ndarray`): int `[n]`, the true classes.
        predicted (`np.ndarray`): int `[n]`, the classes the model chose.
        probabilities (`np.ndarray`, *optional*): float `[n, C]`, shown beside example images, and used to choose them.
        image (`Callable[[int], Image]`, *optional*): gives the image of row i; without it no images are shown.
        sources (`Sequence[str]`, *optional*): n file names or other addresses, shown beside example images.
        confidence (`np.ndarray`, *optional*): float `[n]`, the probabilities of the predicted classes. Default: from
            all probabilities, if these are given.

    Raises:
        ValueError: if there are no images, the shapes do not fit, or a class lies outside the names.
    """

    name: str
    class_names: Sequence[str]
    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray | None = None
    image: Callable[[int], Image.Image] | None = None
    sources: Sequence[str] | None = None
    confidence: np.ndarray | None = None

    def __post_init__(self) -> None:
        count, classes = len(self.labels), len(self.class_names)
        if not count:
            raise ValueError(f"the predictions {self.name!r} have no images: a report needs at least one.")
        for field_name, ids in (("labels", self.labels), ("predicted", self.predicted)):
            if ids.shape != (count,) or ids.dtype.kind not in "iu":
                raise ValueError(f"{field_name} must be {count} integers, got {ids.dtype} of shape {ids.shape}.")
            if ids.min() < 0 or ids.max() >= classes:
                raise ValueError(
                    f"{field_name} must lie between 0 and {classes - 1} for {classes} class names, got values from "
                    f"{ids.min()} to {ids.max()}."
                )
        if self.probabilities is not None and self.probabilities.shape != (count, classes):
            raise ValueError(f"probabilities must have shape {(count, classes)}, got {self.probabilities.shape}.")
        if self.sources is not None and len(self.sources) != count:
            raise ValueError(f"sources must name all {count} images, got {len(self.sources)}.")
        if self.confidence is None and self.probabilities is not None:
            object.__setattr__(self, "confidence", self.probabilities.max(axis=1))

    @classmethod
    def of(cls, name: str, class_names: Sequence[str], labels: np.ndarray, logits: Tensor, *shown: Any) -> Predictions:
        """Return the predictions of logits `[n, C]`, with probabilities by a softmax in float64."""
        probabilities = logits.detach().cpu().double().softmax(dim=-1).numpy()
        return cls(name, class_names, labels, probabilities.argmax(axis=1), probabilities, *shown)

    @property
    def hits(self) -> np.ndarray:
        """Whether each image was classified correctly, bool `[n]`."""
        return self.labels == self.predicted

    @property
    def accuracy(self) -> float:
        """Share of the images that were classified correctly, in per cent."""
        return 100 * float(self.hits.mean())

    @property
    def balanced_accuracy(self) -> float:
        """See [`balanced_accuracy`][anprompt_peft.evaluation.balanced_accuracy]."""
        return balanced_accuracy(self)

    @property
    def macro_f1(self) -> float:
        """See [`macro_f1`][anprompt_peft.evaluation.macro_f1]."""
        return macro_f1(self)

    @property
    def ece(self) -> float:
        """Expected calibration error in per cent; needs the confidence."""
        return error_by_width(self._confidence, self.hits)

    @property
    def adaptive_ece(self) -> float:
        """The same over bins of equally many images."""
        return error_by_mass(self._confidence, self.hits)

    @property
    def _confidence(self) -> np.ndarray:
        if self.confidence is None:
            raise ValueError(f"the predictions {self.name!r} have no probabilities, which calibration needs.")
        return self.confidence


def predict_part(
    fitted: Fitted, part: Part, image: Callable[[int], Image.Image] | None = None, sources: Sequence[str] | None = None
) -> Predictions:
    """Ask a method about the images of a part; raise [`LogitsError`] unless its logits are `[n, C]` and finite."""
    logits, shape = fitted.logits(part.images, part.classes), (len(part.images), len(part.classes.names))
    if tuple(logits.shape) != shape:
        raise LogitsError(f"the logits for part {part.name!r} have shape {tuple(logits.shape)}, not {shape}.")
    if not torch.isfinite(logits).all():
        raise LogitsError(f"the logits for images of {part.name} hold NaN or infinity: no figure is right.")
    return Predictions.of(part.name, part.classes.names, part.images.labels.numpy(), logits, image, sources)


@torch.no_grad()
def predict_labelled(
    model: Any,
    batches: Iterable[Mapping[str, Tensor]],
    name: str,
    image: Callable[[int], Image.Image] | None = None,
    sources: Sequence[str] | None = None,
) -> Predictions:
    """Classify labelled images among the model's current classes.

    Inside `with model.disable_adapter():` it is the zero-shot CLIP that answers.

    Args:
        model (`PeftModel` or `AdaptedModel`): in any mode; each of its modules is left in the mode it was in.
        batches (`Iterable`): a `DataLoader` that does not shuffle, or any batches with `pixel_values` `[B, 3, H, W]`
            and `labels`, int64 `[B]`.
        name (`str`): what the images are: `"base"`, `"new"`, `"test"`.
        image (`Callable[[int], Image]`, *optional*): gives the image of row i, `lambda row: dataset[row]["image"]`.
        sources (`Sequence[str]`, *optional*): their file names.

    Raises:
        TypeError: if the model carries no ANPrompt adapter.
        ValueError: if the loader shuffles, or there are no images.
    """
    clip = adapted_clip(model)
    if isinstance(getattr(batches, "sampler", None), RandomSampler):
        raise ValueError("The loader shuffles, so rows would not match their images. Build it with shuffle=False.")
    labels, logits = [], []
    with evaluating(model):
        for batch in tqdm(batches, desc=f"predicting {name}", unit="batch"):
            labels.append(batch["labels"].cpu())
            logits.append(model(pixel_values=batch["pixel_values"].to(clip.device)).logits.cpu())
    if not logits:
        raise ValueError(f"There are no images in the batches of {name!r}.")
    return Predictions.of(name, clip.class_names, torch.cat(labels).numpy(), torch.cat(logits), image, sources)
