"""What a text encoder learns to see through: a class text of any name, and the same phrase among other words.

The forms are data, `grammar.json`; one that stands there several times is drawn that much more often. Names are words
of the tokenizer's vocabulary, and so are the words in the slots of the forms: `[word]`, `[words]` (one to four),
`[thing]` (with a determiner), `[nonwords]` (random letters) and `[number]`. None of the forms measures robustness.
"""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

FORMS: dict[str, list[str]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
SLOT = re.compile(r"\[(\w+)\]")
KINDS = {"sentence": 6, "behind": 5, "front": 3, "around": 2, "sentence and behind": 2}
"""Where the noise of a text is, with how often it is there."""
TRIES = 20


class Pair(NamedTuple):
    """A clean text, and a noisy one that is to get its feature."""

    clean: str
    noisy: str


class Grammar:
    """Draws pairs of texts.

    Args:
        words (`Sequence[str]`): the words of names and slots, at least two.
        fits (`Callable`): whether the encoder reads a text to its end.
    """

    def __init__(self, words: Sequence[str], fits: Callable[[str], bool]) -> None:
        self.words, self.fits = words, fits

    def pair(self, rng: random.Random) -> Pair:
        """Draw a pair. A noisy text that is too long is drawn again, and is the clean one if all draws are."""
        name = self._words(rng, rng.choices((1, 2, 3), (5, 3, 1))[0])
        phrase = self._form("phrases", rng).replace("{}", name)
        clean = self._form("templates", rng).replace("{}", phrase)
        drawn = (self._noisy(clean, phrase, rng) for _ in range(TRIES))
        return Pair(clean, next(filter(self.fits, drawn), clean))

    def _noisy(self, clean: str, phrase: str, rng: random.Random) -> str:
        (kind,) = rng.choices([*KINDS], [*KINDS.values()])
        text = self._form("carriers", rng).replace("{}", phrase) if "sentence" in kind else clean
        text = text.rstrip(".")
        if kind in ("behind", "around", "sentence and behind"):
            text = text.rstrip("?") + self._behind(rng)
        if kind in ("front", "around"):
            text = f"{self._front(rng)} {text}"
        return text + rng.choices((".", "", "!", "?"), (6, 2, 1, 1))[0]

    def _behind(self, rng: random.Random) -> str:
        if rng.random() < 0.5:
            more = "".join(f" {self._form('connectives', rng)} {self._thing(rng)}" for _ in range(_few(rng)))
            return f"{rng.choice(('', ','))}{more}"
        return "".join(f"{rng.choice((',', ',', ' -', ''))} {self._form('clauses', rng)}" for _ in range(_few(rng)))

    def _front(self, rng: random.Random) -> str:
        if rng.random() < 0.5:
            return f"{self._form('connectives', rng)} {self._thing(rng)}{rng.choice((',', ',', ':', ''))}"
        return f"{self._form('clauses', rng)}{rng.choice((',', ',', ':', ' -', ''))}"

    def _form(self, kind: str, rng: random.Random) -> str:
        """Draw a form and fill its slots, but for `{}`."""
        return SLOT.sub(lambda slot: self._slot(slot[1], rng), rng.choice(FORMS[kind]))

    def _slot(self, kind: str, rng: random.Random) -> str:
        match kind:
            case "word":
                return rng.choice(self.words)
            case "words":
                return self._words(rng, rng.randint(1, 4))
            case "thing":
                return self._thing(rng)
            case "number":
                return str(rng.randint(1, 999))
            case "nonwords":
                letters = (rng.choices(string.ascii_lowercase, k=rng.randint(3, 8)) for _ in range(_few(rng)))
                return " ".join(map("".join, letters))
        raise ValueError(f"{kind!r} is no slot of a form.")

    def _thing(self, rng: random.Random) -> str:
        return f"{rng.choice(FORMS['determiners'])} {self._words(rng, rng.choice((1, 1, 2)))}"

    def _words(self, rng: random.Random, count: int) -> str:
        return " ".join(rng.sample(self.words, min(count, len(self.words))))


def _few(rng: random.Random) -> int:
    return rng.choice((1, 1, 2, 3))
