"""What a report is made of: plain records, checked when they are built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..evaluation.predictions import Predictions
from ..evaluation.robustness import Robustness


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
    """Everything a report shows. The page omits what is left out.

    Args:
        title (`str`): the page's heading.
        predictions (`Sequence[Predictions]`): one set of test images, or two: base classes, then new ones.
        zero_shot (`Sequence[Predictions]`): what the frozen CLIP says about the same images, to compare with.
        history (`Sequence[Mapping]`): records such as Trainer's `log_history`, with loss terms by name (`loss`,
            `cross_entropy_class`, ..., and `eval_*`) and an `epoch` or `step`. Other records and entries are ignored.
        geometry (`Geometry`, *optional*): for the picture of the text features.
        settings (`Mapping`): what was trained, most important first: base model, adapter settings, seed. Of absolute
            paths only the last name is shown.
        provenance (`Mapping`): from [`~anprompt_peft.provenance.provenance`].
        notes (`Sequence[str]`): sentences a reader must know to understand the figures.
        robustness (`Sequence[Robustness]`): from [`~anprompt_peft.evaluation.robustness.measure_robustness`], one per
            set of images.

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
    robustness: Sequence[Robustness] = ()

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
