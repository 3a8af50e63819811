"""One cell: fit the method to the shots, and measure it on the parts of the task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..backbone import Backbone
from ..calibration import adaptive_calibration_error, expected_calibration_error
from ..intervals import harmonic_mean
from ..peers.protocol import Fitted
from ..robustness import IMAGE_FAMILIES, measure_robustness, text_families
from ..robustness.curves import Family
from ..task import Part, Task
from .cells import Cell
from .store import PartPredictions

BASE_AND_NEW = ("base", "new")


@dataclass(frozen=True, eq=False)
class Measured:
    """What one cell gave.

    Args:
        rows (`list[dict]`): tidy figures: part, metric, value.
        parts (`dict[str, PartPredictions]`): predictions by the names of the parts.
        fit_seconds (`float`): of `Method.fit`.
        learnable_parameters (`int`, *optional*): how many numbers torch's optimizers changed in it; `None` if none.
        robustness (`list[dict]`): the same with family, strength and draw of a perturbation.
    """

    rows: list[dict[str, Any]]
    parts: dict[str, PartPredictions]
    fit_seconds: float
    learnable_parameters: int | None
    robustness: list[dict[str, Any]]


def measure(cell: Cell, backbone: Backbone, task: Task) -> Measured:
    """Fit a cell's method and measure it: accuracies, H and calibration errors in per cent.

    Raises:
        ValueError: if the method returns logits of another shape, or none that are finite.
    """
    with counted_parameters() as sizes:
        started = perf_counter()
        fitted = cell.method.fit(backbone, task.shots, task.classes, cell.seed)
        seconds = perf_counter() - started
    parts, rows = {}, []
    for part in task.parts:
        probabilities, labels = class_probabilities(fitted, part), part.images.labels.numpy()
        parts[part.name] = PartPredictions(labels, probabilities.argmax(1), probabilities.max(1).astype(np.float32))
        rows += [
            _row(part.name, "accuracy", _accuracy(parts[part.name])),
            _row(part.name, "images", len(labels)),
            _row(part.name, "ECE", expected_calibration_error(probabilities, labels)),
            _row(part.name, "adaptive ECE", adaptive_calibration_error(probabilities, labels)),
        ]
    if tuple(parts) == BASE_AND_NEW:
        base, new = (np.array(_accuracy(part)) for part in parts.values())
        rows.append(_row(" and ".join(BASE_AND_NEW), "H", float(harmonic_mean(base, new))))
    learnable = sum(sizes.values()) if sizes else None
    return Measured(rows, parts, seconds, learnable, list(perturbed_rows(cell, fitted, task)))


@contextmanager
def counted_parameters() -> Iterator[dict[int, int]]:
    """Give the sizes of all tensors that torch's optimizers change in a block, by the tensors' ids."""
    sizes: dict[int, int] = {}
    seen: list[Optimizer] = []  # kept, so that no id is used twice

    def count(optimizer: Optimizer, *_: Any) -> None:
        if not any(optimizer is each for each in seen):
            seen.append(optimizer)
            sizes.update({id(each): each.numel() for group in optimizer.param_groups for each in group["params"]})

    handle = register_optimizer_step_pre_hook(count)
    try:
        yield sizes
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
    """Return families of perturbations by their names; `text` and `image` stand for all of a kind.

    Data with synonyms of their class names have one more, `synonyms`.

    Raises:
        ValueError: for an unknown name.
    """
    groups: dict[str, list[Any]] = {"text": list(text_families(synonyms)), "image": list(IMAGE_FAMILIES)}
    families = groups | {each.name: [each] for group in groups.values() for each in group}
    if unknown := [name for name in names if name not in families]:
        raise ValueError(f"robustness={unknown} must be of {', '.join(families)}.")
    return list(dict.fromkeys(family for name in names for family in families[name]))


def class_probabilities(fitted: Fitted, part: Part) -> np.ndarray:
    """Return a fitted method's probabilities for a part, float64 `[n, C]`.

    Raises:
        ValueError: if its logits have another shape, or are not finite.
    """
    logits = fitted.logits(part.images, part.classes)
    wanted = (len(part.images), len(part.classes.names))
    if tuple(logits.shape) != wanted:
        raise ValueError(f"the logits for part {part.name!r} have shape {tuple(logits.shape)}, not {wanted}.")
    if not torch.isfinite(logits).all():
        raise ValueError(f"the logits for part {part.name!r} are not all finite.")
    return logits.detach().cpu().double().softmax(-1).numpy()


def _accuracy(part: PartPredictions) -> float:
    return 100 * float(part.correct.mean())


def _row(part: str, metric: str, value: float) -> dict[str, Any]:
    return {"part": part, "metric": metric, "value": value}
