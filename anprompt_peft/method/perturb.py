"""Mild perturbations of a class text: a typo, a dropped word or a paraphrased template, drawn from a seed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

KEYBOARD_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
PHOTO_NOUNS = ("an image", "a picture", "a photograph", "a snapshot", "a shot")
PARAPHRASES = ("a photo of {}.", "an image of {}.", "a picture showing {}.", "this is {}.", "there is {} here.")


def perturb_class_text(name: str, templates: list[str], rng: random.Random) -> str:
    """Return one mildly perturbed text of a class, different from its clean texts.

    One of six edits is drawn: swapping, dropping, inserting or mistyping a letter, dropping a word of the template,
    or paraphrasing the template.
    """
    template = rng.choice(templates)
    text = template.replace("{}", name)
    edited = [
        *(_edit_word(text, typo, rng) for typo in TYPOS),
        _drop_word(template, rng).replace("{}", name),
        paraphrase(template, rng).replace("{}", name),
    ]
    rng.shuffle(edited)
    clean = {each.replace("{}", name) for each in templates}
    return next(candidate for candidate in edited if candidate not in clean)


def paraphrase(template: str, rng: random.Random) -> str:
    """Return the template in other words: another noun for "a photo", else another common template.

    The article in front of `{}` is kept.
    """
    if match := re.search(r"\ba (photo|picture)\b", template, re.IGNORECASE):
        start, end = match.span()
        nouns = [noun for noun in PHOTO_NOUNS if noun != match.group().lower()]
        return template[:start] + rng.choice(nouns) + template[end:]
    others = [each for each in (text.replace("{}", noun_phrase(template)) for text in PARAPHRASES) if each != template]
    return rng.choice(others)


def noun_phrase(template: str) -> str:
    """Return the `{}` of a template with the article in front of it, if there is one."""
    match = re.search(r"\b(a|an|the) \{\}", template, re.IGNORECASE)
    return match.group() if match else "{}"


def swap_letters(word: str, rng: random.Random) -> str:
    """Swap two neighbouring letters."""
    at = rng.randrange(len(word) - 1)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def drop_letter(word: str, rng: random.Random) -> str:
    """Leave one letter out."""
    at = rng.randrange(len(word))
    return word[:at] + word[at + 1 :]


def insert_letter(word: str, rng: random.Random) -> str:
    """Type one letter twice."""
    at = rng.randrange(len(word))
    return word[:at] + word[at] + word[at:]


def mistype_letter(word: str, rng: random.Random) -> str:
    """Hit the key beside the intended one; a word without Latin letters stays as it is."""
    places = [at for at, letter in enumerate(word) if letter.lower() in KEYBOARD_NEIGHBOURS]
    if not places:
        return word
    at = rng.choice(places)
    return word[:at] + rng.choice(KEYBOARD_NEIGHBOURS[word[at].lower()]) + word[at + 1 :]


TYPOS: tuple[Callable[[str, random.Random], str], ...] = (swap_letters, drop_letter, insert_letter, mistype_letter)
KEYBOARD_NEIGHBOURS = {
    letter: row[max(0, at - 1) : at] + row[at + 1 : at + 2] for row in KEYBOARD_ROWS for at, letter in enumerate(row)
}


def _edit_word(text: str, typo: Callable[[str, random.Random], str], rng: random.Random) -> str:
    words = list(re.finditer(r"\w{3,}", text)) or list(re.finditer(r"\w{2,}", text))
    if not words:
        return text
    start, end = rng.choice(words).span()
    return text[:start] + typo(text[start:end], rng) + text[end:]


def _drop_word(template: str, rng: random.Random) -> str:
    words = template.split()
    places = [at for at, word in enumerate(words) if "{}" not in word]
    if not places:
        return template
    del words[rng.choice(places)]
    return " ".join(words)
