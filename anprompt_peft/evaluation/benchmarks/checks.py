"""A check of the data sets below a folder: which are there, whole and as expected, and where to get the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from tqdm import tqdm

from ...data import CorruptImageError, RGBImage
from .catalog import CatalogEntry
from .layouts import Files, list_files


class Status(StrEnum):
    """What a check says of a data set."""

    FOUND = "found"  # whole and as expected
    MISSING = "missing"  # its folder is not there
    DIFFERENT = "different"  # it can be read, but has other numbers of classes or images
    BROKEN = "broken"  # a file is missing, malformed or unreadable


@dataclass(frozen=True)
class Finding:
    """What was found of a data set: what is wrong, one line each, its size, and where to get what was not found."""

    name: str
    title: str
    folder: str
    status: Status
    problems: list[str] = field(default_factory=list)
    classes: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    fetch: list[str] = field(default_factory=list)


def check_data_set(entry: CatalogEntry, root: str | Path, all_images: bool = False) -> Finding:
    """Check one data set below `root`; decode the first image of each class in each split, or all that are there."""
    if entry.layout is None:
        raise ValueError(f"{entry.title} has no layout of files in a folder that could be checked.")
    fetch = [str(each) for each in entry.fetch]
    about = (entry.name, entry.title, entry.folder)
    if not (Path(root).expanduser() / entry.folder).is_dir():
        return Finding(*about, Status.MISSING, fetch=fetch)
    try:
        files = list_files(entry, root)
    except (OSError, ValueError) as error:
        return Finding(*about, Status.BROKEN, [str(error)], fetch=fetch)
    classes = len(files.classes.names)
    counts = {split: len(rows) for split, rows in files.splits.items()}
    broken = _broken(files, all_images, entry.title)
    different = _differences(entry, classes, counts)
    status = Status.BROKEN if broken else Status.DIFFERENT if different else Status.FOUND
    return Finding(*about, status, broken + different, classes, counts, [] if status is Status.FOUND else fetch)


def _differences(entry: CatalogEntry, classes: int, counts: dict[str, int]) -> list[str]:
    lines = [f"{classes} classes, not {entry.classes}"] if entry.classes not in (None, classes) else []
    there = {split: counts.get(split, 0) for split in entry.counts}
    return lines + [
        f"{there[split]} images in {split}, not {n}" for split, n in entry.counts.items() if there[split] != n
    ]


def _broken(files: Files, all_images: bool, title: str) -> list[str]:
    """Say which images are not there, and which is the first of the others that cannot be read."""
    paths = dict.fromkeys(path for rows in files.splits.values() for path, _ in rows)
    absent = dict.fromkeys(path for path in paths if not Path(path).is_file())
    lines = (
        [f"{len(absent)} of {len(paths)} images are not there, the first is {next(iter(absent))}"] if absent else []
    )
    firsts = {(split, label): path for split, rows in files.splits.items() for path, label in reversed(rows)}
    chosen = paths if all_images else dict.fromkeys(firsts.values())
    for path in tqdm([each for each in chosen if each not in absent], desc=title, unit="image", leave=False):
        try:
            RGBImage().decode_example({"path": path, "bytes": None})
        except (CorruptImageError, OSError) as error:
            return [*lines, f"the first unreadable image: {error}"]
    return lines
