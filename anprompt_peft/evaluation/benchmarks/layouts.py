"""The layouts of folders and text files in which CoOp's code expects the data sets, one function for each.

They list image files and labels. No image is opened, and no pickle read.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ...data.folders import list_folder, some
from ...files import read_bytes, read_json, short

if TYPE_CHECKING:
    from .catalog import CatalogEntry

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = {"train": TRAIN, "val": VALIDATION, "test": TEST}
"""By their names in CoOp's files."""
CLASSNAMES = "classnames.txt"

Rows = list[tuple[str, int]]
"""Image files, and the label of each: a position in the class names."""
Locate = Callable[[str, str], str]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassList:
    """C class names in the order of the label ids, and how texts spell those whose name is not the spelling."""

    names: tuple[str, ...]
    written: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Files:
    """What the files of a data set say: its classes, and the images of each split that there is."""

    classes: ClassList
    splits: Mapping[str, Rows]


def list_files(entry: CatalogEntry, root: str | Path) -> Files:
    """List the images of a data set below `root`; errors name the file, the place in it, and where to get it."""
    try:
        return LAYOUTS[str(entry.layout)](entry, Path(root).expanduser() / entry.folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{entry.title}: {error}{entry.how_to_fetch()}") from error
    except ValueError as error:
        raise ValueError(f"{entry.title}: {error}") from error


def stays_inside(path: str) -> bool:
    """Whether a path in a stranger's file is relative and without `..`."""
    return not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts


# --- CoOp's JSON files


def _split_json(entry: CatalogEntry, folder: Path) -> Files:
    path, locate = folder / str(entry.split), _locator(_folder(folder / entry.images))
    record = read_json(_file(path))
    if not isinstance(record, dict) or not set(SPLITS) <= set(record):
        raise ValueError(f'{path} must be an object with the keys "train", "val" and "test".')
    items = {split: _checked(record[key], key, path, locate) for key, split in SPLITS.items()}
    names = _label_names((item for each in items.values() for item in each), path)
    number_of = {label: number for number, label in enumerate(sorted(names))}
    clean = tuple(entry.names.clean(names[label]) for label in number_of)
    if alike := repeated(clean):
        raise ValueError(f"{path}: several label ids have the class names {some(alike)}.")
    rows = {split: [(image, number_of[label]) for image, label, _ in each] for split, each in items.items()}
    return Files(ClassList(clean), rows)


def _checked(items: Any, key: str, path: Path, locate: Locate) -> list[tuple[str, int, str]]:
    """Return for each item the path of its image, the label id and the class name."""
    if not isinstance(items, list):
        raise ValueError(f'"{key}" of {path} must be a list.')
    checked = []
    for number, item in enumerate(items):
        place = f'item {number} of "{key}" in {path}'
        if not (isinstance(item, list) and list(map(type, item)) == [str, int, str]):
            raise ValueError(f"{place} must be [path, label id, class name], not {short(item)}.")
        checked.append((locate(item[0], place), item[1], item[2]))
    return checked


def _label_names(items: Iterable[tuple[str, int, str]], path: Path) -> dict[int, str]:
    names: dict[int, set[str]] = defaultdict(set)
    for _, label, name in items:
        names[label].add(name)
    if several := {label: sorted(each) for label, each in names.items() if len(each) > 1}:
        raise ValueError(f"{path}: these label ids have several class names: {short(several)}.")
    return {label: next(iter(each)) for label, each in names.items()}


# --- Aircraft's text files


def _aircraft(entry: CatalogEntry, folder: Path) -> Files:
    variants = folder / "variants.txt"
    names = [line.strip() for line in _lines(variants)]
    number_of = {name: number for number, name in enumerate(names)}
    locate = _locator(_folder(folder / entry.images))
    splits: dict[str, Rows] = {split: [] for split in SPLITS.values()}
    for key, split in SPLITS.items():
        path = folder / f"images_variant_{key}.txt"
        for number, line in enumerate(_lines(path), 1):
            image, _, name = line.strip().partition(" ")
            if name not in number_of:
                raise ValueError(f"line {number} of {path} names {short(name)}, which is not a line of {variants}.")
            splits[split].append((locate(f"{image}.jpg", f"line {number} of {path}"), number_of[name]))
    return Files(ClassList(tuple(map(entry.names.clean, names))), splits)


# --- ImageNet and its variants


def _imagenet(entry: CatalogEntry, folder: Path) -> Files:
    """Classes are the sorted folders of `train`; `val` is the test set."""
    names = read_wnid_names(folder / CLASSNAMES)
    places = {TRAIN: folder / entry.images / "train", TEST: folder / entry.images / "val"}
    images = {split: _class_folders(place) for split, place in places.items()}
    if odd := sorted(set(images[TRAIN]) ^ set(images[TEST])):
        both = " and ".join(map(str, places.values()))
        raise ValueError(f"{both} must have the same folders; only one has {some(odd)}.")
    classes = name_wnids(images[TRAIN], names, folder / CLASSNAMES)
    return Files(classes, {split: _numbered(each, each) for split, each in images.items()})


def _wnid_folders(entry: CatalogEntry, folder: Path) -> Files:
    """Only the classes that have a folder compete."""
    names, images = read_wnid_names(folder / CLASSNAMES), _class_folders(folder / entry.images)
    return Files(name_wnids(images, names, folder / CLASSNAMES), {TEST: _numbered(images, images)})


def _numbered_folders(entry: CatalogEntry, folder: Path) -> Files:
    """Folder i has the images of line i, from 0 on."""
    names, images = read_wnid_names(folder / CLASSNAMES), _class_folders(folder / entry.images)
    numbers = [str(number) for number in range(len(names))]
    if odd := sorted(set(images) ^ set(numbers)):
        raise ValueError(
            f"{folder / entry.images} must have a folder for each of the {len(names)} lines of "
            f"{folder / CLASSNAMES}, 0 to {len(names) - 1}; missing or too many: {some(odd)}."
        )
    return Files(name_wnids(names, names, folder / CLASSNAMES), {TEST: _numbered(images, numbers)})


def read_wnid_names(path: Path) -> dict[str, str]:
    """Read ImageNet's `classnames.txt`, a line `wnid name` for each class, in the order of its lines."""
    names = {}
    for number, line in enumerate(_lines(path), 1):
        wnid, _, name = line.strip().partition(" ")
        if not name:
            raise ValueError(f"line {number} of {path} must be a WordNet id and a name, not {short(line)}.")
        names[wnid] = name
    return names


def name_wnids(wnids: Iterable[str], names: Mapping[str, str], path: Path) -> ClassList:
    """Name WordNet ids by the lines of `path`, with the id added where several have one name, as `missile` is."""
    chosen, often = list(wnids), Counter(names.values())
    if unknown := [wnid for wnid in chosen if wnid not in names]:
        raise ValueError(f"{path} has no line for {some(unknown)}.")
    unique = {wnid: f"{names[wnid]} ({wnid})" if often[names[wnid]] > 1 else names[wnid] for wnid in chosen}
    return ClassList(
        tuple(unique.values()), {name: names[wnid] for wnid, name in unique.items() if name != names[wnid]}
    )


def _class_folders(parent: Path) -> dict[str, list[str]]:
    """Return the image files in each folder of a class, sorted, by the package's one rule of which files are read."""
    listing = list_folder(_folder(parent))
    images: dict[str, list[str]] = {folder: [] for folder in listing.folders if "/" not in folder}
    if not images:
        raise FileNotFoundError(f"{parent} has no folders of classes.")
    start = os.path.join(parent, "")
    for path in listing.images:
        folder, _, rest = path.partition("/")
        if rest:
            images[folder].append(start + path)
    if left_out := listing.left_out():
        logger.info(left_out)
    return images


def _numbered(images: Mapping[str, list[str]], folders: Iterable[str]) -> Rows:
    return [(path, number) for number, folder in enumerate(folders) for path in images[folder]]


# --- what all layouts need


def repeated(names: Iterable[str]) -> list[str]:
    """Return the names that stand there more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def _locator(images: Path) -> Locate:
    """Return a function from an image's name in a list, and its place there, to its path.

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


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}.")
    return path


def _file(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    return path


def _lines(path: Path) -> list[str]:
    return [line for line in read_bytes(_file(path)).decode("utf-8").splitlines() if line.strip()]


LAYOUTS: dict[str, Callable[[CatalogEntry, Path], Files]] = {
    "split-json": _split_json,
    "aircraft": _aircraft,
    "imagenet": _imagenet,
    "wnid-folders": _wnid_folders,
    "numbered-folders": _numbered_folders,
}
