"""Captions of icons: many wordings, natural synonyms, and a share of mild typing errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TEMPLATE = "an icon of {}."
TEMPLATES = (
    TEMPLATE,
    "{}",
    "{}.",
    "{} icon",
    "the {} icon.",
    "an icon: {}.",
    "the icon for {}.",
    "a photo of {}.",
    "a photo of a {}.",
    "a picture of {}.",
    "a drawing of a {}.",
    "a symbol of {}.",
    "the symbol for {}.",
    "a sign that shows {}.",
    "a pictogram of {}.",
    "a simple drawing of {}.",
    "a small white {} on black.",
    "a glyph that means {}.",
    "an icon showing {}.",
    "the {} button.",
    "a button for {}.",
    "press here for {}.",
    "an image of the {} symbol.",
    "a flat {} icon drawn with thin lines.",
    "a filled {} icon.",
    "an app icon that stands for {}.",
)
UNSEEN_TEMPLATES = (
    "a sketch of {}.",
    "this image shows {}.",
    "a {} sign on a button.",
    "the small picture means {}.",
    "a white drawing of the {} symbol.",
    "an icon drawn for {} in an app.",
    "here is a {}.",
    "a simple symbol that stands for {}.",
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def mistype(name: str, rng: np.random.Generator) -> str:
    """A name with one typing error in one of its longest words: a letter left out, doubled, replaced or swapped."""
    words = name.split()
    longest = max(map(len, words))
    at = int(rng.choice([i for i, word in enumerate(words) if len(word) >= min(4, longest)]))
    word, kind = words[at], int(rng.integers(4))
    i = int(rng.integers(len(word)))
    if kind == 0 and len(word) > 1:
        word = word[:i] + word[i + 1 :]
    elif kind == 1:
        word = word[: i + 1] + word[i:]
    elif kind == 2 and i + 1 < len(word):
        word = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    else:
        word = word[:i] + LETTERS[int(rng.integers(len(LETTERS)))] + word[i + 1 :]
    return " ".join([*words[:at], word, *words[at + 1 :]])


def draw_caption(
    names: Sequence[str], templates: Sequence[str], typos: float, own_name: float, rng: np.random.Generator
) -> str:
    """One random caption.

    Args:
        names (`Sequence[str]`): the concept's own name and its synonyms.
        templates (`Sequence[str]`): with `{}` for the name.
        typos (`float`): probability, 0..1, that the name has one typing error.
        own_name (`float`): probability, 0..1, that the first name is taken, whatever others there are.
        rng (`np.random.Generator`): the only source of randomness.
    """
    name = names[0] if rng.random() < own_name else names[int(rng.integers(len(names)))]
    if rng.random() < typos:
        name = mistype(name, rng)
    return templates[int(rng.integers(len(templates)))].replace("{}", name)
