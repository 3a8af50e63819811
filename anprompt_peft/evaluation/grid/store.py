"""The folder of a grid: one folder per cell, which is there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ...files import to_json, whole_file, whole_folder
from ..answers import Answers
from .cells import Cell, canonical, key_of

RESULT, PREDICTIONS, SHOTS, COLLECTED = "result.json", "predictions.npz", "shots.json", "results.jsonl"


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


def is_done(output: Path, cell: Cell) -> bool:
    """Whether a cell's folder is there. Folders appear whole."""
    return (output / cell.key / RESULT).is_file()


def write_cell(
    output: Path,
    cell: Cell,
    result: Mapping[str, Any],
    answers: Mapping[str, Answers],
    save_shots: Callable[[Path], None],
) -> None:
    """Write a cell's folder atomically. If another process has written it meanwhile, that one stays.

    Args:
        output (`Path`): the grid's folder.
        cell (`Cell`): what was run.
        result (`Mapping`): JSON values that stand beside the cell's configuration.
        answers (`Mapping[str, Answers]`): by the names of the parts.
        save_shots (`Callable`): writes to a path which images were drawn.
    """
    arrays = {
        f"{name}/{field.name}": getattr(each, field.name)
        for name, each in answers.items()
        for field in fields(PartPredictions)
    }
    try:
        with whole_folder(output / cell.key) as fresh:
            np.savez_compressed(fresh / PREDICTIONS, **arrays)
            save_shots(fresh / SHOTS)
            record = {"key": cell.key, "configuration": cell.configuration, **result}
            (fresh / RESULT).write_text(to_json(record), encoding="utf-8")
    except OSError:
        if not is_done(output, cell):
            raise


def read_results(output: Path) -> list[dict[str, Any]]:
    """Return the records of all cells of a folder, in the order of their keys.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if a folder's name is not the key of the configuration in it: it was edited, or moved.
    """
    records = []
    for path in sorted(output.glob(f"*/{RESULT}")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if path.parent.name != key_of(canonical(record["configuration"])):
            raise ValueError(f"{path} does not hold the cell that its folder is named after. Remove the folder.")
        records.append(record)
    if not records:
        raise FileNotFoundError(f"{output} holds no results of `anprompt benchmark`.")
    return records


def read_predictions(output: Path, key: str) -> dict[str, PartPredictions]:
    """Return the predictions of a cell, by the names of its parts."""
    with np.load(output / key / PREDICTIONS, allow_pickle=False) as arrays:
        names = dict.fromkeys(name.rpartition("/")[0] for name in arrays.files)
        return {
            name: PartPredictions(*(arrays[f"{name}/{field.name}"] for field in fields(PartPredictions)))
            for name in names
        }


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
