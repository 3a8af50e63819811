"""The folder of a grid: one folder per cell, which is there whole or not at all."""

from __future__ import annotations

import io
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from ...files import set_aside, to_json, whole_file, whole_folder
from ..answers import Answers
from .cells import KEY_DIGITS, Cell, canonical, key_of
from .measure import METRICS

RESULT, PREDICTIONS, SHOTS, COLLECTED = "result.json", "predictions.npz", "shots.json", "results.jsonl"
CELL_FOLDER = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}")
EXACT = ConfigDict(strict=True, allow_inf_nan=False)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PartPredictions:
    """What a cell's folder keeps of the [`Answers`] for the n images of a part.

    Args:
        labels (`np.ndarray`): int64 `[n]`, the true classes.
        predicted (`np.ndarray`): int64 `[n]`, the most probable classes.
        confidence (`np.ndarray`): float32 `[n]`, their probabilities.
    """

    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray


class DamagedCellError(ValueError):
    """A file of a cell is missing, cut off, or not what was written."""


@checked_dataclass(config=EXACT)
class _Data:
    name: str
    comparable: bool
    note: str


@checked_dataclass(config=EXACT)
class _Part:
    name: str
    images: int
    classes: list[str]


@checked_dataclass(config=EXACT)
class _Row:
    part: str
    metric: str
    value: float


@checked_dataclass(config=EXACT)
class _PerturbedRow(_Row):
    family: str
    strength: float
    draw: int


@checked_dataclass(config=EXACT)
class _Record:
    """What readers of a cell's record rely on; it may hold more."""

    key: str
    configuration: dict[str, Any]
    data: _Data
    parts: list[_Part]
    fit_seconds: float
    learnable_parameters: int | None
    rows: list[_Row]
    robustness: list[_PerturbedRow]
    provenance: dict[str, Any]


_RECORD = TypeAdapter(_Record)


def is_done(output: Path, cell: Cell) -> bool:
    """Whether a cell's folder is there and all that it holds can be read.

    Raises:
        OSError: if the operating system cannot read it, which says nothing about what it holds.
    """
    folder = output / cell.key
    try:
        read_cell(folder)
    except DamagedCellError:
        return False
    return True


def set_aside_damaged(output: Path, cell: Cell) -> None:
    """Rename a cell's folder that cannot be read to `damaged-<key>`, with a warning. Others stay.

    Raises:
        OSError: if the operating system cannot read it.
    """
    folder = output / cell.key
    if not os.path.lexists(folder):
        return
    try:
        read_cell(folder)
    except DamagedCellError as error:
        aside = set_aside(folder).name
        logger.warning("%s It is now called %s, and the cell is measured again.", error, aside)


def write_cell(
    output: Path,
    cell: Cell,
    result: Mapping[str, Any],
    answers: Mapping[str, Answers],
    save_shots: Callable[[Path], None],
    scratch: Path | None = None,
) -> None:
    """Write a cell's folder atomically. If another process has written it meanwhile, that one stays.

    Args:
        output (`Path`): the grid's folder.
        cell (`Cell`): what was run.
        result (`Mapping`): JSON values that stand beside the cell's configuration.
        answers (`Mapping[str, Answers]`): by the names of the parts.
        save_shots (`Callable`): writes to a path which images were drawn.
        scratch (`Path`, *optional*): folder to write to until all is written; the grid's by default.

    Raises:
        FileExistsError: if something else is in the place of the cell's folder.
        ValueError: if the result is not what [`read_results`] reads.
    """
    text = to_json({"key": cell.key, "configuration": cell.configuration, **result})
    _record_of(text.encode())
    arrays = {
        f"{name}/{field.name}": getattr(each, field.name)
        for name, each in answers.items()
        for field in fields(PartPredictions)
    }
    try:
        with whole_folder(output / cell.key, scratch=scratch) as fresh:
            np.savez_compressed(fresh / PREDICTIONS, **arrays)
            save_shots(fresh / SHOTS)
            (fresh / RESULT).write_text(text, encoding="utf-8")
    except FileExistsError:
        if not is_done(output, cell):
            raise


