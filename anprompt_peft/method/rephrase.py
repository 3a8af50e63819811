"""Class texts in other words, and texts about anything: what training asks the prompted text encoder to see through.

None of the sentences, endings and things is in the robustness report, which measures with its own.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from .perturb import noun_phrase

WORD_END, WORD_START = "</w>", "\u2581"
"""How tokenizers of CLIP and of sentencepiece mark pieces."""
SENTENCES = (
    "an image of {}.", "a picture showing {}.", "this is {}.", "there is {} here.", "it looks like {}.", "{}",
    "{}, seen here.", "what you see is {}.", "the picture shows {}.", "one example of {}.", "a simple sketch of {}.",
    "this symbol means {}.", "the label says {}.", "i think it is {}.", "{} is what we want to find.",
    "a view of {} from the front.", "have you ever seen {}?", "could this be {}?",
)  # fmt: skip
ENDINGS = (
    "in plain style", "with a clean background", "as it is often seen", "on a screen", "from a collection",
    "made by hand", "with thick strokes", "in the middle", "without any text", "of good quality",
)  # fmt: skip
THINGS = ("a table", "a wall", "a chair", "a rock", "a bag", "a cup", "a stick", "a box", "a rope", "a tile")
BESIDE = ("beside", "near", "and", "behind")
KINDS = ("sentence", "ending", "both", "other", "non-word")


class Rephrased(NamedTuple):
    """m rephrased class texts, the number of each one's class, and texts about anything."""

    texts: list[str]
    classes: list[int]
    anchors: list[str]


def draw_rephrased(
    names: Sequence[str], templates: Sequence[str], words: Sequence[str], count: int, rng: random.Random
) -> Rephrased:
    """Draw m rephrased texts of classes, drawn too, and half as many texts of one or two words, at least one."""
    classes = rng.choices(range(len(names)), k=count)
    texts = [rephrase(names[at], rng.choice(templates), rng) for at in classes]
    about = [" ".join(rng.sample(words, rng.choice((1, 2)))) for _ in range(max(1, count // 2))]
    return Rephrased(texts, classes, [rng.choice(templates).replace("{}", each) for each in about])


def rephrase(name: str, template: str, rng: random.Random) -> str:
    """Return a class text in another sentence, with an ending, with another thing, or with a word without meaning."""
    kind = rng.choice(KINDS)
    if kind == "other":
        return template.replace("{}", f"{name} {rng.choice(BESIDE)} {rng.choice(THINGS)}")
    if kind in ("sentence", "both"):
        template = rng.choice(SENTENCES).replace("{}", noun_phrase(template))
    text = template.replace("{}", name)
    if kind in ("ending", "both"):
        return f"{text.rstrip(' .?')}, {rng.choice(ENDINGS)}."
    if kind == "non-word":
        letters = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 8)))
        return f"{text.rstrip(' .?')}, with {letters}."
    return text


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the words of at least three letters that a tokenizer has as one piece, sorted.

    Raises:
        ValueError: if there are fewer than two.
    """
    marked = (piece for piece in tokenizer.get_vocab() if piece.endswith(WORD_END) or piece.startswith(WORD_START))
    pieces = (piece.removesuffix(WORD_END).removeprefix(WORD_START) for piece in marked)
    words = sorted(piece for piece in pieces if len(piece) > 2 and piece.isalpha())
    if len(words) < 2:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} has {len(words)} whole words in its vocabulary, and rephrased "
            "texts need two. Use the backbone's own, or set rephrased_texts=0."
        )
    return words
