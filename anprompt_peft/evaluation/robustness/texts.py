"""Graded perturbations of class texts that training never sees: none of them is in `method/perturb.py`.

Perturbations of one kind belong together: `typing` (character errors), `form` (case, punctuation, dropped words),
`meaning` (other words for the same thing: paraphrases, synonyms, descriptions, longer texts), `distraction` (words
about other things), and `control` (words without meaning). Whole phrases are in `phrasing.py`.
"""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...method.class_texts import as_read, composed
from ..task import ClassTexts, Part

TRIES = 50
DRAWS = 5
ERROR_RATES = (0.05, 0.1, 0.2)
WORDS: dict[str, list[str]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
FRAMES, CLAUSES, THINGS, MARKS = (tuple(WORDS[name]) for name in ("frames", "clauses", "things", "marks"))

TextChange = Callable[[ClassTexts, float, random.Random], ClassTexts]
"""Perturbs class texts with a strength above 0."""


@dataclass(frozen=True)
class TextFamily:
    """One way to perturb class texts, in several strengths.

    Args:
        name (`str`): for records and headings.
        kind (`str`): `typing`, `form`, `meaning`, `distraction`, `control`, `phrasing` or `undecided`.
        strengths (`tuple[float, ...]`): increasing, above 0; what they count is `unit`.
        unit (`str`): what a strength is, for the axis of a plot.
        draws (`int`): how often each strength is drawn.
        change (`Callable`): perturbs texts with a strength and random numbers.
    """

    name: str
    kind: str
    strengths: tuple[float, ...]
    unit: str
    change: TextChange
    draws: int = DRAWS

    def texts(self, classes: ClassTexts, strength: float, draw: int = 0, seed: int = 0) -> ClassTexts:
        """Return the perturbed texts of the same classes: same `names`, other `written`, `templates` or `ensemble`.

        All strengths of a draw share their random numbers. Written names stay non-empty and different from each other
        and from other classes' clean names, in lower case: one that is not is drawn again, and stays clean if 50 draws
        are all taken.

        Args:
            classes (`ClassTexts`): the clean texts.
            strength (`float`): one of `strengths`, or any other its unit allows; 0 gives back `classes`.
            draw (`int`): number of the draw.
            seed (`int`): of all random numbers.

        Raises:
            ValueError: if the strength is below 0.
        """
        if strength < 0:
            raise ValueError(f"strength={strength} must not be below 0; {self.name} has {self.strengths}.")
        if not strength:
            return classes
        source = f"{self.name} {seed} {draw}"
        changed = self.change(classes, strength, random.Random(source))
        if not classes.ensemble:
            return changed
        swapped = replace(classes, templates=classes.ensemble, ensemble=classes.templates)
        return replace(changed, ensemble=self.change(swapped, strength, random.Random(source)).templates)

    def perturbed(self, part: Part, strength: float, draw: int = 0, seed: int = 0) -> Part:
        """Return the part with perturbed texts and the same images; see [`texts`]."""
        return replace(part, classes=self.texts(part.classes, strength, draw, seed))


def text_families(
    synonyms: Mapping[str, Sequence[str]] | None = None, descriptions: Mapping[str, Sequence[str]] | None = None
) -> tuple[TextFamily, ...]:
    """Return all families of text perturbations.

    Args:
        synonyms (`Mapping[str, Sequence[str]]`, *optional*): other names by class name, for a family of their own.
        descriptions (`Mapping[str, Sequence[str]]`, *optional*): phrases such as `"with long ears"` by class name, for
            a family of their own.
    """
    families = [
        TextFamily("misspelt names", "typing", ERROR_RATES, "character error rate", misspell_names, draws=10),
        TextFamily("misspelt template", "typing", ERROR_RATES, "character error rate", misspell_templates, draws=10),
        TextFamily("case", "form", (1, 2), "1 title, 2 upper case", change_case, draws=1),
        TextFamily("punctuation", "form", (1, 2, 4), "marks added", each_template(add_marks)),
        TextFamily("dropped words", "form", (0.25, 0.5), "share of words", drop_words),
        TextFamily("paraphrased template", "meaning", (1,), "1 paraphrased", paraphrase, draws=len(FRAMES)),
        TextFamily("longer text", "meaning", (1, 2, 4), "clauses added", each_template(lengthen)),
        TextFamily("distractors", "distraction", (1, 2, 4), "other things named", distract),
        TextFamily("random words", "control", (1, 2, 4), "words added", each_template(add_random_words)),
    ]
    if synonyms:
        families.append(synonym_family(synonyms))
    if descriptions:
        families.append(description_family(descriptions))
    return tuple(families)


def misspell_names(classes: ClassTexts, rate: float, rng: random.Random) -> ClassTexts:
    """Insert, swap, substitute and delete letters of the names, at a rate of textnoisr's character errors."""
    spell = _speller(rate, rng)
    return replace(classes, written=_distinct(classes, lambda _, name: spell(name)))


def misspell_templates(classes: ClassTexts, rate: float, rng: random.Random) -> ClassTexts:
    """Do the same to the templates."""
    spell = _speller(rate, rng)
    templates = ("{}".join(map(spell, template.split("{}"))) for template in classes.templates)
    return replace(classes, templates=tuple(templates))


def change_case(classes: ClassTexts, strength: float, rng: random.Random) -> ClassTexts:
    """Write names and templates in title case (1) or upper case (2)."""
    change = str.title if strength == 1 else str.upper
    return replace(
        classes, templates=tuple(map(change, classes.templates)), written=tuple(map(change, classes.written))
    )


def each_template(edit: Callable[[str, float, random.Random], str]) -> TextChange:
    """Return the change that edits each template by itself, with a strength and random numbers."""

    def change(classes: ClassTexts, strength: float, rng: random.Random) -> ClassTexts:
        return replace(classes, templates=tuple(edit(template, strength, rng) for template in classes.templates))

    return change


def add_marks(template: str, count: float, rng: random.Random) -> str:
    """Add `count` punctuation marks behind words."""
    words = template.split()
    for at in rng.choices(range(len(words)), k=int(count)):
        words[at] += rng.choice(MARKS)
    return " ".join(words)


def drop_words(classes: ClassTexts, share: float, rng: random.Random) -> ClassTexts:
    """Leave out a share of the words of templates and, down to one word, of names."""

    def drop(words: list[str], droppable: list[int], most: int) -> str:
        dropped = set(rng.sample(droppable, min(most, round(share * len(words)))))
        return " ".join(word for at, word in enumerate(words) if at not in dropped)

    def of_template(template: str) -> str:
        words = template.split()
        droppable = [at for at, word in enumerate(words) if "{}" not in word]
        return drop(words, droppable, len(droppable))

    def of_name(_: int, name: str) -> str:
        words = name.split()
        return drop(words, list(range(len(words))), len(words) - 1)

    return replace(classes, templates=tuple(map(of_template, classes.templates)), written=_distinct(classes, of_name))


def paraphrase(classes: ClassTexts, strength: float, rng: random.Random) -> ClassTexts:
    """Put what each template says of the class, "a {}, a type of pet", into another sentence."""
    frames = rng.sample(FRAMES, len(FRAMES))
    templates = tuple(
        frames[at % len(frames)].replace("{}", noun_phrase(template)) for at, template in enumerate(classes.templates)
    )
    return replace(classes, templates=templates)


def lengthen(template: str, count: float, rng: random.Random) -> str:
    """Add clauses that are true of most images to the end."""
    return with_end(template, f", {', '.join(rng.sample(CLAUSES, int(count)))}")


def add_random_words(template: str, count: float, rng: random.Random) -> str:
    """Add words of random letters, the same for all classes, as WaffleCLIP (Roth et al., 2023) does."""
    words = ("".join(rng.choices(string.ascii_lowercase, k=rng.randint(4, 7))) for _ in range(int(count)))
    return with_end(template, f", which has {', '.join(words)}")


def distract(classes: ClassTexts, count: float, rng: random.Random) -> ClassTexts:
    """Name other things behind each class name, drawn for each class; none of them is in a class name."""
    words = {word for name in (*classes.names, *classes.written) for word in name.lower().split()}
    others = [thing for thing in THINGS if not words.intersection(thing.split()[1:])]
    if len(others) < count:
        raise ValueError(f"the class names leave only {len(others)} things as distractors, fewer than {count:g}.")
    written = (f"{name} next to {' and '.join(rng.sample(others, int(count)))}" for name in classes.written)
    return replace(classes, written=tuple(written))


def synonym_family(synonyms: Mapping[str, Sequence[str]]) -> TextFamily:
    """Return a family that replaces names by synonyms; a strength is the share of the classes that have any.

    Args:
        synonyms (`Mapping[str, Sequence[str]]`): other names by class name.

    Raises:
        ValueError: when it is used, if no class has a synonym.
    """
    synonyms = {composed(name): each for name, each in synonyms.items()}

    def change(classes: ClassTexts, share: float, rng: random.Random) -> ClassTexts:
        known = _with_entries(classes, synonyms, "synonyms")
        chosen = set(rng.sample(known, round(share * len(known))))

        def of(at: int, name: str) -> str:
            return rng.choice(synonyms[classes.names[at]]) if at in chosen else name

        return replace(classes, written=_distinct(classes, of))

    return TextFamily("synonyms", "meaning", (0.5, 1), "share of the classes that have synonyms", change)


def description_family(descriptions: Mapping[str, Sequence[str]]) -> TextFamily:
    """Return a family that adds descriptions to names; a strength is how many, at most all that a class has.

    Args:
        descriptions (`Mapping[str, Sequence[str]]`): phrases by class name.

    Raises:
        ValueError: when it is used, if no class has a description.
    """
    descriptions = {composed(name): each for name, each in descriptions.items()}

    def change(classes: ClassTexts, count: float, rng: random.Random) -> ClassTexts:
        written = list(classes.written)
        for at in _with_entries(classes, descriptions, "descriptions"):
            known = descriptions[classes.names[at]]
            written[at] = ", ".join([written[at], *rng.sample(list(known), min(int(count), len(known)))])
        return replace(classes, written=tuple(written))

    return TextFamily("descriptions", "meaning", (1, 2), "descriptions added", change)


def noun_phrase(template: str) -> str:
    """Return the template from the last article before `{}` on, without its last punctuation."""
    before, after = template.split("{}")
    articles = list(re.finditer(r"\b(a|an|the) ", before, re.IGNORECASE))
    return f"{before[articles[-1].start() :] if articles else ''}{{}}{after.rstrip(' .!?')}"


def with_end(template: str, addition: str) -> str:
    """Return the template with an addition before its last punctuation."""
    text = template.rstrip(" .!?")
    return f"{text}{addition}{template[len(text) :]}"


def _speller(rate: float, rng: random.Random) -> Callable[[str], str]:
    from textnoisr.noise import CharNoiseAugmenter  # reports import this module too, and need no scipy

    settings = {"noise_level": rate, "character_set": tuple(string.ascii_lowercase), "seed": rng.getrandbits(32)}
    noise = CharNoiseAugmenter(**settings)
    unswapped = CharNoiseAugmenter(actions=("insert", "substitute", "delete"), **settings)

    def spell(text: str) -> str:
        return str((noise if len(text) > 1 else unswapped).add_noise(text))

    return spell


def _distinct(classes: ClassTexts, draw: Callable[[int, str], str]) -> tuple[str, ...]:
    """Draw a spelling for each class's position and name, and again while it is empty or taken."""
    taken = {"", *map(as_read, classes.written)}
    drawn: list[str] = []
    for at, name in enumerate(classes.written):
        spellings = (draw(at, name) for _ in range(TRIES))
        free = (text for text in spellings if as_read(text) == as_read(name) or as_read(text) not in taken)
        drawn.append(next(free, name))
        taken.add(as_read(drawn[-1]))
    return tuple(drawn)


def _with_entries(classes: ClassTexts, entries: Mapping[str, Sequence[str]], what: str) -> list[int]:
    """Return the positions of the classes that a mapping knows something about."""
    known = [at for at, name in enumerate(classes.names) if entries.get(name)]
    if not known:
        raise ValueError(f"none of the classes {list(classes.names)} has {what}, only {list(entries)} have.")
    return known
