"""Measures the methods on a user's photos as cells of a grid, the cheapest first, and reads what they did."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from statistics import median
from typing import Any

from datasets import Dataset
from transformers import AutoConfig

from ..data.columns import class_names_of, labels_of
from ..data.inspect import count_by_class, digests
from ..evaluation.grid.cells import Cell, Setup, make_cells
from ..evaluation.grid.runner import Failed, RunEnvironment, run_grid
from ..evaluation.grid.store import is_done, read_predictions, read_results
from ..evaluation.peers.protocol import Method
from ..evaluation.protocols import FEW_SHOT, FOLDS, number_of_folds
from ..evaluation.record import PHOTO, BenchmarkData
from ..files import hub_id
from .estimate import estimate
from .methods import COMPARED, PROBE, ZERO_SHOT, compared_method
from .verdict import Comparison, Measured

MEASURED_SPLITS = ("test", "validation")


@dataclass(frozen=True, eq=False)
class Plan:
    """Cells that measure methods on photos.

    Args:
        cells (`Mapping[str, Sequence[Cell]]`): of each method, one for each draw; the cheapest method first.
        place (`RunEnvironment`): where they are run, with the photos in memory.
        folds (`int`): k, where nothing is held out and the draws are folds; else 0.
        half (`Sequence[Cell]`): of the linear probe with half of the shots; empty where it is not measured.
    """

    cells: Mapping[str, Sequence[Cell]]
    place: RunEnvironment
    folds: int
    half: Sequence[Cell] = ()

    @property
    def setup(self) -> Setup:
        """What the cells have in common."""
        return next(iter(self.cells.values()))[0].setup

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the labels."""
        (data,) = self.place.loaded.values()
        return data.class_names

    @property
    def stages(self) -> list[list[str]]:
        """Methods that are measured together: those on frozen features, then each other alone."""
        heads = [name for name in self.cells if not COMPARED[name].tunes]
        return [heads, *([name] for name in self.cells if COMPARED[name].tunes)]

    def stage(self, names: Sequence[str]) -> list[Cell]:
        """Return the cells of some methods, draw by draw, so that they share the shots' features."""
        return [cell for draw in zip(*(self.cells[name] for name in names), strict=True) for cell in draw]

    def done(self) -> list[str]:
        """Return the methods of which all draws are there."""
        return [name for name, cells in self.cells.items() if all(is_done(self.place.output, cell) for cell in cells)]

    def records(self) -> list[dict[str, Any]]:
        """Return the records of the methods of which all draws are there."""
        keys = {cell.key for name in self.done() for cell in self.cells[name]}
        return [record for record in read_results(self.place.output) if record["key"] in keys]

    def comparison(self) -> Comparison:
        """Return what these methods did."""
        records = {record["key"]: record for record in self.records()}
        methods = {}
        for name in self.done():
            keys = [cell.key for cell in self.cells[name]]
            methods[name] = Measured(
                [read_predictions(self.place.output, key)["test"] for key in keys],
                median(records[key]["fit_seconds"] for key in keys),
                records[keys[0]].get("saved_bytes", 0),
            )
        done = PROBE in methods and all(is_done(self.place.output, cell) for cell in self.half)
        half = [read_predictions(self.place.output, cell.key)["test"] for cell in self.half] if done else []
        return Comparison(methods, self.setup.shots, self.folds, half)