def read_results(output: Path) -> list[dict[str, Any]]:
    """Return the records of all cells of a folder, in the order of their keys. Whatever else is in it is left alone.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if a cell's record cannot be read, is incomplete or holds NaN, or is not that of the configuration
            that its folder is named after: it was edited, or moved. The message names the folder.
    """
    folders = sorted(path for path in output.glob("*") if CELL_FOLDER.fullmatch(path.name))
    if not folders:
        raise FileNotFoundError(f"{output} holds no results of `anprompt benchmark`.")
    try:
        return [_read_record(folder) for folder in folders]
    except DamagedCellError as error:
        raise DamagedCellError(f"{error} The `anprompt benchmark` that made it measures it again.") from error


def read_predictions(output: Path, key: str) -> dict[str, PartPredictions]:
    """Return the predictions of a cell, by the names of its parts.

    Raises:
        ValueError: if they cannot be read, or are not those of the cell's parts and their numbers of images.
    """
    folder = output / key
    return _read_predictions(folder, _read_record(folder))


def read_cell(folder: Path) -> None:
    """Read all that a cell's folder holds.

    Raises:
        DamagedCellError: if something cannot be read.
        OSError: if the operating system does not read it.
    """
    _read_predictions(folder, _read_record(folder))
    _parse(folder, SHOTS, _check_shots)


def _read_record(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = _parse(folder, RESULT, _record_of)
    if not folder.name == record["key"] == key_of(canonical(record["configuration"])):
        raise _damaged(folder, RESULT, "it does not hold the cell that its folder is named after")
    return record


def _read_predictions(folder: Path, record: Mapping[str, Any]) -> dict[str, PartPredictions]:
    images = {part["name"]: part["images"] for part in record["parts"]}
    predictions: dict[str, PartPredictions] = _parse(folder, PREDICTIONS, partial(_predictions_of, images))
    return predictions


def _record_of(content: bytes) -> Any:
    try:
        record = _RECORD.validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    canonical(record.configuration)
    wanted = {(part.name, metric) for part in record.parts for metric in METRICS}
    if not wanted or wanted - {(row.part, row.metric) for row in record.rows}:
        raise ValueError(f"rows: they are not {', '.join(METRICS)} of each part")
    return json.loads(content)


def _predictions_of(images: Mapping[str, int], content: bytes) -> dict[str, PartPredictions]:
    found = {}
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        for part, number in images.items():
            each = [arrays[f"{part}/{field.name}"] for field in fields(PartPredictions)]
            if [(array.shape, array.dtype.kind) for array in each] != [((number,), kind) for kind in "iif"]:
                raise ValueError(f"they are not the answers for the {number} images of the part {part}")
            if not np.isfinite(each[-1]).all():
                raise ValueError(f"the probabilities for the part {part} are not all finite")
            found[part] = PartPredictions(*each)
    return found


def _check_shots(content: bytes) -> None:
    if not isinstance(json.loads(content)["train"], list):
        raise ValueError("train: it is no list")


def _parse(folder: Path, name: str, parse: Callable[[bytes], Any]) -> Any:
    if not (folder / name).is_file():
        raise _damaged(folder, name, "it is missing")
    content = (folder / name).read_bytes()
    try:
        return parse(content)
    except Exception as error:  # whatever the parsers raise: the operating system has no part in it
        raise _damaged(folder, name, str(error)) from error


def _damaged(folder: Path, name: str, reason: str) -> DamagedCellError:
    return DamagedCellError(f"The cell {folder} is damaged: {name}: {reason}.")


def collect(output: Path) -> Path:
    """Write the rows of all cells to `results.jsonl`: one object per figure, with its configuration and provenance.

    Returns:
        `Path`: the file, written atomically.

    Raises:
        FileNotFoundError: if there are no cells.
    """
    lines = []
    for record in read_results(output):
        shared = {
            "key": record["key"],
            **record["configuration"],
            "comparable": record["data"]["comparable"],
            "fit_seconds": record["fit_seconds"],
            "learnable_parameters": record["learnable_parameters"],
            "provenance": record["provenance"],
        }
        lines += [to_json({**row, **shared}, indent=None) for row in (*record["rows"], *record["robustness"])]
    path = output / COLLECTED
    with whole_file(path) as fresh:
        fresh.write_text("".join(lines), encoding="utf-8")
    return path
