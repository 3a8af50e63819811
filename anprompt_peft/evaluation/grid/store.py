"""The folder of a grid: one folder per cell, which is there whole or not at all."""

from __future__ import annotations

import io
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from ...files import atomic_file, atomic_folder, set_aside, to_json
from ..predictions import Predictions
from .cells import KEY_DIGITS, Cell, canonical, key_of
from .measure import METRICS

RESULT, PREDICTIONS, SHOTS, COLLECTED = "result.json", "predictions.npz", "shots.json", "results.jsonl"
SAVED = ("labels", "predicted", "confidence")
CELL_FOLDER = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}")
EXACT = ConfigDict(strict=True, allow_inf_nan=False)

logger = logging.getLogger(__name__)


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


def is_done(output: Path, cell: Cell, sets_aside: bool = False) -> bool:
    """Whether a cell's folder is there and all that it holds can be read.

    Args:
        output (`Path`): the grid's folder.
        cell (`Cell`): what was run.
        sets_aside (`bool`): rename a folder that cannot be read to `damaged-<key>`, with a warning.

    Raises:
        OSError: if the operating system cannot read it, which says nothing about what it holds.
    """
    folder = output / cell.key
    try:
        read_cell(folder)
    except DamagedCellError as error:
        if sets_aside and os.path.lexists(folder):
            aside = set_aside(folder).name
            logger.warning("%s It is now called %s, and the cell is measured again.", error, aside)
        return False
    return True


def write_cell(
    output: Path,
    cell: Cell,
    result: Mapping[str, Any],
    predictions: Mapping[str, Predictions],
    save_shots: Callable[[Path], None],
    scratch: Path | None = None,
) -> None:
    """Write a cell's folder atomically, in `scratch` first; one that another process has written meanwhile stays."""
    text = to_json({"key": cell.key, "configuration": cell.configuration, **result})
    _record_of(text.encode())
    arrays = {f"{name}/{field}": getattr(each, field) for name, each in predictions.items() for field in SAVED}
    arrays |= {name: array.astype(np.float32) for name, array in arrays.items() if array.dtype.kind == "f"}
    try:
        with atomic_folder(output / cell.key, scratch=scratch) as fresh:
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


def read_predictions(output: Path, key: str) -> dict[str, Predictions]:
    """Return the predictions of a cell, with the confidence in place of all probabilities, by the names of its parts.

    Raises:
        ValueError: if they cannot be read, or are not those of the cell's parts and their numbers of images.
    """
    folder = output / key
    predictions: dict[str, Predictions] = _parse(
        folder, PREDICTIONS, partial(_predictions_of, _read_record(folder)["parts"])
    )
    return predictions


def read_cell(folder: Path) -> None:
    """Read all that a cell's folder holds; raise [`DamagedCellError`] if something cannot be read."""
    read_predictions(folder.parent, folder.name)
    _parse(folder, SHOTS, _check_shots)


def _read_record(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = _parse(folder, RESULT, _record_of)
    if not folder.name == record["key"] == key_of(canonical(record["configuration"])):
        raise _damaged(folder, RESULT, "it does not hold the cell that its folder is named after")
    return record


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


def _predictions_of(parts: Sequence[Mapping[str, Any]], content: bytes) -> dict[str, Predictions]:
    found = {}
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        for part in parts:
            name, number = part["name"], part["images"]
            labels, predicted, confidence = each = [arrays[f"{name}/{field}"] for field in SAVED]
            if [(array.shape, array.dtype.kind) for array in each] != [((number,), kind) for kind in "iif"]:
                raise ValueError(f"they are not the predictions for the {number} images of the part {name}")
            if not np.isfinite(confidence).all():
                raise ValueError(f"the probabilities for the part {name} are not all finite")
            found[name] = Predictions(name, part["classes"], labels, predicted, confidence=confidence)
    return found


def _check_shots(content: bytes) -> None:
    if not isinstance(json.loads(content)["train"], list):
        raise ValueError("train: it is not a list")


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
    with atomic_file(path) as fresh:
        fresh.write_text("".join(lines), encoding="utf-8")
    return path
