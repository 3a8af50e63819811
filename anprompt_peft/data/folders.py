"""What a folder of images holds: one rule of which files are read, and of which split and class each is."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets.data_files import SPLIT_KEYWORDS
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from ..method.class_texts import composed
from ..text import printable
from .images import readable_extensions

SPLIT_OF = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}
METADATA = frozenset(ImageFolder.METADATA_FILENAMES)
HIDDEN = {
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
    *("$recycle.bin", "system volume information", "desktop.ini", "thumbs.db", "ehthumbs.db"),
    *("lost+found", "icon\r"),
}
"""What systems put beside pictures, besides names that begin with a dot, in lower case."""
MAX_LINKS = 2
"""Links to folders that are followed on the way to a file; more could multiply without end."""
HEIC = frozenset({".heic", ".heif", ".hif"})
SHOWN = 5

Groups = dict[str, list[str]]


@dataclass
class Listing:
    """The content of a folder: paths relative to it, with `/`, sorted as strings."""

    folder: Path
    images: list[str] = field(default_factory=list)  # files that are read
    others: list[str] = field(default_factory=list)  # files of other endings
    hidden: list[str] = field(default_factory=list)  # files and folders, into which nobody looks
    folders: list[str] = field(default_factory=list)  # all that are not hidden
    links: list[str] = field(default_factory=list)  # to folders, not followed

    @property
    def metadata(self) -> list[str]:
        """Tables with the labels of images, as datasets reads them."""
        return [path for path in self.others if _name(path) in METADATA]

    @property
    def parquet(self) -> list[str]:
        """Parquet files that are not such tables."""
        return [path for path in self.others if path.endswith(".parquet") and _name(path) not in METADATA]

    def left_out(self) -> str:
        """Return how many files are not read, by ending, and how many are hidden; empty if there are none."""
        endings = Counter(_ending(path) for path in self.others if _name(path) not in METADATA)
        parts = [_listed(endings)] if endings else []
        for what, paths in {"hidden": self.hidden, "linked folders not followed": self.links}.items():
            if paths:
                parts.append(f"{what} {len(paths)} ({some(sorted(set(map(_name, paths))))})")
        cure = ' HEIC needs: pip install "anprompt-peft[heic]".' if HEIC & set(endings) else ""
        return f"Left out of {self.folder}: {'; '.join(parts)}.{cure}" if parts else ""


@dataclass
class ClassFolders:
    """The class of every image, by split and by its path relative to the folder, sorted."""

    splits: dict[str, dict[str, str]]
    notes: list[str] = field(default_factory=list)  # what was left out, or may not be meant

    @property
    def class_names(self) -> list[str]:
        """The names of the folders of classes, of all splits, sorted."""
        return sorted({name for images in self.splits.values() for name in images.values()})


def is_hidden(name: str, is_folder: bool) -> bool:
    """Whether a file or folder of that name is never read unless it is named itself."""
    return name.startswith((".", "__") if is_folder else ".") or name.lower() in HIDDEN


def list_folder(folder: str | Path) -> Listing:
    """List a folder and its sub-folders, by names alone: no file is opened."""
    found, endings = Listing(Path(folder)), readable_extensions()
    waiting: list[tuple[str, int, frozenset[tuple[int, int]]]] = [("", 0, frozenset())]
    while waiting:
        below, links, above = waiting.pop()
        here = above | {_identity(found.folder / below)}
        with os.scandir(found.folder / below) as entries:
            for entry in entries:
                path, is_link = below + entry.name, entry.is_symlink()
                is_folder = os.path.isdir(entry.path) if is_link else entry.is_dir()
                if is_hidden(entry.name, is_folder):
                    found.hidden.append(path)
                elif is_folder and links + is_link and (links + is_link > MAX_LINKS or _identity(entry.path) in here):
                    found.links.append(path)
                elif is_folder:
                    found.folders.append(path)
                    waiting.append((f"{path}/", links + is_link, here))
                else:
                    (found.images if _ending(entry.name) in endings else found.others).append(path)
    for paths in (found.images, found.others, found.hidden, found.folders, found.links):
        paths.sort()
    return found


def split_folders(listing: Listing, base: str = "") -> dict[str, str]:
    """Return the folders in the folder `base` that are splits: those named like one that hold folders or metadata."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, files in _grouped([*listing.images, *listing.metadata], base).items():
        split = SPLIT_OF.get(name.lower())
        if split and any("/" in file or file in METADATA for file in files):
            found[split].append(name)
    for split, names in found.items():
        if len(names) > 1:
            both = " and ".join(f"{name}/" for name in sorted(names))
            raise ValueError(f"{listing.folder / base}: {both} are both the split {split}. Join or rename them.")
    return {split: found[split][0] for split in dict.fromkeys(SPLIT_OF.values()) if split in found}


