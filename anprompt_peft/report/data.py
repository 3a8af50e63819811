"""What a report is made of: plain records, checked when they are built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image


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

    @property
    def hits(self) -> np.ndarray:
        """Whether each image was read right, bool `[n]`."""
        return self.labels == self.predicted


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where the texts of an adapter's C classes lie in CLIP's joint space of dimension d.

    Args:
        class_names (`Sequence[str]`): the C classes.
        clean (`np.ndarray`): `[C, d]`, text features of the frozen CLIP.
        prompted (`np.ndarray`): `[C, d]`, text features with the adapter's prompts in.
        perturbed (`np.ndarray`, *optional*): `[C, d]`, clean features moved by noise.
        noise_prompts (`np.ndarray`, *optional*): `[K, d]`.
        note (`str`): a sentence shown below the plot, such as why something is missing.

    Raises:
        ValueError: if the shapes do not fit.
    """

    class_names: Sequence[str]
    clean: np.ndarray
    prompted: np.ndarray
    perturbed: np.ndarray | None = None
    noise_prompts: np.ndarray | None = None
    note: str = ""

    def __post_init__(self) -> None:
        shape = (len(self.class_names), self.clean.shape[-1])
        for field_name in ("clean", "prompted", "perturbed"):
            features = getattr(self, field_name)
            if features is not None and features.shape != shape:
                raise ValueError(f"{field_name} must have shape {shape} (classes, dimension), got {features.shape}.")
        if self.noise_prompts is not None and self.noise_prompts.shape[1:] != shape[1:]:
            raise ValueError(f"noise_prompts must have shape (K, {shape[1]}), got {self.noise_prompts.shape}.")


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything a report shows. What is left out is left out of the page.

    Args:
        title (`str`): the page's heading.
        predictions (`Sequence[Predictions]`): one set of test images, or two: base classes, then new ones.
        zero_shot (`Sequence[Predictions]`): what the frozen CLIP says about the same images, to compare with.
        history (`Sequence[Mapping]`): records such as Trainer's `log_history`, with loss terms by name (`loss`,
            `cross_entropy_class`, ..., and `eval_*`) and an `epoch` or `step`. Other records and entries are ignored.
        geometry (`Geometry`, *optional*): for the picture of the text features.
        settings (`Mapping`): what was trained, most important first: base model, adapter settings, seed.
        provenance (`Mapping`): from [`~anprompt_peft.provenance.provenance`].
        notes (`Sequence[str]`): sentences a reader must know to understand the figures.

    Raises:
        ValueError: if there are more than two sets of predictions, or `zero_shot` is about other images.
    """

    title: str
    predictions: Sequence[Predictions] = ()
    zero_shot: Sequence[Predictions] = ()
    history: Sequence[Mapping[str, Any]] = ()
    geometry: Geometry | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if len(self.predictions) > 2:
            raise ValueError(
                f"predictions must be one set or two (base, new), got {[part.name for part in self.predictions]}."
            )
        if not self.zero_shot:
            return
        same = len(self.zero_shot) == len(self.predictions) and all(
            np.array_equal(ours.labels, theirs.labels) and list(ours.class_names) == list(theirs.class_names)
            for ours, theirs in zip(self.predictions, self.zero_shot, strict=True)
        )
        if not same:
            raise ValueError("zero_shot must be about the same images and classes as predictions, in the same order.")
