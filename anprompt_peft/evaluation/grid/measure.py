"""One cell: fit the method to the shots, and measure it on the parts of the task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..answers import Answers
from ..backbone import Backbone
from ..intervals import harmonic_mean
from ..peers.protocol import Fitted
from ..robustness import IMAGE_FAMILIES, measure_robustness, text_families
from ..robustness.curves import Family
from ..task import Task
from .cells import Cell

BASE_AND_NEW = ("base", "new")
METRICS = ("accuracy", "images", "ECE", "adaptive ECE")


@dataclass(frozen=True, eq=False)
class Measured:
    """What one cell gave.

    Args:
        rows (`list[dict]`): tidy figures: part, metric, value.
        answers (`dict[str, Answers]`): by the names of the parts.
        fit_seconds (`float`): of `Method.fit`.
        learnable_parameters (`int`, *optional*): how many numbers torch's optimizers changed in it; `None` if none.
        robustness (`list[dict]`): the same with family, strength and draw of a perturbation.
    """

    rows: list[dict[str, Any]]
    answers: dict[str, Answers]
    fit_seconds: float
    learnable_parameters: int | None
    robustness: list[dict[str, Any]]


def measure(cell: Cell, backbone: Backbone, task: Task) -> Measured:
    """Fit a cell's method and measure it: accuracies, H and calibration errors in per cent.

    Raises:
        ValueError: if the method returns logits of another shape, or none that are finite.
    """
    with optimized_tensors() as tensors:
        started = perf_counter()
        fitted = cell.method.fit(backbone, task.shots, task.classes, cell.seed)
        seconds = perf_counter() - started
    learnable = sum(tensor.numel() for tensor in tensors.values()) or None
    answers = {part.name: Answers.of(fitted, part) for part in task.parts}
    rows = [row for name, each in answers.items() for row in _rows(name, each)]
    if tuple(answers) == BASE_AND_NEW:
        base, new = (np.array(each.accuracy) for each in answers.values())
        rows.append(_row(" and ".join(BASE_AND_NEW), "H", float(harmonic_mean(base, new))))
    return Measured(rows, answers, seconds, learnable, list(perturbed_rows(cell, fitted, task)))


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


def _rows(part: str, answers: Answers) -> list[dict[str, Any]]:
    values = (answers.accuracy, len(answers.labels), answers.ece, answers.adaptive_ece)
    return [_row(part, metric, value) for metric, value in zip(METRICS, values, strict=True)]


def _row(part: str, metric: str, value: float) -> dict[str, Any]:
    return {"part": part, "metric": metric, "value": value}
