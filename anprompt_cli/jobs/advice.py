"""What to change about data before a training: names that CLIP reads badly, and pictures in two places.

`anprompt data` shows all of it, `anprompt train` what concerns the pictures that it draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from anprompt_peft.data.duplicates import Copy, Duplicates, Looks, can_compare, find_duplicates
from anprompt_peft.data.folders import some
from anprompt_peft.data.names import codes, foreign, same_meaning

SHOWN = 3
SAME = "the same or nearly the same"


def about_names(names: Sequence[str]) -> list[str]:
    """Return what to do about class names that CLIP is known to read badly."""
    lines = []
    if found := codes(names):
        lines.append(
            f"Classes are called {some(found)}: CLIP reads class names, and these do not say what is in the images. "
            "Name them with --class-names or --classes-file."
        )
    if found := foreign(names):
        lines.append(f"Classes are called {some(found)}: CLIP was trained on English. Name them in English.")
    if groups := same_meaning(names):
        alike = some([" and ".join(map(repr, group)) for group in groups])
        lines.append(
            f"Classes have names that CLIP hardly tells apart: {alike}. Join the classes, or say what differs."
        )
    return lines


def new_looks(parts: Iterable[str]) -> dict[str, Looks]:
    """Return what to remember the looks of pictures in, by part; empty if they cannot be compared here."""
    return {name: Looks() for name in parts} if can_compare() else {}


def duplicates_in(parts: Sequence[tuple[str, Any, Looks | None]], data: str) -> Duplicates:
    """Return the pictures that are in several places, their files named relative to the folder of the data."""
    return find_duplicates(parts, data if Path(data).expanduser().is_dir() else None)


def about_duplicates(found: Duplicates) -> list[str]:
    """Return what to do about pictures in two classes or in two splits."""
    lines = []
    if groups := found.in_two_classes():
        lines.append(f"{_listed(groups)} in two classes, {SAME}: {_shown(groups)}. Keep each in one class.")
    if groups := found.in_two_splits():
        lines.append(
            f"{_listed(groups)} in two splits, {SAME}: {_shown(groups)}. Keep each in one split: figures on pictures "
            "that were trained on do not tell how well new ones are classified."
        )
    return lines


def about_repetition(found: Duplicates) -> list[str]:
    """Return what to know about pictures that a class has several times."""
    groups = found.in_one_class()
    return [
        f"{_listed(groups)} in one class several times, {SAME}: {_shown(groups)}. Copies teach nothing, and a share "
        "that is held out may have copies of what is trained on."
    ] * bool(groups)


def _listed(groups: Sequence[list[Copy]]) -> str:
    return f"{len(groups)} picture{'s are' if len(groups) > 1 else ' is'}"


def _shown(groups: Sequence[list[Copy]]) -> str:
    return some([" = ".join([*map(_place, group[:SHOWN]), *_more(group)]) for group in groups])


def _place(copy: Copy) -> str:
    return f"{copy.name} ({copy.class_name})"


def _more(group: list[Copy]) -> list[str]:
    return [f"{len(group) - SHOWN} more"] if len(group) > SHOWN else []