def class_folders(listing: Listing) -> ClassFolders:
    """Tell split and class of every image, a class being a folder with all below it; raise where that is not clear."""
    if unnamed := [path for path in listing.images if path != path.encode(errors="replace").decode()]:
        raise ValueError(f"{listing.folder}: the names of these files are not UTF-8, rename them: {some(unnamed)}.")
    base = _unwrap(listing)
    root, named, top = listing.folder / base, split_folders(listing, base), _grouped(listing.images, base)
    if not (named or {name.lower() for name in top if name} - set(SPLIT_OF)):
        raise ValueError(f"{root} has no folders of classes. Put the images of each class into a folder of its own.")
    places = {split: f"{base}{name}/" for split, name in named.items()} or {"train": base}
    groups = {split: _grouped(listing.images, place) for split, place in places.items()}
    loose = {base: top.pop("", [])}
    loose |= {f"{base}{name}/": files for name, files in top.items() if named and name not in named.values()}
    loose |= {places[split]: group.pop("", []) for split, group in groups.items()}
    _check_depth(root, groups)
    splits = {
        split: {f"{places[split]}{name}/{file}": composed(name) for name, files in group.items() for file in files}
        for split, group in groups.items()
    }
    found = ClassFolders({split: dict(sorted(images.items())) for split, images in splits.items()})
    if len(found.class_names) < 2:
        raise ValueError(
            f"{root} has images of one class only, {found.class_names[0]!r}: give a folder with two or more "
            "sub-folders of classes."
        )
    notes = {
        "read is the only folder in it": [base] if base else [],
        "left out, as they are outside the folders of splits and classes": _counted(
            {at: len(files) for at, files in loose.items()}
        ),
        "left out, as they hold no image that is read": _empty(listing, base, places),
        "counted for the class above": _counted(_nested(places, groups)),
        "one class, as the names differ in their Unicode form only": [
            same for group in groups.values() for same in _alike(group, composed)
        ],
        "different classes, though CLIP reads their names alike": _alike(found.class_names, str.lower),
    }
    found.notes += [f"{listing.folder}: {note}: {some(those)}." for note, those in notes.items() if those]
    return found


def some(names: Sequence[str]) -> str:
    """Return the first names, on one line, and how many others there are."""
    more = [f"{len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return printable(", ".join([*names[:SHOWN], *more]))


def _unwrap(listing: Listing) -> str:
    """Return the folder that holds classes or splits: not one with a single other folder in it."""
    base = ""
    while True:
        inside = _grouped(listing.folders, base)[""]
        if len(inside) != 1 or inside[0].lower() in SPLIT_OF:
            return base
        groups = _grouped(listing.images, f"{base}{inside[0]}/")
        if not groups or "" in groups:
            return base
        base += f"{inside[0]}/"


def _check_depth(root: Path, groups: Mapping[str, Groups]) -> None:
    """Raise if all images are deeper than in the folder of their class: the classes may be those deeper folders."""
    files = [file for group in groups.values() for files in group.values() for file in files]
    if all("/" in file for file in files):
        outer = sorted({name for group in groups.values() for name in group})
        inner = sorted({file.partition("/")[0] for file in files})
        raise ValueError(
            f"{root} does not tell its classes: are they {some(outer)}, or the folders in them, {some(inner)}? Move "
            "the images so that every class is a folder with images in it, directly in the folder of all classes; "
            "those of several splits are called train, validation and test."
        )


def _nested(places: Mapping[str, str], groups: Mapping[str, Groups]) -> Counter[str]:
    """Count the images in each folder within the folder of a class."""
    return Counter(
        f"{places[split]}{name}/{file.partition('/')[0]}/"
        for split, group in groups.items()
        for name, files in group.items()
        for file in files
        if "/" in file
    )


def _empty(listing: Listing, base: str, places: Mapping[str, str]) -> list[str]:
    """Return the folders of classes and splits that hold no image that is read, with what they hold instead."""
    holding, filled, found = {path.rpartition("/")[0] for path in listing.images}, set(), []
    for path in holding:
        while path not in filled:
            filled.add(path)
            path = path.rpartition("/")[0]
    for path in listing.folders:
        name = path.rpartition("/")[2]
        place = path.removesuffix(name)
        if path not in filled and (place in places.values() or (place == base and name.lower() in SPLIT_OF)):
            endings = Counter(map(_ending, (file for file in listing.others if file.startswith(f"{path}/"))))
            found.append(f"{path}/ ({_listed(endings)})" if endings else f"{path}/")
    return found


def _alike(names: Iterable[str], read: Callable[[str], str]) -> list[str]:
    alike = defaultdict(list)
    for name in sorted(names):
        alike[read(name)].append(f"{name}/")
    return [" and ".join(same) for same in alike.values() if len(same) > 1]


def _grouped(paths: Iterable[str], base: str) -> Groups:
    """Return paths below a folder by the folder in it, and relative to that; those directly in it under ''."""
    groups: Groups = defaultdict(list)
    for path in paths:
        if path.startswith(base):
            name, _, rest = path.removeprefix(base).partition("/")
            groups[name if rest else ""].append(rest or name)
    return groups


def _counted(places: Mapping[str, int]) -> list[str]:
    return [f"{place or './'} ({count} image{'s' * (count > 1)})" for place, count in places.items() if count]


def _listed(endings: Counter[str]) -> str:
    return some([f"{ending} {count}" for ending, count in endings.most_common()])


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _ending(path: str) -> str:
    return os.path.splitext(_name(path))[1].lower() or "no ending"


def _identity(folder: str | Path) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino
