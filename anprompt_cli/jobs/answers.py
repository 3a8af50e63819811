"""Answers for labelled images as CSV, the confusions among them, and what a threshold is calibrated on."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from sklearn.metrics import confusion_matrix

from anprompt_peft.data.columns import encoded_images
from anprompt_peft.data.images import IMAGE
from anprompt_peft.evaluation import Predictions
from anprompt_peft.evaluation.threshold import threshold_for
from anprompt_peft.files import atomic_file

from ..text import aligned, as_csv

COLUMNS = ("image", "truth", "prediction", "confidence")
SHOWN = 10
"""Most classes of a matrix that the terminal shows; of more, the table of classes names what each is taken for."""


def answer_rows(parts: Sequence[Predictions], datasets: Sequence[Dataset]) -> list[tuple[Any, ...]]:
    """Return a head and a row for each image, with the name of its part if there are several."""
    several = len(parts) > 1
    rows: list[tuple[Any, ...]] = [(*COLUMNS, *(["part"] * several))]
    for part, dataset in zip(parts, datasets, strict=True):
        assert part.confidence is not None
        files = [example[IMAGE]["path"] or "" for example in encoded_images(dataset)]
        names = part.class_names
        for file, truth, answer, share in zip(files, part.labels, part.predicted, part.confidence, strict=True):
            rows.append((file, names[truth], names[answer], float(share), *([part.name] * several)))
    return rows


def confusion_rows(part: Predictions) -> list[list[Any]]:
    """Return a head and a row for each true class, with the number of images by answer."""
    names = list(part.class_names)
    counts = confusion_matrix(part.labels, part.predicted, labels=range(len(names))).tolist()
    return [
        [f"{part.name}: truth, by answer", *names],
        *([name, *row] for name, row in zip(names, counts, strict=True)),
    ]


def confusion_tables(parts: Sequence[Predictions]) -> list[str]:
    """Return the matrices that are small enough for a terminal."""
    return [aligned(confusion_rows(part)) for part in parts if len(part.class_names) <= SHOWN]


def write_confusions(parts: Sequence[Predictions], path: Path) -> None:
    """Write the matrices of all parts to a CSV file, one below the other."""
    with atomic_file(path) as fresh:
        fresh.write_text("\n".join(as_csv(confusion_rows(part)) for part in parts), encoding="utf-8", newline="")


def calibrated(path: Path, accuracy: float, classes: Collection[str]) -> float:
    """Return the threshold that holds an accuracy on the answers in a CSV file that `anprompt evaluate` wrote."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        answers = [(row["truth"], row["prediction"], float(row["confidence"])) for row in rows]
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"--calibrate {path} cannot be read: {error}. It must be what `anprompt evaluate --csv` printed."
        ) from error
    if others := {answer for _, answer, _ in answers} - set(classes):
        raise ValueError(f"--calibrate {path} has answers for other classes than are asked for: {sorted(others)[:5]}.")
    correct = np.array([truth == answer for truth, answer, _ in answers], dtype=bool)
    try:
        return threshold_for(np.array([share for *_, share in answers]), correct, accuracy)
    except ValueError as error:
        raise ValueError(f"--calibrate {path}: {error}") from error
