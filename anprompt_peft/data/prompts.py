"""Prompts as a CLIP's tokenizer reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

JOINT = "·"
"""Stands in a shown prompt where the tokenizer splits a word."""


@dataclass(frozen=True)
class Prompt:
    """A class text, and what CLIP reads of it.

    Attributes:
        class_name (`str`): the class.
        text (`str`): the template with the name filled in.
        tokens (`int`): their number, with those of start and end.
        read (`str`): the text with [`JOINT`] where a word is split, as far as it fits into the context.
        cut (`str`): the rest of it, empty if all fits.
    """

    class_name: str
    text: str
    tokens: int
    read: str
    cut: str


def read_prompts(names: Sequence[str], templates: Sequence[str], tokenizer: Any, context: int) -> list[Prompt]:
    """Return the prompts of all classes, all templates of the first class first.

    Args:
        names (`Sequence[str]`): the class names.
        templates (`Sequence[str]`): with `{}` for the name.
        tokenizer: a fast tokenizer of transformers, which tells where in the text each token is.
        context (`int`): most tokens that CLIP reads, with those of start and end.
    """
    pairs = [(name, template.replace("{}", name)) for name in names for template in templates]
    return [_read(name, text, tokenizer, context) for name, text in pairs]


def _read(name: str, text: str, tokenizer: Any, context: int) -> Prompt:
    encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    special, places = encoded["special_tokens_mask"], encoded["offset_mapping"]
    spans = [span for span, added in zip(places, special, strict=True) if not added]
    fits = spans[: context - sum(special)]
    end = fits[-1][1] if fits else 0
    return Prompt(name, text, len(special), _split(text[:end], fits), text[end:] if len(fits) < len(spans) else "")


def _split(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """Return a text with a mark between tokens that nothing else divides."""
    inner = {start for (_, before), (start, end) in pairwise(spans) if before == start < end}
    words = {at for at in inner if text[at - 1].isalnum() and text[at].isalnum()}
    return "".join(JOINT * (at in words) + char for at, char in enumerate(text))
