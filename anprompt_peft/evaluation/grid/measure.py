"""One cell: fit the method to the shots, and measure it on the parts of the task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from operator import attrgetter
from time import perf_counter
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..backbone import Backbone
from ..metrics import harmonic_mean
from ..predictions import Predictions, predict_part
from ..robustness import IMAGE_FAMILIES, measure_robustness, text_families
from ..robustness.curves import Family
from ..task import Fitted, Task
from .cells import Cell

BASE_AND_NEW = ("base", "new")
METRICS: Mapping[str, Callable[[Predictions], float]] = {
    "accuracy": attrgetter("accuracy"),
    "images": lambda found: len(found.labels),
    "ECE": attrgetter("ece"),
    "adaptive ECE": attrgetter("adaptive_ece"),
}


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
    parts = [
        {"name": part.name, "images": len(part.images), "classes": list(part.classes.names)} for part in task.parts
    ]
    return {
        "parts": parts,
        "fit_seconds": seconds,
        "learnable_parameters": sum(tensor.numel() for tensor in tensors.values()) or None,
        "rows": rows,
        "robustness": list(perturbed_rows(cell, fitted, task)),
    }, found


@contextmanager
def optimized_tensors() -> Iterator[dict[int, Tensor]]:
    """Give all tensors that torch's optimizers change in a block, by their ids."""
    tensors: dict[int, Tensor] = {}

    def collect(optimizer: Optimizer, *_: Any) -> None:
        tensors.update((id(each), each) for group in optimizer.param_groups for each in group["params"])

    handle = register_optimizer_step_pre_hook(collect)
    try:
        yield tensors
    finally:
        handle.remove()


def perturbed_rows(cell: Cell, fitted: Fitted, task: Task) -> Iterator[dict[str, Any]]:
    """Yield the tidy figures under the perturbations that a cell asks for. Their draws depend on the seed alone."""
    for part in task.parts if cell.setup.robustness else ():
        chosen = choose_families(cell.setup.robustness, part.synonyms)
        for record in measure_robustness({cell.name: fitted}, part, chosen, cell.seed, progress=False).records:
            row = asdict(record)
            del row["method"]
            yield row


def choose_families(names: Sequence[str], synonyms: Mapping[str, Sequence[str]] | None = None) -> list[Family]:
    """Return families of perturbations by their names; `text` and `image` stand for all of a kind."""
    groups: dict[str, list[Any]] = {"text": list(text_families(synonyms)), "image": list(IMAGE_FAMILIES)}
    families = groups | {each.name: [each] for group in groups.values() for each in group}
    if unknown := [name for name in names if name not in families]:
        raise ValueError(f"robustness={unknown} must be of {', '.join(families)}.")
    return list(dict.fromkeys(family for name in names for family in families[name]))


def _row(part: str, metric: str, value: float) -> dict[str, Any]:
    return {"part": part, "metric": metric, "value": value}
