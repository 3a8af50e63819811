"""Labelled images as the options ask for them: loaded, renamed, checked, and in parts by class."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars

from anprompt_peft.data import (
    CorruptImageError,
    check_images,
    load_image_data,
    loading,
    select_classes,
)
from anprompt_peft.data.columns import count_by_class
from anprompt_peft.data.folders import some
from anprompt_peft.data.names import codes
from anprompt_peft.files import hub_id, read_json

from ..errors import Failure
from ..options import DataOptions
from ..text import printable

LISTED = 8
"""Most classes whose numbers of images are listed one by one."""


def load_splits(options: DataOptions, class_names: list[str] | None = None) -> dict[str, Dataset]:
    """Load all splits of the data that the options name, and say on standard error what was read and left out.

    Args:
        options (`DataOptions`): the data, and how to read them.
        class_names (`list[str]`, *optional*): names of all classes, in the order of the labels, in place of a file.

    Raises:
        ValueError: if columns, labels and class names do not fit.
        FileNotFoundError: if there are no such data.
        Failure: if they may be on the Hub, which cannot be reached.
    """
    if Path(options.data).expanduser().exists():
        disable_progress_bars()  # they would tell of downloads
    try:
        with _told():
            splits = load_image_data(
                options.data,
                name=options.data_config,
                revision=options.data_revision,
                image_column=options.image_column,
                label_column=options.label_column,
                class_names=class_names or read_names(options.classes_file),
            )
    except ConnectionError as error:
        raise Failure(f"There is no folder {options.data}, and the Hub cannot be reached to look there.") from error
    print(f"Read {options.data}: {'; '.join(map(_size, splits, splits.values()))}.", file=sys.stderr)
    return splits


@contextmanager
def _told() -> Iterator[None]:
    """Print on standard error what is logged about the data within the block."""
    logger, handler = loading.logger, logging.StreamHandler(sys.stderr)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _size(split: str, dataset: Dataset) -> str:
    """Return the number of images of a split, and of its classes: each if they are few, else the fewest and most."""
    counts = {name: count for name, count in count_by_class(dataset).items() if count}
    sizes = sorted(set(counts.values()))
    if len(sizes) > 1 and len(counts) <= LISTED:
        each = ", ".join(f"{printable(name)} {count}" for name, count in counts.items())
    else:
        each = " to ".join(map(str, dict.fromkeys([*sizes[:1], *sizes[-1:]]))) + " each"
    return f"{split} {len(dataset)} images of {len(counts)} classes" + f" ({each})" * bool(counts)


def without_images(dataset: Dataset) -> list[str]:
    """Return the classes that have no images."""
    return [name for name, count in count_by_class(dataset).items() if not count]


def tell_missing(split: str, dataset: Dataset) -> None:
    """Say on standard error which classes have no images in a split."""
    if missing := without_images(dataset):
        print(f"No images in {split}: {some(missing)}.", file=sys.stderr)


def choose_split(splits: Mapping[str, Dataset], name: str, option: str) -> Dataset:
    """Return a split.

    Raises:
        ValueError: if there is none of that name; the message names the option.
    """
    if name not in splits:
        raise ValueError(f"{option} {name}: the data have no such split, only {', '.join(splits)}.")
    return splits[name]


def select_parts(dataset: Dataset, classes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the images of each group of classes.

    Raises:
        ValueError: if a class is unknown or a group has no images.
    """
    parts = {name: select_classes(dataset, group) for name, group in classes.items()}
    for name, part in parts.items():
        if not len(part):
            raise ValueError(f"there are no images of these classes: {', '.join(classes[name])}.")
    return parts


def check(dataset: Any, on_corrupt: str) -> tuple[Any, list[str]]:
    """Decode every image once; return those that can be read, and a line for every other one.

    Raises:
        Failure: for `on_corrupt="raise"`, if there are others; the message lists them.
    """
    try:
        return check_images(dataset, on_corrupt)
    except CorruptImageError as error:
        raise Failure(f"{error}\nRepair or remove them, or leave them out with --on-corrupt skip.") from error


def check_parts(parts: Mapping[str, Any], on_corrupt: str) -> tuple[dict[str, Any], list[str]]:
    """Do the same for several data sets by name."""
    checked = {name: check(part, on_corrupt) for name, part in parts.items()}
    return {name: part for name, (part, _) in checked.items()}, [
        line for _, lines in checked.values() for line in lines
    ]


def left_out(corrupt: Sequence[str]) -> list[str]:
    """Return a note about images that could not be read, if there are any."""
    return [f"{len(corrupt)} images could not be read and were left out."] if corrupt else []


def read_names(path: str | Path | None) -> Any:
    """Read class names: a list from a text file, one per line, or the list or object of a JSON file.

    Raises:
        ValueError: if a JSON file holds anything else.
    """
    if path is None:
        return None
    if Path(path).suffix != ".json":
        return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    names = read_json(path)
    found = list(names.values()) if isinstance(names, dict) else names
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ValueError(
            f"{path} must hold a list of class names, or an object from names in the data to better ones."
        )
    return names


def names_hint(names: Sequence[str]) -> str | None:
    """Return what to do about class names that are codes, `None` if there are none."""
    if not (found := codes(names)):
        return None
    shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
    return (
        f"Classes are called {shown}: CLIP reads class names, and these do not say what is in the images. Name them "
        "with --class-names or --classes-file."
    )


def public_name(source: str | Path) -> str:
    """Return a Hub id, or the name of a file or folder without where that is."""
    return hub_id(str(source)) or Path(source).name
