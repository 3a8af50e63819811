"""Class names: as people write them, and in two halves, one to tune on and one to keep unseen."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeGuard

from ..files import atomic_file, read_json, to_json
from ..method.class_texts import check_class_names, composed

ClassNames = Sequence[str] | Mapping[str, str] | Callable[[str], str]
"""Better names: all of them in order, some of them by name, or a function of each name."""
PLACEHOLDERS = {"category", "class", "cls", "id", "label", "no", "nr"}
"""Words of class names that say nothing about the class."""


def readable(name: str) -> str:
    """Return a class name as people write it: `"001.Black_footed_Albatross"` becomes `"Black footed Albatross"`.

    Accents are composed. A number with a dot in front goes; underscores, hyphens and the joints of camelCase become
    single spaces. A name of nothing else, such as `"-"`, stays.
    """
    name = composed(name)
    words = re.sub(r"[_\-\s]+", " ", re.sub(r"^[_\-\s]*(\d+\.)+(?=[\W_]*[^\W\d_])", "", name))
    words = "".join(f" {b}" if a.islower() and b.isupper() else b for a, b in pairwise(f" {words}")).strip()
    return words or name.strip()


def readable_names(names: Sequence[str]) -> list[str]:
    """Return [`readable`] names in the same order.

    Raises:
        ValueError: if two of them come out alike; the message lists which.
    """
    alike = defaultdict(list)
    for name in names:
        alike[readable(name)].append(name)
    if clashes := {clean: raw for clean, raw in alike.items() if len(raw) > 1}:
        raise ValueError(f"class names read alike: {clashes}. Tell them apart with class_names={{name: better name}}.")
    return list(alike)


def is_list(class_names: ClassNames | None) -> TypeGuard[Sequence[str]]:
    """Whether better names are given as a list."""
    return class_names is not None and not isinstance(class_names, Mapping) and not callable(class_names)


def rename(raw: Sequence[str], class_names: ClassNames | None) -> list[str]:
    """Return the names to use for the classes `raw`, in the same order."""
    raw = [composed(name) for name in raw]
    if class_names is None:
        return readable_names(raw)
    if callable(class_names):
        return [class_names(name) for name in raw]
    if isinstance(class_names, Mapping):
        written = Counter(map(readable, raw))
        known = {name: name for name in raw} | {readable(name): name for name in raw if written[readable(name)] == 1}
        class_names = {known.get(composed(name), name): better for name, better in class_names.items()}
        if unknown := set(class_names) - set(raw):
            raise ValueError(f"class_names renames {sorted(unknown)}, which are not among the data's classes {raw}.")
        return [class_names[name] if name in class_names else readable(name) for name in raw]
    names = [composed(name) for name in class_names]
    if len(names) != len(raw):
        raise ValueError(f"class_names lists {len(names)} names for {len(raw)} classes: {raw}.")
    positions = {readable(old): at for at, old in enumerate(raw)} | {old: at for at, old in enumerate(raw)}
    if moved := [name for at, name in enumerate(names) if positions.get(name, at) != at]:
        raise ValueError(
            f"class_names gives {moved} to other classes than the data do, whose order is {raw}. Rename with a dict, "
            "{name: better name}; reorder with select_classes."
        )
    return names


def codes(names: Sequence[str]) -> list[str]:
    """Return the names with a number and no word in them, such as `"3"`, `"n01440764"` or `"class 2"`."""
    return [name for name in names if re.search(r"\d", name) and not _words(name)]


def foreign(names: Sequence[str]) -> list[str]:
    """Return the names with letters that are not Latin: CLIP was trained on English texts."""
    return [
        name for name in names if any(char.isalpha() and "LATIN" not in unicodedata.name(char, "") for char in name)
    ]


def same_meaning(names: Sequence[str]) -> list[list[str]]:
    """Return groups of names that differ only in letter case, punctuation, spaces, order of words or a plural's s."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for join in ("".join, lambda stems: " ".join(sorted(stems))):
        alike = defaultdict(list)
        for name in names:
            stems = [word if word.endswith("ss") else word.rstrip("s") for word in re.findall(r"\w+", name.lower())]
            alike[join(stems)].append(name)
        groups |= {tuple(same): same for same in alike.values() if len(same) > 1}
    return list(groups.values())


def _words(name: str) -> set[str]:
    return {word for word in re.findall(r"[^\W\d_]+", name.lower()) if len(word) > 1} - PLACEHOLDERS


@dataclass(frozen=True)
class ClassHalves:
    """The classes to tune on and those to keep unseen, by name: numbers change with the classes that are loaded.

    Attributes:
        base (`tuple[str, ...]`): classes to tune on.
        new (`tuple[str, ...]`): classes to keep unseen.

    Raises:
        ValueError: if a half is empty or a name repeated.
    """

    base: tuple[str, ...]
    new: tuple[str, ...]

    def __post_init__(self) -> None:
        names = tuple(check_class_names([*self.base, *self.new]))
        if not (self.base and self.new):
            raise ValueError(f"each half needs a class, got base={self.base} and new={self.new}.")
        object.__setattr__(self, "base", names[: len(self.base)])
        object.__setattr__(self, "new", names[len(self.base) :])

    def check_sizes(self) -> None:
        """Raise `ValueError` unless each half has two classes or more, to choose between."""
        if min(len(self.base), len(self.new)) < 2:
            raise ValueError(f"each half needs two classes, got base {list(self.base)} and new {list(self.new)}.")

    def to_json(self) -> str:
        """Return the halves as JSON text."""
        return to_json(asdict(self))

    def save(self, path: str | Path) -> None:
        """Write the halves atomically to a JSON file."""
        with atomic_file(Path(path)) as fresh:
            fresh.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> ClassHalves:
        """Read what [`save`] wrote; raise `ValueError` for anything but two halves."""
        try:
            record = read_json(path)
            if not isinstance(record, dict) or set(record) != {"base", "new"}:
                raise ValueError('it must be an object with the keys "base" and "new".')
            if not all(isinstance(half, list) for half in record.values()):
                raise ValueError("each half must be a list of names.")
            return cls(tuple(record["base"]), tuple(record["new"]))
        except ValueError as error:
            raise ValueError(f"{path} does not hold two halves of classes: {error}") from error


def halves(names: Sequence[str]) -> ClassHalves:
    """Return the first half of `names`, rounded up, as base and the rest as new.

    This is CoCoOp's protocol when `names` are in the data set's own order.
    """
    middle = math.ceil(len(names) / 2)
    return ClassHalves(tuple(names[:middle]), tuple(names[middle:]))


def read_class_names(path: str | Path) -> list[str] | dict[str, str]:
    """Read class names: a list from a text file, one per line, or the list or object of a JSON file."""
    if Path(path).suffix != ".json":
        return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    names = read_json(path)
    found = list(names.values()) if isinstance(names, dict) else names
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ValueError(
            f"{path} must hold a list of class names, or an object from names in the data to better ones."
        )
    return names
