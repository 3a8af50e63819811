"""A check of the data sets below a folder: which are there, whole and as expected, and where to get the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from tqdm import tqdm

from ...data import CorruptImageError, RGBImage
from .catalog import CatalogEntry
from .folders import Files, Listing, list_files


class Status(StrEnum):
    """What a check says of a data set.

    `found`: whole and as expected. `missing`: its folder is not there. `different`: it can be read, but has other
    numbers of classes or images. `broken`: a file is missing, malformed or unreadable.
    """

    FOUND = "found"
    MISSING = "missing"
    DIFFERENT = "different"
    BROKEN = "broken"


@dataclass(frozen=True)
class Finding:
    """What was found of a data set.

    Args:
        name (`str`), title (`str`), folder (`str`): those of the catalog.
        status (`Status`): the result.
        problems (`list[str]`): what is wrong, one line each.
        classes (`int`, *optional*), counts (`dict[str, int]`): classes, and images by split.
        fetch (`list[str]`): where to get it, unless it was found.
    """

    name: str
    title: str
    folder: str
    status: Status
    problems: list[str] = field(default_factory=list)
    classes: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    fetch: list[str] = field(default_factory=list)


def check_data_set(entry: CatalogEntry, root: str | Path, all_images: bool = False) -> Finding:
    """Check one data set.

    Args:
        entry (`CatalogEntry`): what there should be.
        root (`str` or `Path`): folder that holds the data sets.
        all_images (`bool`): decode every image; otherwise the first one of each class in each split. All are looked
            for in either case.

    Raises:
        ValueError: if the entry is not about files in a folder.
    """
    if entry.layout is None:
        raise ValueError(f"{entry.title} has no layout of files in a folder that could be checked.")
    fetch = [str(each) for each in entry.fetch]
    about = (entry.name, entry.title, entry.folder)
    if not (Path(root).expanduser() / entry.folder).is_dir():
        return Finding(*about, Status.MISSING, fetch=fetch)
    try:
        listing = list_files(entry, root)
    except (OSError, ValueError) as error:
        return Finding(*about, Status.BROKEN, [str(error)], fetch=fetch)
    classes = len(listing.classes.names)
    counts = {split: len(files.paths) for split, files in listing.splits.items()}
    broken = _broken(listing, all_images, entry.title)
    different = _differences(entry, classes, counts)
    status = Status.BROKEN if broken else Status.DIFFERENT if different else Status.FOUND
    return Finding(*about, status, broken + different, classes, counts, [] if status is Status.FOUND else fetch)


def _differences(entry: CatalogEntry, classes: int, counts: dict[str, int]) -> list[str]:
    lines = []
    if entry.classes is not None and classes != entry.classes:
        lines.append(f"{classes} classes, not {entry.classes}")
    for split, expected in entry.counts.items():
        if counts.get(split, 0) != expected:
            lines.append(f"{counts.get(split, 0)} images in {split}, not {expected}")
    return lines


def _broken(listing: Listing, all_images: bool, title: str) -> list[str]:
    lines = []
    paths = dict.fromkeys(path for files in listing.splits.values() for path in files.paths)
    if absent := [path for path in paths if not Path(path).is_file()]:
        lines.append(f"{len(absent)} of {len(paths)} images are not there, the first is {absent[0]}")
    gone = set(absent)
    chosen = paths if all_images else dict.fromkeys(_one_of_each_class(listing.splits.values()))
    for path in tqdm([each for each in chosen if each not in gone], desc=title, unit="image", leave=False):
        try:
            RGBImage().decode_example({"path": path, "bytes": None})
        except (CorruptImageError, OSError) as error:
            return [*lines, f"the first unreadable image: {error}"]
    return lines


def _one_of_each_class(splits: Iterable[Files]) -> Iterable[str]:
    for files in splits:
        first: dict[int, str] = {}
        for path, label in zip(files.paths, files.labels, strict=True):
            first.setdefault(label, path)
        yield from first.values()
