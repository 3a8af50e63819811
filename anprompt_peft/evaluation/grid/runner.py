"""Runs the cells of a grid that are not there yet, over processes of one machine."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import torch
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits
from tqdm import tqdm
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from ...data.processor import load_image_processor
from ...method.families import family_of
from ...provenance import provenance
from ...termination import sigterm_interrupts
from ..backbone import Backbone
from ..benchmarks import BenchmarkData, load_benchmark_data
from ..protocols import FOLDS, Shots, draw_shots, leave_fold_out, make_task
from ..task import ClassTexts, Part, Task
from .cells import Cell, Setup
from .measure import measure
from .store import is_done, write_cell


@dataclass(frozen=True)
class RunEnvironment:
    """Where cells are run; it does not change what they are.

    Args:
        output (`Path`): the grid's folder.
        root (`str`, *optional*): below which the data sets of the catalog lie.
        device (`str`): of the model.
        threads (`int`): of each process.
        loaded (`Mapping[str, BenchmarkData]`): data sets that are in memory, by what cells call them. The name is part
            of a cell's key, so it must change with the data.
    """

    output: Path
    root: str | None = None
    device: str = "cpu"
    threads: int = 1
    loaded: Mapping[str, BenchmarkData] = field(default_factory=dict, compare=False, repr=False)


Place = RunEnvironment
"""The former name."""


@dataclass(frozen=True, eq=False)
class Failed:
    """A cell that could not be run, and why: the error in one line, and its traceback."""

    cell: Cell
    error: str
    traceback: str


def run_grid(
    cells: Sequence[Cell], place: RunEnvironment, jobs: int = 1, prepare: Callable[[], None] | None = None
) -> list[Failed]:
    """Run the cells that are not there yet, or cannot be read. A cell that fails does not stop the others.

    A cell's result depends on neither the number of jobs nor the cells beside it. Several calls, also on other
    machines with the same folder, may run at once. Ctrl-C and SIGTERM end all processes; finished cells stay.

    Args:
        cells (`Sequence[Cell]`): see [`make_cells`].
        place (`RunEnvironment`): where.
        jobs (`int`): processes; one runs them in this one.
        prepare (`Callable`, *optional*): called before, if there are any to run.

    Returns:
        `list[Failed]`: those that failed.
    """
    waiting = [cell for cell in cells if not is_done(place.output, cell)]
    if waiting and prepare is not None:
        prepare()
    failed = []
    with (
        sigterm_interrupts(),
        tqdm(total=len(cells), initial=len(cells) - len(waiting), unit="cell") as bar,
        closing(_runs(waiting, place, jobs)) as runs,
    ):
        for failure in runs:
            bar.update()
            if failure:
                failed.append(failure)
                bar.set_postfix(failed=len(failed))
    return failed


def _runs(waiting: Sequence[Cell], place: RunEnvironment, jobs: int) -> Generator[Failed | None]:
    """Yield the outcome of each cell. What processes that were killed had begun to write is removed at the end."""
    if waiting:
        place.output.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=place.output, prefix=".running-") as scratch:
            tasks = (delayed(run_cell)(cell, place, Path(scratch)) for cell in waiting)
            yield from Parallel(jobs, return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs")(tasks)


def run_cell(cell: Cell, place: RunEnvironment, scratch: Path | None = None) -> Failed | None:
    """Run one cell, unless it is there, and write its folder. One that cannot be read is set aside before.

    Args:
        cell (`Cell`): what to run.
        place (`RunEnvironment`): where.
        scratch (`Path`, *optional*): folder to write to until the cell is complete, on the disk of the output.

    Returns:
        `Failed`, *optional*: if it could not be run.
    """
    if is_done(place.output, cell, sets_aside=True):
        return None
    try:
        _settle()
        with threads(place.threads):
            _run(cell, place, scratch)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Failed(cell, text, traceback.format_exc())
    return None


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute with so many threads for a block, in torch and in the libraries below NumPy."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        with threadpool_limits(number):
            yield
    finally:
        torch.set_num_threads(before)


def open_cell(cell: Cell, place: RunEnvironment) -> tuple[Backbone, Task]:
    """Return what a cell's method is given: the frozen CLIP, and the task. No image is decoded."""
    _settle()
    return _backbone(cell.setup.model, place.device), _task(cell.setup, cell.data, cell.seed, place)[0]


def _run(cell: Cell, place: RunEnvironment, scratch: Path | None) -> None:
    backbone = _backbone(cell.setup.model, place.device)
    task, shots, data = _task(cell.setup, cell.data, cell.seed, place)
    measured, predictions = measure(cell, backbone, task)
    result = {
        "data": {"name": data.name, "comparable": data.comparable, "note": data.note},
        **measured,
        "provenance": provenance("joblib", "scipy"),
    }
    write_cell(place.output, cell, result, predictions, lambda path: shots.save(path, data), scratch)


@cache
def _settle() -> None:
    """Leave the terminal to the grid's progress bar."""
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)  # PEFT's, for every adapter


@lru_cache(maxsize=1)
def _backbone(model: str, device: str) -> Backbone:
    family = family_of(AutoConfig.from_pretrained(model, trust_remote_code=False))
    clip = family.model.from_pretrained(model, dtype=torch.float32).to(device)
    load_image_processor(model, clip.config.vision_config.image_size)
    return Backbone(clip, family.processor.from_pretrained(model, trust_remote_code=False))


@lru_cache(maxsize=1)
def _load(name: str, root: str | None, source: str) -> BenchmarkData:
    return load_benchmark_data(name, root, source)


def _data(name: str, place: RunEnvironment, source: str) -> BenchmarkData:
    return place.loaded[name] if name in place.loaded else _load(name, place.root, source)


@lru_cache(maxsize=1)
def _task(setup: Setup, name: str, seed: int, place: RunEnvironment) -> tuple[Task, Shots, BenchmarkData]:
    """Return a task, its shots, and the data that they are rows of."""
    data = _data(name, place, setup.source)
    targets = tuple(load_benchmark_data(each, place.root, setup.source) for each in setup.targets)
    pool = leave_fold_out(data, seed) if setup.protocol == FOLDS else data
    shots = draw_shots(pool, setup.shots, seed, setup.sampling)
    task = make_task(
        data,
        _backbone(setup.model, place.device).processor,
        setup.protocol,
        setup.shots,
        seed,
        halves=setup.halves,
        sampling=shots,
        targets=targets,
    )
    if setup.protocol != FOLDS:
        task = replace(task, parts=_reused(_parts_of_last_task(replace(setup, shots=1), name, place), task.parts))
    return task, shots, pool


@lru_cache(maxsize=1)
def _parts_of_last_task(setup: Setup, name: str, place: RunEnvironment) -> dict[tuple[str, ClassTexts], Part]:
    return {}


def _reused(last: dict[tuple[str, ClassTexts], Part], parts: Sequence[Part]) -> tuple[Part, ...]:
    """Put the last seed's parts in place of equal ones, so that their images and features are computed once."""
    reused = {(part.name, part.classes): last.get((part.name, part.classes), part) for part in parts}
    last.clear()
    last.update(reused)
    return tuple(reused.values())
