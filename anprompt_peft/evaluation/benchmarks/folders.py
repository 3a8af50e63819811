"""Readers of the folders in which CoOp's code expects the data sets. No image is opened, and no pickle read."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...files import read_bytes, read_json, short
from .catalog import CatalogEntry, stays_inside
from .record import BenchmarkData, from_paths

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = {"train": TRAIN, "val": VALIDATION, "test": TEST}
"""By their names in CoOp's files."""
CLASSNAMES = "classnames.txt"


Locate = Callable[[str, str], str]


@dataclass(frozen=True)
class Names:
    """Names of C classes in the order of their label ids, and how texts spell those whose name is not the spelling."""

    names: tuple[str, ...]
    written: Mapping[str, str]


@dataclass(frozen=True)
class Files:
    """The image files of a split, and the label of each, a position in the names of the classes."""

    paths: list[str]
    labels: list[int]


@dataclass(frozen=True)
class Listing:
    """What the files of a data set say: its classes, and the images of each split that there is."""

    classes: Names
    splits: Mapping[str, Files]


def read_folder(entry: CatalogEntry, root: str | Path) -> BenchmarkData:
    """Read a data set from its folder below `root`.

    Raises:
        FileNotFoundError: if a file or folder is missing; the message names it and where to get it.
        ValueError: if a file is malformed; the message names it and the place in it.
    """
    listing = list_files(entry, root)
    names = listing.classes.names
    splits = {split: from_paths(files.paths, files.labels, names) for split, files in listing.splits.items()}
    return BenchmarkData(
        entry.name,
        splits.get(TRAIN, from_paths([], [], names)),
        splits[TEST],
        tuple(entry.templates),
        validation=splits.get(VALIDATION),
        note=entry.note,
        written=listing.classes.written,
        ensemble=tuple(entry.ensemble),
    )


