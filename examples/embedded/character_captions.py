"""Captions of characters: wordings for digits, and for letters of either case."""

from __future__ import annotations

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


def letter_captions(letter: str) -> tuple[str, ...]:
    """Every caption of an ASCII letter."""
    cases = UPPER_WORDS if letter.isupper() else LOWER_WORDS
    return tuple(template.format(case=case, letter=letter) for template in LETTER_TEMPLATES for case in cases)
