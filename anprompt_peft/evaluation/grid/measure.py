"""One cell: fit the method to the shots, and measure it on the parts of the task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from operator import attrgetter
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd

from ...method.class_texts import composed
from ..backbone import Backbone
from ..metrics import harmonic_mean
from ..peers.training import optimized_tensors
from ..predictions import Predictions, predict_part
from ..robustness import (
    IMAGE_FAMILIES,
    PHRASING,
    UNDECIDED,
    UNDECIDED_FORMS,
    measure_robustness,
    phrasing_families,
    text_families,
)
from ..robustness.curves import Family, at_greatest
from ..task import Fitted, Part, Task
from .cells import Cell

BASE_AND_NEW = ("base", "new")
METRICS: Mapping[str, Callable[[Predictions], float]] = {
    "accuracy": attrgetter("accuracy"),
    "images": lambda found: len(found.labels),
    "ECE": attrgetter("ece"),
    "adaptive ECE": attrgetter("adaptive_ece"),
}
PHRASING_METRICS = {PHRASING: "accuracy under phrasing", UNDECIDED: "accuracy, class undecided"}
H_UNDER_PHRASING = "H under phrasing"


def measure(cell: Cell, backbone: Backbone, task: Task) -> tuple[dict[str, Any], dict[str, Predictions]]:
    """Fit a cell's method and measure it: what its record says, in per cent, and predictions without probabilities."""
    with optimized_tensors() as tensors:
        started = perf_counter()
        fitted = cell.method.fit(backbone, task.shots, task.classes, cell.seed)
        seconds = perf_counter() - started
    found = {part.name: replace(predict_part(fitted, part), probabilities=None) for part in task.parts}
    rows = [_row(name, metric, figure(each)) for name, each in found.items() for metric, figure in METRICS.items()]
    if tuple(found) == BASE_AND_NEW:
        base, new = (np.array(each.accuracy) for each in found.values())
        rows.append(_row(" and ".join(BASE_AND_NEW), "H", float(harmonic_mean(base, new))))
    perturbed = list(perturbed_rows(cell, fitted, task))
    rows += phrased_rows(cell.setup.robustness, task.parts, perturbed)
    parts = [
        {"name": part.name, "images": len(part.images), "classes": list(part.classes.names)} for part in task.parts
    ]
    return {
        "parts": parts,
        "fit_seconds": seconds,
        "saved_bytes": sum(each.numel() * each.element_size() for each in getattr(fitted, "saved", {}).values()),
        "learnable_parameters": sum(tensor.numel() for tensor in tensors.values()) or None,
        "rows": rows,
        "robustness": perturbed,
        **({"chosen": dict(chosen)} if (chosen := getattr(fitted, "chosen", None)) else {}),
    }, found


def perturbed_rows(cell: Cell, fitted: Fitted, task: Task) -> Iterator[dict[str, Any]]:
    """Yield the tidy figures under the perturbations that a cell asks for. Their draws depend on the seed alone."""
    for part in task.parts if cell.setup.robustness else ():
        chosen = choose_families(cell.setup.robustness, part.synonyms, synonyms_in_all(task.parts))
        for record in measure_robustness({cell.name: fitted}, part, chosen, cell.seed, progress=False).records:
            row = asdict(record)
            del row["method"]
            yield row


def phrased_rows(
    asked: Sequence[str], parts: Sequence[Part], perturbed: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield the accuracies of parts under the groups `phrasing` and `undecided` that are asked for, and H under the
    former: each form weighs the same, by the mean of its draws at its greatest strength."""
    for group in (each for each in PHRASING_METRICS if each in asked):
        forms = [family.name for family in choose_families([group], parts[0].synonyms, synonyms_in_all(parts))]
        by_form = at_greatest(pd.DataFrame(perturbed), ["part", "family"])
        accuracies = {part.name: float(by_form[part.name][forms].mean()) for part in parts}
        yield from (_row(name, PHRASING_METRICS[group], value) for name, value in accuracies.items())
        if group == PHRASING and tuple(accuracies) == BASE_AND_NEW:
            base, new = map(np.array, accuracies.values())
            yield _row(" and ".join(BASE_AND_NEW), H_UNDER_PHRASING, float(harmonic_mean(base, new)))


def choose_families(
    names: Sequence[str], synonyms: Mapping[str, Sequence[str]] | None = None, synonyms_are_a_form: bool = True
) -> list[Family]:
    """Return families of perturbations by their names, each once.

    `text` and `image` stand for all of a kind, `phrasing` for the forms that leave the class decided, synonyms among
    them if there are any, and `undecided` for those that do not.
    """
    phrasing = phrasing_families(synonyms if synonyms_are_a_form else None)
    groups: dict[str, Sequence[Family]] = {
        "text": text_families(synonyms),
        "image": IMAGE_FAMILIES,
        PHRASING: phrasing,
        UNDECIDED: UNDECIDED_FORMS,
    }
    families = {**groups, **{each.name: [each] for group in groups.values() for each in group}}
    if unknown := [name for name in names if name not in families]:
        raise ValueError(f"robustness={unknown} must be of {', '.join(families)}.")
    return list({family.name: family for name in names for family in families[name]}.values())


def synonyms_in_all(parts: Sequence[Part]) -> bool:
    """Whether classes of every part have synonyms; only then are these a form of phrasing, the same for all parts."""
    known = ({composed(name) for name, others in part.synonyms.items() if others} for part in parts)
    return all(each.intersection(part.classes.names) for each, part in zip(known, parts, strict=True))


def _row(part: str, metric: str, value: float) -> dict[str, Any]:
    return {"part": part, "metric": metric, "value": value}
