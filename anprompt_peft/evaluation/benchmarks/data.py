"""A data set of a benchmark by its name: of the catalog, a folder, the Hub, or a function of one's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from ...data import load_image_data
from .catalog import CatalogEntry, find_entry, read_entry
from .folders import read_folder
from .hub import read_hub
from .record import BenchmarkData, hold_out

__all__ = ["BenchmarkData", "load_benchmark_data"]

FOLDER, HUB = "folder", "hub"
SOURCES = (FOLDER, HUB)


def load_benchmark_data(
    name_or_path: str | Path, root: str | Path | None = None, source: str = FOLDER
) -> BenchmarkData:
    """Load a data set of a benchmark. No image is decoded.

    Args:
        name_or_path (`str` or `Path`): a name of the catalog (`anprompt datasets list` shows them); a JSON file with
            an entry of one's own; `module:function`, where the function returns a [`BenchmarkData`] and the module
            may lie in the current folder; or any folder of images, parquet files or data set on the Hub.
        root (`str` or `Path`, *optional*): folder that holds the catalog's data sets.
        source (`str`): `folder` or `hub`, for those of the catalog.

    Raises:
        FileNotFoundError: if files are not there.
        ValueError: if a name, file or label does not fit; the message names it.
        TypeError: if a function returns something else.
    """
    if source not in SOURCES:
        raise ValueError(f"source={source!r} must be one of {', '.join(SOURCES)}.")
    text = str(name_or_path)
    if _is_function(text):
        return _call(text)
    entry = read_entry(text) if text.endswith(".json") else find_entry(text)
    return _own(text) if entry is None else _of_catalog(entry, root, source)


def _of_catalog(entry: CatalogEntry, root: str | Path | None, source: str) -> BenchmarkData:
    if source == HUB or entry.layout is None:
        return read_hub(entry, root)
    if root is None:
        raise ValueError(
            f"{entry.title}: give the folder that holds the catalog's data sets as root, or source='hub'. A folder of "
            f"your own is asked for as ./{entry.name}."
        )
    return read_folder(entry, root)


def _is_function(text: str) -> bool:
    module, _, function = text.partition(":")
    return function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _call(text: str) -> BenchmarkData:
    module, _, function = text.partition(":")
    with _current_folder():
        make = getattr(import_module(module), function, None)
        if not callable(make):
            raise ValueError(f"{text}: the module {module} has no function {function}.")
        data = make()
    if not isinstance(data, BenchmarkData):
        raise TypeError(f"{text} must return a BenchmarkData, it returned {type(data).__name__}.")
    return data


@contextmanager
def _current_folder() -> Iterator[None]:
    """Let modules of the current folder be imported, as uvicorn does."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _own(source: str) -> BenchmarkData:
    """Load data of one's own. The test set is the split `test`, else `validation`, else a share."""
    splits = dict(load_image_data(source))
    if "train" not in splits:
        raise ValueError(f"{source} has no split train, only {', '.join(splits)}.")
    note, validation = "", splits.get("validation")
    if "test" not in splits and validation is not None:
        splits["test"], validation, note = validation, None, "tested on the split validation"
    elif "test" not in splits:
        splits["train"], splits["test"], note = hold_out(splits["train"])
    name = Path(source).name
    return BenchmarkData(name, splits["train"], splits["test"], validation=validation, comparable=False, note=note)