def list_files(entry: CatalogEntry, root: str | Path) -> Listing:
    """Read which images a data set has, from its text files and folders; errors are those of [`read_folder`]."""
    try:
        return _READERS[str(entry.layout)](entry, Path(root).expanduser() / entry.folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{entry.title}: {error}{entry.how_to_fetch()}") from error
    except ValueError as error:
        raise ValueError(f"{entry.title}: {error}") from error


def read_class_names(path: Path) -> dict[str, str]:
    """Read ImageNet's `classnames.txt`, a line `wnid name` for each class, in the order of its lines."""
    names = {}
    for number, line in enumerate(_lines(path), 1):
        wnid, _, name = line.strip().partition(" ")
        if not name:
            raise ValueError(f"line {number} of {path} must be a WordNet id and a name, not {short(line)}.")
        names[wnid] = name
    return names


def distinct(names: Mapping[str, str]) -> dict[str, str]:
    """Return names by id, with the id added to those of several classes: two of ImageNet's are called `missile`."""
    often = Counter(names.values())
    return {wnid: f"{name} ({wnid})" if often[name] > 1 else name for wnid, name in names.items()}


def named(wnids: Iterable[str], names: Mapping[str, str], path: Path) -> Names:
    """Return the names of some classes of `classnames.txt`."""
    chosen = list(wnids)
    if unknown := [wnid for wnid in chosen if wnid not in names]:
        raise ValueError(f"{path} has no line for {', '.join(unknown[:5])}.")
    unique = distinct(names)
    different = {unique[wnid]: names[wnid] for wnid in chosen if unique[wnid] != names[wnid]}
    return Names(tuple(unique[wnid] for wnid in chosen), different)


# --- CoOp's JSON files


def _split_json(entry: CatalogEntry, folder: Path) -> Listing:
    path, images = folder / str(entry.split), _folder(folder / entry.images)
    _is_there(path)
    record = read_json(path)
    if not isinstance(record, dict) or not {"train", "val", "test"} <= set(record):
        raise ValueError(f'{path} must be an object with the keys "train", "val" and "test".')
    locate = _locator(images)
    rows = {split: _checked(record[key], key, path, locate) for key, split in SPLITS.items()}
    names = _label_names((row for each in rows.values() for row in each), path)
    number_of = {label: number for number, label in enumerate(sorted(names))}
    clean = tuple(entry.names.clean(names[label]) for label in number_of)
    if alike := [name for name, count in Counter(clean).items() if count > 1]:
        raise ValueError(f"{path}: several label ids have the class names {', '.join(alike)}.")
    return Listing(
        Names(clean, {}),
        {split: Files([row[0] for row in each], [number_of[row[1]] for row in each]) for split, each in rows.items()},
    )


def _checked(rows: Any, key: str, path: Path, locate: Locate) -> list[tuple[str, int, str]]:
    """Return for each row the path of its image, the label id and the class name."""
    if not isinstance(rows, list):
        raise ValueError(f'"{key}" of {path} must be a list.')
    checked = []
    for number, row in enumerate(rows):
        place = f'item {number} of "{key}" in {path}'
        if not (isinstance(row, list) and list(map(type, row)) == [str, int, str]):
            raise ValueError(f"{place} must be [path, label id, class name], not {short(row)}.")
        checked.append((locate(row[0], place), row[1], row[2]))
    return checked


def _label_names(rows: Iterable[tuple[str, int, str]], path: Path) -> dict[int, str]:
    names: dict[int, set[str]] = defaultdict(set)
    for _, label, name in rows:
        names[label].add(name)
    if several := {label: sorted(each) for label, each in names.items() if len(each) > 1}:
        raise ValueError(f"{path}: these label ids have several class names: {short(several)}.")
    return {label: next(iter(each)) for label, each in names.items()}


# --- Aircraft's text files


def _aircraft(entry: CatalogEntry, folder: Path) -> Listing:
    variants = folder / "variants.txt"
    names = [line.strip() for line in _lines(variants)]
    number_of = {name: number for number, name in enumerate(names)}
    locate = _locator(_folder(folder / entry.images))
    splits = {}
    for key, split in SPLITS.items():
        path = folder / f"images_variant_{key}.txt"
        files = Files([], [])
        for number, line in enumerate(_lines(path), 1):
            image, _, name = line.strip().partition(" ")
            if name not in number_of:
                raise ValueError(f"line {number} of {path} names {short(name)}, which is no line of {variants}.")
            files.paths.append(locate(f"{image}.jpg", f"line {number} of {path}"))
            files.labels.append(number_of[name])
        splits[split] = files
    return Listing(Names(tuple(map(entry.names.clean, names)), {}), splits)


# --- ImageNet and its variants


def _imagenet(entry: CatalogEntry, folder: Path) -> Listing:
    """Classes are the sorted folders of `train`; `val` is the test set."""
    names = read_class_names(folder / CLASSNAMES)
    train, test = folder / entry.images / "train", folder / entry.images / "val"
    wnids = _folders(train)
    if wnids != _folders(test):
        odd = sorted(set(wnids) ^ set(_folders(test)))
        raise ValueError(f"{train} and {test} must have the same folders; only one has {', '.join(odd[:5])}.")
    classes = named(wnids, names, folder / CLASSNAMES)
    return Listing(classes, {TRAIN: _in_folders(train, wnids), TEST: _in_folders(test, wnids)})


def _wnid_folders(entry: CatalogEntry, folder: Path) -> Listing:
    """Only the classes that have a folder compete."""
    names = read_class_names(folder / CLASSNAMES)
    wnids = _folders(folder / entry.images)
    classes = named(wnids, names, folder / CLASSNAMES)
    return Listing(classes, {TEST: _in_folders(folder / entry.images, wnids)})


def _numbered_folders(entry: CatalogEntry, folder: Path) -> Listing:
    """Folder i has the images of line i, from 0 on."""
    names = read_class_names(folder / CLASSNAMES)
    numbers = [str(number) for number in range(len(names))]
    if odd := sorted(set(_folders(folder / entry.images)) ^ set(numbers)):
        raise ValueError(
            f"{folder / entry.images} must have a folder for each of the {len(names)} lines of "
            f"{folder / CLASSNAMES}, 0 to {len(names) - 1}; missing or too many: {', '.join(odd[:5])}."
        )
    return Listing(named(names, names, folder / CLASSNAMES), {TEST: _in_folders(folder / entry.images, numbers)})


def _folders(parent: Path) -> list[str]:
    with os.scandir(_folder(parent)) as entries:
        found = sorted(each.name for each in entries if each.is_dir() and not each.name.startswith("."))
    if not found:
        raise FileNotFoundError(f"{parent} has no folders of classes.")
    return found


def _in_folders(parent: Path, names: Sequence[str]) -> Files:
    files = Files([], [])
    for number, name in enumerate(names):
        with os.scandir(parent / name) as entries:
            found = sorted(each.path for each in entries if not each.name.startswith("."))
        files.paths.extend(found)
        files.labels.extend([number] * len(found))
    return files


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}.")
    return path


def _is_there(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")


def _locator(images: Path) -> Locate:
    """Return a function from the name of an image in a list, and its place there, to the path of the image.

    It raises `ValueError` for an image that lies outside of the folder, be it by its name or by a link.
    """
    real = cache(Path.resolve)

    def locate(name: str, place: str) -> str:
        path = images / name
        if not stays_inside(name):
            raise ValueError(f"{place} leaves the folder of the images: {short(name)}.")
        target = path.resolve() if path.is_symlink() else real(path.parent)
        if not target.is_relative_to(real(images)):
            raise ValueError(f"{place} leaves the folder of the images: {short(name)} is a link to {target}.")
        return str(path)

    return locate


def _lines(path: Path) -> list[str]:
    _is_there(path)
    return [line for line in read_bytes(path).decode("utf-8").splitlines() if line.strip()]


_READERS: dict[str, Callable[[CatalogEntry, Path], Listing]] = {
    "split-json": _split_json,
    "aircraft": _aircraft,
    "imagenet": _imagenet,
    "wnid-folders": _wnid_folders,
    "numbered-folders": _numbered_folders,
}
