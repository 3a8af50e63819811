"""The catalog of data sets: what is known about each of them, as data in `catalog.json` and in custom files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ...files import parse_json, read_bytes, short, to_json
from ...method.class_texts import check_template
from .layouts import LAYOUTS, stays_inside

MAX_PROBLEMS, MAX_NAME = 5, 80
STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NameRules:
    """How class names are cleaned. The steps follow each other, and a clean name stays as it is."""

    reverse_path: bool = False  # `/a/apartment_building/outdoor` becomes `outdoor apartment building`
    year_first: bool = False  # `FIAT 500 Abarth 2012` becomes `2012 FIAT 500 Abarth`
    split_capitals: bool = False  # `ApplyEyeMakeup` becomes `Apply Eye Makeup`
    lower: bool = False
    rename: dict[str, str] = field(default_factory=dict)  # whole names in the data, to which nothing else is done

    def clean(self, name: str) -> str:
        """Return a name as texts should spell it; underscores always become spaces."""
        if name in self.rename:
            return self.rename[name]
        parts = [part for part in name.split("/") if part]
        if self.reverse_path and "/" in name and parts:
            name = " ".join(reversed(parts[1:] if len(parts[0]) == 1 else parts))
        if self.year_first:
            name = re.sub(r"^(.*\S)[ _]((?:19|20)\d\d)$", r"\2 \1", name)
        if self.split_capitals:
            name = re.sub(r"(?<=[^\s_])(?=[A-Z])", " ", name)
        name = " ".join(name.replace("_", " ").split())
        return name.lower() if self.lower else name


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HubCopy:
    """A copy of a data set on the Hub, and how its test set relates to that of the published tables."""

    repository: str  # its id; or, for custom data, a folder or parquet files
    same_test: bool = False  # whether its test images are those of the published tables
    note: str = ""  # what a table should say beside the figures
    config: str | None = None
    image: str = "image"  # column
    label: str = "label"  # column
    train: str | None = "train"  # split
    validation: str | None = None  # split
    test: str | None = "test"  # split; without one, a share of train is held out
    names: Literal["data", "position", "wnid"] = "data"
    """`data`: the data name their classes. Else they are lines of ImageNet's `classnames.txt`: by the number of the
    label (`position`), or by its name, a WordNet id (`wnid`)."""
    leave_out: list[str] = field(default_factory=list)  # names of classes that the published tables do not have
    one_frame_of: list[str] = field(default_factory=list)  # columns that name a video: only its middle frame is taken
    frame: str | None = None  # column with the number of the frame


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Fetch:
    """Where to get a part of a data set."""

    what: str
    url: str
    to: str  # below the root of all data sets

    def __str__(self) -> str:
        return f"{self.what}: {self.url} -> {self.to}"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CatalogEntry:
    """What is known about a data set.

    Args:
        name (`str`): by which it is asked for.
        templates (`list[str]`): CoOp's zero-shot template, with `{}` for the class name.
        title (`str`): for messages. Default: the name.
        folder (`str`): below the root of all data sets.
        layout (`str`, *optional*): how its files lie in this folder, a name of [`LAYOUTS`]. Without one it is read
            from `hub` alone.
        images (`str`): folder with the images, below its own folder.
        split (`str`, *optional*): the JSON file with the splits, for the layout `split-json`.
        classes (`int`, *optional*), counts (`dict[str, int]`): how many classes, and images by split, there should be.
        names (`NameRules`): how class names are cleaned.
        hub (`HubCopy`, *optional*): a copy on the Hub.
        fetch (`list[Fetch]`): where to get it.
        note (`str`): what a table should say beside the figures.
        ensemble (`list[str]`): the seven templates that Tip-Adapter and its successors average on ImageNet.

    Raises:
        ValueError: if a template lacks `{}`, the layout is unknown or lacks its file, there is nowhere to read from,
            or `folder`, `images` or `split` leaves the root.
    """

    name: str
    templates: list[str]
    title: str = ""
    folder: str = ""
    layout: str | None = None
    images: str = ""
    split: str | None = None
    classes: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    names: NameRules = field(default_factory=NameRules)
    hub: HubCopy | None = None
    fetch: list[Fetch] = field(default_factory=list)
    note: str = ""
    ensemble: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_template(self.templates)
        if self.ensemble:
            check_template(self.ensemble)
        object.__setattr__(self, "title", self.title or self.name)
        if self.layout is not None and self.layout not in LAYOUTS:
            raise ValueError(f"layout={short(self.layout)} must be one of {', '.join(LAYOUTS)}.")
        if self.layout is None and self.hub is None:
            raise ValueError("it needs a `layout` of files in a folder, or a copy on the `hub`.")
        if self.layout == "split-json" and not self.split:
            raise ValueError("the layout split-json needs `split`, the name of the JSON file.")
        for name in ("folder", "images", "split"):
            if not stays_inside(getattr(self, name) or ""):
                raise ValueError(f"{name}={short(getattr(self, name))} must lie below the root of all data sets.")

    def to_json(self) -> str:
        """Return the entry as JSON text that [`read_entry`] reads."""
        return to_json(_ADAPTER.dump_python(self, mode="json"))

    def how_to_fetch(self) -> str:
        """Return where to get the data, to follow a message that they are missing."""
        return f" Get {'; '.join(map(str, self.fetch))}." if self.fetch else ""


_ADAPTER = TypeAdapter(CatalogEntry)


@cache
def catalog() -> Mapping[str, CatalogEntry]:
    """Return the 11 data sets and ImageNet's 4 variants by name, in the order of the published tables."""
    text = (files(__package__) / "catalog.json").read_bytes()
    entries = TypeAdapter(list[CatalogEntry]).validate_json(text)
    return MappingProxyType({entry.name: entry for entry in entries})


def find_entry(name: str) -> CatalogEntry | None:
    """Return the entry of a name, in which case, hyphens and underscores do not matter, or `None`."""
    return {_plain(known): entry for known, entry in catalog().items()}.get(_plain(name))


def _plain(name: str) -> str:
    return re.sub(r"[-_\s]", "", name).lower()


def read_entry(path: str | Path) -> CatalogEntry:
    """Read a custom entry, such as an edited one of the catalog, from a JSON file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not JSON, or a field is unknown, missing, given twice or of the wrong type; the message
            names it.
    """
    data = read_bytes(path)
    try:
        entry = _ADAPTER.validate_json(data)
        parse_json(data.decode("utf-8"))
    except ValidationError as error:
        problems = (
            f"{'.'.join(map(str, each['loc']))[:MAX_NAME] or 'entry'}: {each['msg']}"
            for each in error.errors()[:MAX_PROBLEMS]
        )
        raise ValueError(f"{path} is not a valid entry of a catalog: {'; '.join(problems)}.") from error
    except ValueError as error:
        raise ValueError(f"{path} is not a valid entry of a catalog: {error}") from error
    return entry
