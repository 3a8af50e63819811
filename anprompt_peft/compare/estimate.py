"""About how long a comparison takes on this machine: encoding is timed on a few images, training on a few steps."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch

from ..evaluation.grid.cells import Cell
from ..evaluation.grid.runner import RunEnvironment, open_cell, threads
from .methods import COMPARED, with_steps
from .verdict import duration

TIMED_IMAGES = 16
FEW, MORE = 1, 3  # steps


def estimate(cells: Sequence[Cell], place: RunEnvironment) -> str:
    """Return about how long cells take that follow each other, in words."""
    with threads(place.threads):
        per_image = _seconds_per_image(cells[0], place)
        names = dict.fromkeys(cell.name for cell in cells)
        found = {name: _seconds([cell for cell in cells if cell.name == name], place, per_image) for name in names}
    heads = max((seconds for name, seconds in found.items() if not COMPARED[name].tunes), default=0.0)
    tuned = {name: seconds for name, seconds in found.items() if COMPARED[name].tunes}
    parts = [f"{name} {duration(seconds)}" for name, seconds in ({"features": heads} | tuned).items() if seconds]
    return (
        f"About {duration(heads + sum(tuned.values()))} to go on this machine ({', '.join(parts)}). Ctrl-C stops, and "
        "the same command continues."
    )


def _seconds_per_image(cell: Cell, place: RunEnvironment) -> float:
    backbone, task = open_cell(cell, place)
    images = task.parts[0].images
    few = images.select(torch.arange(min(TIMED_IMAGES, len(images))))
    backbone.encode_images(few.pixels(torch.arange(1)))
    started = perf_counter()
    backbone.encode_images(few.pixels())
    return (perf_counter() - started) / len(few)


def _seconds(cells: Sequence[Cell], place: RunEnvironment, per_image: float) -> float:
    """Return about how long the cells of one method take."""
    backbone, task = open_cell(cells[0], place)
    shots, measured = len(task.shots), len(task.parts[0].images)
    if not COMPARED[cells[0].name].tunes:
        return per_image * (measured + len(cells) * shots)
    method: Any = cells[0].method

    def seconds(steps: int) -> float:
        started = perf_counter()
        with_steps(method, steps).fit(backbone, task.shots, task.classes, cells[0].seed)
        return perf_counter() - started

    few, more = seconds(FEW), seconds(MORE)
    step = max(0.0, (more - few) / (MORE - FEW))
    steps = method.recipe.steps_for(shots)
    return len(cells) * (few + step * (steps - FEW) + per_image * measured)
