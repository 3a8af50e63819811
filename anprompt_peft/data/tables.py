"""Tables that list image files with their labels, in any two columns."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..method.class_texts import composed
from .folders import SPLIT_OF, some
from .images import LABEL, readable_extensions

ENDINGS = (".csv", ".tsv")
DELIMITERS = ",;\t|"
SPLIT = "split"
SAMPLE = 64_000
"""Characters from which the delimiter is guessed."""


@dataclass(frozen=True)
class Listed:
    """The class of every listed file, by split and by its path as the table has it, in the table's order."""

    splits: dict[str, dict[str, str]]
    class_names: list[str]


def read_table(path: str | Path, image_column: str | None = None, label_column: str | None = None) -> Listed:
    """Read a table of image files and labels; no image is opened.

    The first line names the columns. Paths are relative to the folder of the table. A column `split` whose values are
    names of splits tells the split of each file; without it all are `train`. Labels that are whole numbers are sorted
    as numbers, others as texts.

    Args:
        path (`str` or `Path`): a text file in UTF-8, with columns divided by commas, semicolons, tabs or bars.
        image_column (`str`, *optional*): needed unless exactly one column holds names of image files.
        label_column (`str`, *optional*): needed unless a column is called `label`, or one other is there.

    Raises:
        FileNotFoundError: if there is no such table, or files that it lists are missing.
        ValueError: if it is not such a table, columns are missing or ambiguous, a row lacks its file or label, a file
            has two labels, or there are fewer than two classes.
    """
    path = Path(path)
    columns = _read_columns(path)
    files = image_column or _only("image_column", columns, [name for name in columns if _are_images(columns[name])])
    splits = _splits(columns, {files, label_column})
    others = [name for name in columns if name not in {files, SPLIT if splits else None}]
    labels = label_column or (LABEL if LABEL in others else _only("label_column", columns, others))
    if unknown := {files, labels} - set(columns):
        raise ValueError(f"there is no column {' or '.join(sorted(unknown))}, only {', '.join(columns)}.")
    for column in (files, labels):
        if empty := [str(row) for row, text in enumerate(columns[column], 1) if not text.strip()]:
            raise ValueError(f"{path}: the column {column} is empty in row {some(empty)}.")
    found: dict[str, dict[str, str]] = {}
    rows = zip(columns[files], columns[labels], splits or ["train"] * len(columns[files]), strict=True)
    for file, label, split in rows:
        name = composed(label.strip())
        if (known := found.setdefault(split, {}).setdefault(file, name)) != name:
            raise ValueError(f"{path}: {file} has two labels, {known!r} and {name!r}. Keep one.")
    listed = dict.fromkeys(file for part in found.values() for file in part)
    if missing := [file for file in listed if not (path.parent / file).is_file()]:
        raise FileNotFoundError(
            f"{path}: {len(missing)} of {len(listed)} files are not in {path.parent}: {some(missing)}."
        )
    names = _sorted({name for part in found.values() for name in part.values()})
    if len(names) < 2:
        raise ValueError(f"{path}: the column {labels} has one class only, {some(names)}.")
    return Listed(found, names)


def _read_columns(path: Path) -> dict[str, list[str]]:
    """Return the texts of all columns by name."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = csv.Sniffer().sniff(file.read(SAMPLE), DELIMITERS).delimiter
            file.seek(0)
            head, *rows = (row for row in csv.reader(file, delimiter=delimiter) if row)
        for number, row in enumerate(rows, 1):
            if len(row) != len(head):
                raise ValueError(f"row {number} has {len(row)} columns, and the first line names {len(head)}")
    except (csv.Error, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a table: {error}. It needs a first line with the names of its columns, divided "
            "by commas, semicolons, tabs or bars, and a line for each image."
        ) from error
    if not rows:
        raise ValueError(f"{path} lists no images.")
    return {name.strip(): list(texts) for name, texts in zip(head, zip(*rows, strict=True), strict=True)}


def _are_images(texts: Sequence[str]) -> bool:
    endings = readable_extensions()
    return all(os.path.splitext(text)[1].lower() in endings for text in texts)


def _splits(columns: dict[str, list[str]], taken: Iterable[str | None]) -> list[str]:
    """Return the split of each row, nothing if no column tells it."""
    words = [word.strip().lower() for word in columns.get(SPLIT, ())]
    return [SPLIT_OF[word] for word in words] if SPLIT not in taken and set(words) <= set(SPLIT_OF) else []


def _only(argument: str, columns: Iterable[str], candidates: Sequence[str]) -> str:
    if len(candidates) != 1:
        which = f"{', '.join(candidates)} could be meant" if candidates else f"none of {', '.join(columns)} fits"
        raise ValueError(f"{which}: give {argument}.")
    return candidates[0]


def _sorted(names: set[str]) -> list[str]:
    return sorted(names, key=int if all(name.isdecimal() for name in names) else None)
