"""Captions for glyphs: several wordings for digits (as words and as numerals) and for letters of either case."""

from collections.abc import Sequence

import numpy as np

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_TEMPLATES = (
    "a photo of the digit {}.",
    "a picture of the digit {}.",
    "an image of the digit {}.",
    "a drawing of the digit {}.",
    "a scan of the digit {}.",
    "a blurry photo of the digit {}.",
    "a photo of the number {}.",
    "a picture of the number {}.",
    "an image of the number {}.",
    "a photo of a handwritten {}.",
    "a picture of a printed {}.",
    "the digit {}.",
    "the number {} written with a pen.",
    "the figure {} drawn in white on black.",
    "a handwritten {}.",
    "a {}.",
)
LETTER_TEMPLATES = (
    "a photo of the {case} letter {letter}.",
    "a picture of the {case} letter {letter}.",
    "an image of the {case} letter {letter}.",
    "a drawing of the {case} letter {letter}.",
    "a scan of the {case} letter {letter}.",
    "a blurry photo of the {case} letter {letter}.",
    "a photo of a handwritten {case} {letter}.",
    "a picture of a printed {case} {letter}.",
    "the {case} letter {letter} written with a pen.",
    "the {case} letter {letter} drawn in white on black.",
    "a handwritten {case} {letter}.",
)
UPPER_WORDS = ("capital", "uppercase")
LOWER_WORDS = ("small", "lowercase")


def captions_for(char: str) -> list[str]:
    """Every caption of one character, a digit or an ASCII letter."""
    if char.isascii() and char.isdigit():
        names = (DIGIT_WORDS[int(char)], char)
        return [template.format(name) for template in DIGIT_TEMPLATES for name in names]
    if char.isascii() and char.isalpha():
        cases = UPPER_WORDS if char.isupper() else LOWER_WORDS
        return [template.format(case=case, letter=char) for template in LETTER_TEMPLATES for case in cases]
    raise ValueError(f"no captions for {char!r}: a digit or an ASCII letter is needed")


def draw_captions(options: Sequence[Sequence[str]], chars: np.ndarray, rng: np.random.Generator) -> list[str]:
    """One random caption per character.

    Args:
        options: captions of each character, indexed like `chars`.
        chars: int array [n].
        rng: the only source of randomness.
    """
    return [options[char][int(rng.integers(len(options[char])))] for char in chars.tolist()]
