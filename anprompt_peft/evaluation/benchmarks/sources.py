"""Data sets by name: of the catalog, from a folder or the Hub; custom folders, files and functions."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
from datasets import Dataset, load_dataset

from ...data import class_names_of, load_image_data, split_data
from ...data.columns import UNLABELLED, from_files, label_column, labels_of, numbered
from ...data.folders import some
from ..record import BenchmarkData
from .catalog import CatalogEntry, HubCopy, catalog, find_entry, read_entry
from .layouts import CLASSNAMES, TEST, TRAIN, VALIDATION, ClassList, list_files, name_wnids, read_wnid_names, repeated

FOLDER, HUB = "folder", "hub"
SOURCES = (FOLDER, HUB)
TEST_SHARE = 0.3


def load_benchmark_data(
    name_or_path: str | Path, root: str | Path | None = None, source: str = FOLDER
) -> BenchmarkData:
    """Load a data set of a benchmark. No image is decoded.

    Args:
        name_or_path (`str` or `Path`): a name of the catalog (`anprompt datasets list` shows them); a JSON file with
            a custom entry; `module:function`, where the function returns a [`BenchmarkData`] and the module may lie in
            the current folder; or any folder of images, parquet files or data set on the Hub.
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
    if entry is None:
        return _load_custom(text)
    if source == HUB or entry.layout is None:
        return read_hub(entry, root)
    if root is None:
        raise ValueError(
            f"{entry.title}: give the folder that holds the catalog's data sets as root, or source='hub'. A folder of "
            f"your own is asked for as ./{entry.name}."
        )
    files = list_files(entry, root)
    splits = {split: from_files(rows, files.classes.names) for split, rows in files.splits.items()}
    return _data_of(entry, splits, files.classes, entry.note)


def _data_of(
    entry: CatalogEntry, splits: Mapping[str, Dataset], classes: ClassList, note: str, comparable: bool = True
) -> BenchmarkData:
    return BenchmarkData(
        entry.name,
        splits[TRAIN] if TRAIN in splits else from_files([], classes.names),
        splits[TEST],
        tuple(entry.templates),
        validation=splits.get(VALIDATION),
        comparable=comparable,
        note=note,
        written=classes.written,
        ensemble=tuple(entry.ensemble),
    )


# --- functions and folders


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


def _load_custom(source: str) -> BenchmarkData:
    """Load custom data. The test set is the split `test`, else `validation`, else a share."""
    splits = dict(load_image_data(source))
    if TRAIN not in splits:
        raise ValueError(f"{source} has no split train, only {', '.join(splits)}.")
    note, validation = "", splits.get(VALIDATION)
    if TEST not in splits and validation is not None:
        splits[TEST], validation, note = validation, None, "tested on the split validation"
    elif TEST not in splits:
        splits[TRAIN], splits[TEST], note = _hold_out(splits[TRAIN])
    name = Path(source).name
    return BenchmarkData(name, splits[TRAIN], splits[TEST], validation=validation, comparable=False, note=note)


def _hold_out(dataset: Dataset) -> tuple[Dataset, Dataset, str]:
    """Cut data without a split `test` into train and test, 30 % of each class, and say so in a note."""
    parts = split_data(dataset, test=TEST_SHARE, seed=0)
    train, test = (parts[split].flatten_indices() for split in (TRAIN, TEST))
    return train, test, f"the data have no split test: it is {TEST_SHARE:.0%} of the images, drawn with seed 0"


# --- the catalog's copies on the Hub


def read_hub(entry: CatalogEntry, root: str | Path | None = None) -> BenchmarkData:
    """Read a data set from the Hub; `root` has `imagenet/classnames.txt`, for ImageNet and its variants."""
    if entry.hub is None:
        raise ValueError(f"{entry.title} has no copy on the Hub that `datasets` can read.{entry.how_to_fetch()}")
    hub, note = entry.hub, [entry.hub.note]
    loaded = {TEST: _load(hub, hub.test or hub.train)}
    if hub.test is not None and hub.train is not None:
        loaded[TRAIN] = _load(hub, hub.train)
    if hub.validation is not None:
        loaded[VALIDATION] = _load(hub, hub.validation)
    raw = class_names_of(loaded[TEST])
    chosen = [name for name in raw if name not in hub.leave_out]
    classes = _classes(entry, hub, raw, chosen, root)
    splits = {split: _only(each, chosen, classes.names) for split, each in loaded.items()}
    if hub.test is None:
        splits[TRAIN], splits[TEST], share = _hold_out(splits[TEST])
        note.append(share)
    return _data_of(entry, splits, classes, "; ".join(note), hub.same_test)


def _load(hub: HubCopy, split: str | None) -> Dataset:
    if split is None:
        raise ValueError(f"{hub.repository} needs the name of a split to train or to test on.")
    dataset = load_image_data(
        hub.repository,
        split,
        name=hub.config,
        image_column=hub.image,
        label_column=hub.label,
        class_names=str,  # as they are: they are renamed below
    )
    if not hub.one_frame_of:
        return dataset
    table = load_dataset(hub.repository, hub.config, split=split)
    return dataset.select(_middle_frames(table, hub)).flatten_indices()


def _middle_frames(table: Dataset, hub: HubCopy) -> list[int]:
    """Return the row of the middle frame of each video, in the order of the videos."""
    keys = zip(*(label_column(table, column) for column in (hub.label, *hub.one_frame_of)), strict=True)
    frames = label_column(table, str(hub.frame))
    rows_of: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        rows_of[key].append(row)
    return [sorted(rows, key=frames.__getitem__)[len(rows) // 2] for rows in rows_of.values()]


def _classes(
    entry: CatalogEntry, hub: HubCopy, raw: list[str], chosen: list[str], root: str | Path | None
) -> ClassList:
    """Return how the classes `chosen` of those in the data, `raw`, are called."""
    if hub.names == "data":
        names = tuple(map(entry.names.clean, chosen))
        if alike := repeated(names):
            raise ValueError(f"{hub.repository}: several classes are called {some(alike)} once cleaned.")
        return ClassList(names)
    path = _class_names_file(entry, root)
    known = read_wnid_names(path)
    if hub.names == "position" and len(known) != len(raw):
        raise ValueError(f"{hub.repository} has {len(raw)} classes, {path} has {len(known)} lines.")
    return name_wnids(known if hub.names == "position" else raw, known, path)


def _class_names_file(entry: CatalogEntry, root: str | Path | None) -> Path:
    imagenet = catalog()["imagenet"]
    if root is None:
        raise ValueError(
            f"{entry.title}: give the root of the data sets; the class names are read from "
            f"ROOT/{imagenet.folder}/{CLASSNAMES}.{imagenet.how_to_fetch()}"
        )
    return Path(root).expanduser() / imagenet.folder / CLASSNAMES


def _only(split: Dataset, chosen: list[str], names: tuple[str, ...]) -> Dataset:
    """Keep the images of some classes, under new names."""
    labels_of(split)
    renamed, labels = numbered(split, chosen, names)
    if (labels != UNLABELLED).all():
        return renamed
    return renamed.select(np.flatnonzero(labels != UNLABELLED)).flatten_indices()
