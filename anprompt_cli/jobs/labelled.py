"""Labelled images as the options ask for them: loaded, checked, and in parts by class."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars

from anprompt_peft.data import (
    CorruptImageError,
    check_images,
    class_names_of,
    load_image_data,
    loading,
    select_classes,
)
from anprompt_peft.data.duplicates import Looks
from anprompt_peft.data.folders import some
from anprompt_peft.data.inspect import describe_size, without_images
from anprompt_peft.data.names import read_class_names
from anprompt_peft.files import hub_id
from anprompt_peft.method.class_texts import composed

from ..adapters import unreachable
from ..errors import Failure
from ..options import DataOptions, renames


def on_stderr(line: str) -> None:
    """Print a line on standard error."""
    print(line, file=sys.stderr)


def load_splits(
    options: DataOptions, class_names: list[str] | None = None, tell: Callable[[str], None] = on_stderr
) -> dict[str, Dataset]:
    """Load all splits of the data, and tell what was read and left out; class names stand in place of a file."""
    if Path(options.data).expanduser().exists():
        disable_progress_bars()  # they would tell of downloads
    names = _names(options, class_names)
    try:
        with _logged(tell):
            splits = load_image_data(
                options.data,
                name=options.data_config,
                revision=options.data_revision,
                image_column=options.image_column,
                label_column=options.label_column,
                class_names=names,
            )
    except ConnectionError as error:
        raise unreachable(options.data) from error
    sizes = (f"{split} {describe_size(dataset)}" for split, dataset in splits.items())
    tell(f"Read {options.data}: {'; '.join(sizes)}.")
    return splits


def choose_classes(
    splits: Mapping[str, Dataset], options: DataOptions, tell: Callable[[str], None] = on_stderr
) -> dict[str, Any]:
    """Return the images of the classes that the options choose, of which none may be unknown to the data."""
    known = class_names_of(next(iter(splits.values())))
    names = chosen_classes(known, options)
    if names == known:
        return dict(splits)
    tell(f"Chosen: {len(names)} of {len(known)} classes.")
    return {split: select_classes(part, names) for split, part in splits.items()}


def chosen_classes(known: Sequence[str], options: DataOptions, default: Sequence[str] | None = None) -> list[str]:
    """Return the classes that are asked for, in the order of the data, without those that are to be left out."""
    for option, given in {"--classes": options.classes, "--without-classes": options.without_classes}.items():
        for name in given or ():
            if composed(name) not in known:
                close = get_close_matches(name, known, n=1)
                meant = f" Did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"{option} {name}: the data have no such class, only {some(known)}.{meant}")
    wanted = known if default is None else default
    if options.classes:
        asked = {composed(name) for name in options.classes}
        wanted = [name for name in known if name in asked]
    gone = {composed(name) for name in options.without_classes or ()}
    names = [name for name in wanted if name not in gone]
    if len(names) < 2:
        raise ValueError(f"--classes and --without-classes leave {len(names)} classes, and two are needed.")
    return names


def print_missing(split: str, dataset: Dataset) -> None:
    """Print which classes have no images in a split."""
    if missing := without_images(dataset):
        print(f"No images in {split}: {some(missing)}.", file=sys.stderr)


def choose_split(splits: Mapping[str, Dataset], name: str, option: str) -> Dataset:
    """Return a split; the error for one that is not there names the option."""
    if name not in splits:
        raise ValueError(f"{option} {name}: the data have no such split, only {', '.join(splits)}.")
    return splits[name]


def select_parts(dataset: Dataset, classes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the images of each group of classes, of which none may be empty."""
    parts = {name: select_classes(dataset, group) for name, group in classes.items()}
    for name, part in parts.items():
        if not len(part):
            raise ValueError(f"there are no images of these classes: {', '.join(classes[name])}.")
    return parts


def check_parts(
    parts: Mapping[str, Any], on_corrupt: str, looks: Mapping[str, Looks] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Decode every image once; return those that can be read, and a line for every other one, or fail with these.

    What they look like is added to `looks`, for the parts that are in it.
    """
    seen = looks or {}
    try:
        checked = {
            name: check_images(part, on_corrupt, seen[name].add if name in seen else None)
            for name, part in parts.items()
        }
    except CorruptImageError as error:
        raise Failure(f"{error}\nRepair or remove them, or leave them out with --on-corrupt skip.") from error
    lines = [line for each in checked.values() for line in each.corrupt]
    return {name: each.dataset for name, each in checked.items()}, lines


def left_out(corrupt: Sequence[str]) -> list[str]:
    """Return a note about images that could not be read, if there are any."""
    return [f"{len(corrupt)} images could not be read and were left out."] if corrupt else []


def public_name(source: str | Path) -> str:
    """Return a Hub id, or the name of a file or folder without where that is."""
    return hub_id(str(source)) or Path(source).name


def _names(options: DataOptions, class_names: list[str] | None) -> list[str] | dict[str, str] | None:
    """Return the names to load the data with: those of a list, or of a file and `--rename`."""
    names = read_class_names(options.classes_file) if options.classes_file and not class_names else class_names
    renamed = renames(options.rename)
    if not renamed:
        return names
    if isinstance(names, list):
        raise ValueError("--rename and a list of all class names exclude each other. Rename in the list.")
    if twice := sorted(renamed.keys() & (names or {}).keys()):
        raise ValueError(f"--rename and --classes-file both rename {', '.join(twice)}. Keep one.")
    return {**(names or {}), **renamed}


@contextmanager
def _logged(tell: Callable[[str], None]) -> Iterator[None]:
    """Tell what is logged about the data within the block."""
    logger, handler = loading.logger, logging.Handler()
    handler.emit = lambda record: tell(record.getMessage())  # type: ignore[method-assign]
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
