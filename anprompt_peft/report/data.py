"""What a report is made of: plain records, checked when they are built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np

from ..evaluation.predictions import Predictions
from ..evaluation.robustness import Robustness

LOSS = "loss"
NOT_LOSSES = ("epoch", "step", "grad_norm", "learning_rate", "num_input_tokens_seen")  # Trainer logs them beside it


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
        history (`Sequence[Mapping]`): records such as Trainer's `log_history`, with an `epoch` or `step`. Every number
            beside a `loss`, but what Trainer logs itself, is a loss term. They are shown with their values on
            evaluation images, `eval_*`; other records and entries are ignored.
        geometry (`Geometry`, *optional*): for the picture of the text features.
        settings (`Mapping`): what was trained, most important first: base model, adapter settings, seed. Of absolute
            paths only the last name is shown.
        provenance (`Mapping`): from [`~anprompt_peft.provenance.provenance`].
        notes (`Sequence[str]`): sentences a reader must know to understand the figures.
        robustness (`Sequence[Robustness]`): from [`~anprompt_peft.evaluation.robustness.measure_robustness`], one per
            set of images.
        method (`str`): what the predictions are of.
        probe (`Sequence[Predictions]`): what a linear probe that learned from the same shots says about the same
            images.

    Raises:
        ValueError: if there are more than two sets of predictions, or `zero_shot` or `probe` is about other images.
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
    method: str = "ANPrompt"
    probe: Sequence[Predictions] = ()

    def __post_init__(self) -> None:
        if len(self.predictions) > 2:
            raise ValueError(
                f"predictions must be one set or two (base, new), got {[part.name for part in self.predictions]}."
            )
        for name, others in {"zero_shot": self.zero_shot, "probe": self.probe}.items():
            same = len(others) == len(self.predictions) and all(
                np.array_equal(ours.labels, theirs.labels) and list(ours.class_names) == list(theirs.class_names)
                for ours, theirs in zip(self.predictions, others, strict=True)
            )
            if others and not same:
                raise ValueError(
                    f"{name} must be about the same images and classes as predictions, in the same order."
                )


@dataclass(frozen=True)
class Plane:
    """Points `[n, 2]` by kind in the plane of two principal components, and the shares of variance these explain."""

    points: dict[str, np.ndarray]
    explained: tuple[float, float]

    def titles(self, class_names: Sequence[str], kind: str) -> list[str]:
        """Return what the points of a kind are called."""
        if kind == "noise prompt":
            return [f"{kind} {row + 1}" for row in range(len(self.points[kind]))]
        return [f"{name}, {kind}" for name in class_names]


def project(geometry: Geometry) -> Plane:
    """Project all points of a geometry on their two first principal components.

    The signs are those of scikit-learn: in each component the loading of the largest absolute value is positive.
    """
    from sklearn.decomposition import PCA  # takes a second

    kinds = {
        "perturbed": geometry.perturbed,
        "clean": geometry.clean,
        "prompted": geometry.prompted,
        "noise prompt": geometry.noise_prompts,
    }
    given = {kind: rows for kind, rows in kinds.items() if rows is not None and len(rows)}
    pca = PCA(2, svd_solver="full").fit(np.concatenate(list(given.values())))
    first, second = pca.explained_variance_ratio_.tolist()
    return Plane({kind: pca.transform(rows) for kind, rows in given.items()}, (first, second))


@dataclass(frozen=True)
class LossTable:
    """Values by name at each `time`, `epoch` or `step`; `columns` says which term a name is, such as `eval_loss`."""

    time: str
    columns: dict[str, str]
    rows: list[dict[str, float]]

    @property
    def terms(self) -> list[str]:
        """The terms, `loss` first."""
        return list(dict.fromkeys(self.columns.values()))

    def values(self, name: str) -> list[float]:
        """Return the values of a column."""
        return [row[name] for row in self.rows if name in row]


def loss_table(history: Sequence[Mapping[str, Any]]) -> LossTable | None:
    """Collect the loss terms of Trainer's log, whatever their names; `None` if it holds none.

    Raises:
        ValueError: if the records with loss terms cannot be placed in time.
    """
    logged = dict.fromkeys(name for record in history for name, value in record.items() if isinstance(value, Real))
    beside = {name for record in history if LOSS in record for name in record} - {LOSS, *NOT_LOSSES}
    terms = [LOSS, *(name for name in logged if name in beside and not name.startswith(("eval_", "train_")))]
    columns = {name: name for name in terms if name in logged}
    columns |= {name: term for name in logged if (term := _evaluated(name, terms))}
    records = [record for record in history if any(name in record for name in columns)]
    if not records:
        return None
    time = next((key for key in ("epoch", "step") if all(key in record for record in records)), None)
    if time is None:
        raise ValueError("every record of the loss history must have an 'epoch', or every one a 'step'.")
    rows: dict[float, dict[str, float]] = {}
    for record in records:
        values = {name: record[name] for name in columns if name in record}
        rows.setdefault(record[time], {time: record[time]}).update(values)
    return LossTable(time, columns, [rows[at] for at in sorted(rows)])


def _evaluated(name: str, terms: Sequence[str]) -> str | None:
    """Return the term that a name says of evaluation images, such as `eval_loss`, or `eval_new_loss` of one set."""
    exact = name.removeprefix("eval_")
    if exact == name:
        return None
    return exact if exact in terms else next((term for term in terms if exact.endswith(f"_{term}")), None)
