"""Accuracy, flips and calibration over the strength of perturbations, for several methods on the same draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import Any, Protocol

import numpy as np
import pandas as pd
from tqdm import tqdm

from ..predictions import Predictions, predict_part
from ..task import Fitted, Part


class Family(Protocol):
    """A way to perturb a part, in several strengths: [`TextFamily`] or [`ImageFamily`]."""

    @property
    def name(self) -> str:
        """For records and headings."""

    @property
    def kind(self) -> str:
        """Families of one kind belong together."""

    @property
    def strengths(self) -> tuple[float, ...]:
        """Increasing, above 0."""

    @property
    def unit(self) -> str:
        """What a strength is."""

    @property
    def draws(self) -> int:
        """How often each strength is drawn."""

    def perturbed(self, part: Part, strength: float, draw: int, seed: int) -> Part:
        """Return the part with other texts or images."""


@dataclass(frozen=True)
class Record:
    """One figure, in per cent.

    Attributes:
        method (`str`): whose.
        part (`str`): on which images.
        family (`str`): how they, or the texts, were perturbed.
        strength (`float`): how much; 0 is not at all, and has one draw.
        draw (`int`): which draw.
        metric (`str`): `accuracy`; `flip rate`, the share of images whose answer is another than at strength 0; `ECE`;
            or `adaptive ECE`.
        value (`float`): the figure.
    """

    method: str
    part: str
    family: str
    strength: float
    draw: int
    metric: str
    value: float


@dataclass(frozen=True)
class Level:
    """What the draws of one strength give, in per cent or points.

    Attributes:
        strength (`float`): 0 is not perturbed.
        accuracy (`float`): mean over the draws.
        worst (`float`): accuracy of the worst draw.
        deviation (`float`): of the draws' accuracies, with n - 1; 0 for one draw.
        drop (`float`): points of mean accuracy lost since strength 0.
        relative_drop (`float`, *optional*): the same in per cent of the accuracy at strength 0, if that is not 0.
        flip_rate (`float`): mean over the draws.
        ece (`float`): mean over the draws.
        adaptive_ece (`float`): mean over the draws.
    """

    strength: float
    accuracy: float
    worst: float
    deviation: float
    drop: float
    relative_drop: float | None
    flip_rate: float
    ece: float
    adaptive_ece: float


@dataclass(frozen=True)
class Curve:
    """How one method fares on one part under one family.

    Attributes:
        method (`str`): whose curve.
        part (`str`): on which images.
        family (`str`): which perturbation.
        kind (`str`): the family's.
        unit (`str`): what a strength is.
        area (`float`): below the mean accuracy, from strength 0 to the greatest by the trapezoidal rule, divided by
            that strength: a mean accuracy in per cent.
        levels (`tuple[Level, ...]`): strength 0 first.
    """

    method: str
    part: str
    family: str
    kind: str
    unit: str
    area: float
    levels: tuple[Level, ...]


@dataclass(frozen=True)
class Robustness:
    """What [`measure_robustness`] found on one part.

    Attributes:
        part (`str`): its name.
        images (`int`): their number.
        seed (`int`): of all random numbers.
        records (`tuple[Record, ...]`): every figure.
        curves (`tuple[Curve, ...]`): their summary, family by family and method by method.
    """

    part: str
    images: int
    seed: int
    records: tuple[Record, ...]
    curves: tuple[Curve, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


def measure_robustness(
    methods: Mapping[str, Fitted], part: Part, families: Sequence[Family], seed: int = 0, progress: bool = True
) -> Robustness:
    """Measure methods on the same perturbed texts and images.

    Every perturbed part is made once for all methods, so they share its decoded images and what they keep for them.

    Args:
        methods (`Mapping[str, Fitted]`): by name, zero-shot CLIP among them.
        part (`Part`): images, and the clean texts of their classes.
        families (`Sequence[Family]`): how to perturb.
        seed (`int`): of all random numbers.
        progress (`bool`): show a progress bar.

    Raises:
        ValueError: if there is no method or image, or logits do not fit or are not finite.
    """
    if not methods or not len(part.images):
        raise ValueError(f"need at least one method and one image, got {list(methods)} and {len(part.images)} images.")

    def ask(changed: Part) -> dict[str, Predictions]:
        return {name: predict_part(fitted, changed) for name, fitted in methods.items()}

    def record(family: Family, strength: float, draw: int, found: Mapping[str, Predictions]) -> None:
        for name, each in found.items():
            figures = _figures(each, clean[name]).items()
            records.extend(Record(name, part.name, family.name, strength, draw, *figure) for figure in figures)

    clean, records = ask(part), list[Record]()
    total = sum(len(family.strengths) * family.draws for family in families)
    with tqdm(total=total, desc=f"robustness of {part.name}", unit="draw", disable=not progress) as bar:
        for family in families:
            record(family, 0, 0, clean)
            for strength, draw in product(family.strengths, range(family.draws)):
                record(family, strength, draw, ask(family.perturbed(part, strength, draw, seed)))
                bar.update()
    return Robustness(part.name, len(part.images), seed, tuple(records), tuple(summarise(records, families)))


def summarise(records: Sequence[Record], families: Sequence[Family]) -> list[Curve]:
    """Summarise records as one curve per method, part and family, in the order in which the records name them.

    Args:
        records (`Sequence[Record]`): with strength 0.
        families (`Sequence[Family]`): at least those of the records.
    """
    known = {family.name: family for family in families}
    names = [field.name for field in fields(Record)]
    rows = pd.DataFrame(records, columns=names, dtype=object).astype({"value": float})
    curves = []
    for (part, family, method), group in rows.groupby(["part", "family", "method"], sort=False):
        figures = _figures_by_strength(group)
        strengths = sorted(set(group["strength"]))  # integers stay so, which they do not in an index
        levels = tuple(map(Level, strengths, *(figures[name] for name in figures)))
        area = area_below(figures["accuracy"])
        curves.append(Curve(method, part, family, known[family].kind, known[family].unit, area, levels))
    return curves


def areas(rows: pd.DataFrame, by: Sequence[str]) -> pd.Series:
    """Return the areas below the mean accuracy of the draws over the strength, by some columns.

    Args:
        rows (`pd.DataFrame`): strength, metric and value of each draw, and what they are grouped by.
        by (`Sequence[str]`): columns.
    """
    accuracies = rows[rows["metric"] == "accuracy"].sort_values("strength", kind="stable")
    levels = accuracies.groupby([*by, "strength"], sort=False)["value"].agg(mean)
    return levels.groupby(by, sort=False).agg(area_below)


def at_greatest(rows: pd.DataFrame, by: Sequence[str]) -> pd.Series:
    """Return the mean accuracy of the draws of the greatest strength, by some columns.

    Args:
        rows (`pd.DataFrame`): as for [`areas`].
        by (`Sequence[str]`): columns.
    """
    accuracies = rows[rows["metric"] == "accuracy"]
    greatest = accuracies.groupby(by)["strength"].transform("max")
    return accuracies[accuracies["strength"] == greatest].groupby(by, sort=False)["value"].agg(mean)


def area_below(accuracies: pd.Series) -> float:
    """Return the area below accuracies, indexed by at least two increasing strengths, divided by their range."""
    strengths = accuracies.index.get_level_values("strength").to_numpy(float)
    return float(np.trapezoid(accuracies.to_numpy(), strengths)) / (strengths[-1] - strengths[0])


def mean(values: pd.Series) -> float:
    """Return NumPy's mean: that of pandas' groups is rounded otherwise, and digits of tables would change."""
    return float(values.to_numpy().mean())


def _figures(found: Predictions, clean: Predictions) -> dict[str, float]:
    """Return the figures of perturbed predictions beside the clean ones, by metric."""
    flips = 100 * float((found.predicted != clean.predicted).mean())
    return {"accuracy": found.accuracy, "flip rate": flips, "ECE": found.ece, "adaptive ECE": found.adaptive_ece}


def _figures_by_strength(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the figures of [`Level`], in its order, of one curve's records."""
    means = rows.groupby(["strength", "metric"])["value"].agg(mean).unstack()
    accuracies = rows[rows["metric"] == "accuracy"].groupby("strength")["value"]
    accuracy = means["accuracy"]
    clean = accuracy.iloc[0]
    return pd.DataFrame(
        {
            "accuracy": accuracy,
            "worst": accuracies.min(),
            "deviation": accuracies.agg(lambda draws: np.std(draws.to_numpy(), ddof=1) if len(draws) > 1 else 0.0),
            "drop": clean - accuracy,
            "relative drop": 100 * (clean - accuracy) / clean if clean else None,
            **{metric: means[metric] for metric in ("flip rate", "ECE", "adaptive ECE")},
        }
    )