def plan_comparison(
    splits: Mapping[str, Dataset],
    model: str,
    output: Path,
    *,
    name: str = "photos",
    shots: int = 16,
    draws: int = 5,
    methods: Sequence[str] | None = None,
    templates: Sequence[str] = (PHOTO,),
    device: str = "cpu",
    threads: int = 1,
) -> Plan:
    """Plan which methods are measured on which draws. No image is decoded.

    Args:
        splits (`Mapping[str, Dataset]`): `train` to draw shots from, and `test` or `validation` to measure on. Where
            there is neither, the draws are folds of `train`.
        model (`str`): CLIP: its id on the Hub, or a folder.
        output (`Path`): folder of the cells. What was measured before on the same photos is not measured again.
        name (`str`): of the photos, for tables.
        shots (`int`): images per class to learn from, fewer of a class that has fewer.
        draws (`int`): of the shots.
        methods (`Sequence[str]`, *optional*): of [`COMPARED`]; zero-shot CLIP is always measured. Default: all that
            the model has a place for.
        templates (`Sequence[str]`): of the class texts.
        device (`str`): of the model.
        threads (`int`): of the computation.

    Raises:
        ValueError: for an unknown method or one that the model has no place for, fewer than 2 draws, no split
            `train`, or classes that do not fit.
        OSError: if there is no such model.
        ShotsError: if a class has too few images.
    """
    if unknown := [each for each in methods or () if each not in COMPARED]:
        raise ValueError(f"method={unknown[0]!r} must be one of {', '.join(COMPARED)}.")
    if draws < 2:
        raise ValueError(f"draws={draws} must be at least 2: the intervals are over them.")
    if "train" not in splits:
        raise ValueError(f"the photos have no split train to draw shots from, only {', '.join(splits)}.")
    held_out = next((splits[each] for each in MEASURED_SPLITS if each in splits), None)
    train = splits["train"]
    data = BenchmarkData(name, train, train if held_out is None else held_out, tuple(templates), comparable=False)
    folds = number_of_folds(data) if held_out is None else 0
    most = max(count_by_class(train).values())
    shots = min(shots, most - math.ceil(most / folds) if folds else most)
    setup = Setup(hub_id(model) or str(Path(model).expanduser().resolve()), FOLDS if folds else FEW_SHOT, shots)
    key = f"{name}-{_digest(data)}"
    wanted = _possible(model, methods)
    seeds = range(1, draws + 1)
    made = make_cells(setup, [key], wanted, seeds)
    half: list[Cell] = []
    if PROBE in wanted and shots > 1:
        half = make_cells(replace(setup, shots=shots // 2), [key], {PROBE: compared_method(PROBE)}, seeds)
    return Plan(
        {each: [cell for cell in made if cell.name == each] for each in wanted},
        RunEnvironment(output, device=device, threads=threads, loaded={key: data}),
        folds,
        half,
    )


def run_comparison(plan: Plan, show: Callable[[str], None] = print) -> tuple[Comparison, list[Failed]]:
    """Measure what is not there yet, the cheapest first; show how long it takes, and each method when it is done.

    Args:
        plan (`Plan`): what to measure.
        show (`Callable`): is given lines of text.

    Returns:
        `tuple[Comparison, list[Failed]]`: what the methods did, and cells that failed.

    Raises:
        RuntimeError: if zero-shot CLIP, which all are compared with, cannot be measured.
    """
    waiting = [cell for names in plan.stages for cell in plan.stage(names) if not is_done(plan.place.output, cell)]
    if waiting:
        show(estimate(waiting, plan.place))
    failed: list[Failed] = []
    for names in plan.stages:
        failed += run_grid([*plan.stage(names), *(plan.half if PROBE in names else ())], plan.place)
        if ZERO_SHOT not in (done := plan.done()):
            raise RuntimeError(f"zero-shot CLIP cannot be measured: {failed[0].error}")
        comparison = plan.comparison()
        for name in names:
            show(comparison.line(name) if name in done else f"{name}: failed")
    return comparison, failed


def _possible(model: str, asked: Sequence[str] | None) -> dict[str, Method]:
    """Return the methods that are asked for, else all that the model has a place for."""
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    found = {}
    for name in COMPARED:
        method = compared_method(name)
        if name != ZERO_SHOT and asked is not None and name not in asked:
            continue
        try:
            getattr(method, "check", bool)(config)
        except ValueError:
            if asked is not None:
                raise
            continue
        found[name] = method
    return found


def _digest(data: BenchmarkData) -> str:
    """Return what tells photos with their labels and templates from others."""
    parts = [data.train] if data.test is data.train else [data.train, data.test]
    seen = [[digests(part), labels_of(part).tolist(), class_names_of(part)] for part in parts]
    return blake2b(json.dumps([seen, data.templates]).encode(), digest_size=6).hexdigest()
