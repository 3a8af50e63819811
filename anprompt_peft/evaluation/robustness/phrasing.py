"""Class texts phrased in forms that training never has, which leave the class decided; and one that does not.

Training rephrases too (`method/rephrase.py`), by short statements, phrases behind the name, and things beside it. The
forms here are others: reported speech and questions put to the reader, subordinate clauses, and sentences about
something else, behind the name, in front of the text, or both. All strings stand in `phrasing.json` and nowhere else.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

from ..task import ClassTexts
from .texts import TextChange, TextFamily, noun_phrase, synonym_family, with_end

PHRASING, UNDECIDED = "phrasing", "undecided"
DRAWS = 3
STRINGS: Mapping[str, tuple[str, ...]] = {
    kind: tuple(strings)
    for kind, strings in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")).items()
}
HELD_OUT = tuple(string for strings in STRINGS.values() for string in strings)
"""Every string of the forms: training may have none of them."""

Addition = Callable[[ClassTexts, random.Random], str]
"""Draws what is put behind a name, or in front of a text, for classes that it must not name."""


def phrasing_families(synonyms: Mapping[str, Sequence[str]] | None = None) -> tuple[TextFamily, ...]:
    """Return the forms that leave the class decided for a reader.

    Args:
        synonyms (`Mapping[str, Sequence[str]]`, *optional*): other names by class name; with them, the family
            `synonyms` is one of the forms.
    """
    return (*FORMS, synonym_family(synonyms)) if synonyms else FORMS


def other_sentence(classes: ClassTexts, strength: float, rng: random.Random) -> ClassTexts:
    """Put what each template says of the class, "the digit {}", into another sentence."""
    sentences = _unrelated("sentences", classes)
    drawn = rng.sample(sentences, len(sentences))
    templates = tuple(
        drawn[at % len(drawn)].replace("{}", noun_phrase(template)) for at, template in enumerate(classes.templates)
    )
    return replace(classes, templates=templates)


def behind(addition: Addition) -> TextChange:
    """Return the change that puts something behind each class name, drawn for each class.

    It is part of the names, so that it reaches methods that bring their own words. Where a template goes on behind
    the name, "a {}, a type of pet", it stands at the end of all templates instead, and is the same for all classes.
    """

    def change(classes: ClassTexts, strength: float, rng: random.Random) -> ClassTexts:
        if all(_ends_with_name(template) for template in (*classes.templates, *classes.ensemble)):
            return replace(classes, written=tuple(name + addition(classes, rng) for name in classes.written))
        added = addition(classes, rng)
        return replace(classes, templates=tuple(with_end(template, added) for template in classes.templates))

    return change


def in_front(addition: Addition) -> TextChange:
    """Return the change that puts something in front of each template, the same for all classes."""

    def change(classes: ClassTexts, strength: float, rng: random.Random) -> ClassTexts:
        added = addition(classes, rng)
        return replace(classes, templates=tuple(added + template for template in classes.templates))

    return change


def around(classes: ClassTexts, strength: float, rng: random.Random) -> ClassTexts:
    """Put a clause or a remark in front of the text, and a thing, a clause or a remark behind the name."""
    before, after = rng.choice((clause_before, remark_before)), rng.choice((thing, clause, remark))
    return in_front(before)(behind(after)(classes, strength, rng), strength, rng)


def thing_in_front(classes: ClassTexts, strength: float, rng: random.Random) -> ClassTexts:
    """Name another thing in front of what each template says of the class: "a ladder as well as {}"."""
    named, join = (rng.choice(_unrelated(kind, classes)) for kind in ("things", "joins"))
    phrases = ((template, noun_phrase(template)) for template in classes.templates)
    templates = tuple(template.replace(phrase, f"{named} {join} {phrase}", 1) for template, phrase in phrases)
    return replace(classes, templates=templates)


def thing(classes: ClassTexts, rng: random.Random) -> str:
    """Draw a thing to name behind the class: "cat with a ladder under it"."""
    beside, named = (rng.choice(_unrelated(kind, classes)) for kind in ("beside", "things"))
    return f" {beside.replace('{}', named)}"


def clause(classes: ClassTexts, rng: random.Random) -> str:
    """Draw a subordinate clause to follow the class."""
    return f", {rng.choice(_unrelated('clauses behind', classes))}"


def remark(classes: ClassTexts, rng: random.Random) -> str:
    """Draw a sentence about something else to follow the class."""
    return f". {rng.choice(_unrelated('remarks', classes)).rstrip('.')}"


def clause_before(classes: ClassTexts, rng: random.Random) -> str:
    """Draw a clause to begin the text with."""
    return f"{rng.choice(_unrelated('clauses in front', classes))}, "


def remark_before(classes: ClassTexts, rng: random.Random) -> str:
    """Draw a sentence about something else to stand in front of the text."""
    return f"{rng.choice(_unrelated('remarks', classes))} "


@lru_cache(maxsize=32)  # asked for each class
def _unrelated(kind: str, classes: ClassTexts) -> tuple[str, ...]:
    """Return the strings of a kind that name no class, and the things that share no word with one.

    Raises:
        ValueError: if there are none.
    """
    names = {_words(name) for name in (*classes.names, *classes.written)}
    if kind == "things":
        taken = {word for name in names for word in name.split()}
        free = tuple(each for each in STRINGS[kind] if not taken.intersection(each.split()[1:]))
    else:
        padded = {each: f" {_words(each)} " for each in STRINGS[kind]}
        free = tuple(each for each, text in padded.items() if not any(f" {name} " in text for name in names))
    if not free:
        raise ValueError(
            f"each of the {len(STRINGS[kind])} {kind} for phrasing names one of the classes: leave the group "
            f"{PHRASING!r} out of `robustness` for these data."
        )
    return free


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _ends_with_name(template: str) -> bool:
    return not template.partition("{}")[2].strip(" .!?")


_form = partial(TextFamily, strengths=(1,), unit="1 phrased otherwise", draws=DRAWS)
FORMS = (
    _form("other sentence", PHRASING, change=other_sentence),
    _form("thing behind", PHRASING, change=behind(thing)),
    _form("clause behind", PHRASING, change=behind(clause)),
    _form("clause in front", PHRASING, change=in_front(clause_before)),
    _form("around", PHRASING, change=around),
    _form("unrelated behind", PHRASING, change=behind(remark)),
    _form("unrelated in front", PHRASING, change=in_front(remark_before)),
)
"""The forms that leave the class decided."""
UNDECIDED_FORMS = (_form("thing in front", UNDECIDED, change=thing_in_front),)
"""The forms that do not: what is named first may be what is meant."""
