"""Captions of icons, digits and letters: the wordings of captions.yaml, natural synonyms, and mild typing errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

_TEMPLATES = yaml.safe_load(Path(__file__).with_name("captions.yaml").read_text())
ICON_TEMPLATES, UNSEEN_TEMPLATES, DIGIT_TEMPLATES, LETTER_TEMPLATES = map(tuple, _TEMPLATES.values())
ICON_TEMPLATE = ICON_TEMPLATES[0]
UPPER_WORDS, LOWER_WORDS = ("capital", "uppercase"), ("small", "lowercase")
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def letter_captions(letter: str) -> tuple[str, ...]:
    """Every caption of an ASCII letter."""
    cases = UPPER_WORDS if letter.isupper() else LOWER_WORDS
    return tuple(template.format(case=case, letter=letter) for template in LETTER_TEMPLATES for case in cases)


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
        word = word[:i] + ALPHABET[int(rng.integers(len(ALPHABET)))] + word[i + 1 :]
    return " ".join([*words[:at], word, *words[at + 1 :]])


def draw_caption(
    names: Sequence[str], templates: Sequence[str], typos: float, own_name: float, rng: np.random.Generator
) -> str:
    """One random caption; `typos` and `own_name` are probabilities of a typing error and of taking the first name."""
    name = names[0] if rng.random() < own_name else names[int(rng.integers(len(names)))]
    if rng.random() < typos:
        name = mistype(name, rng)
    return templates[int(rng.integers(len(templates)))].replace("{}", name)
