"""Perturbations, outcome by outcome: over many seeds each function gives exactly what it may give."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from anprompt_peft.method import perturb
from anprompt_peft.method.perturb import (
    KEYBOARD_NEIGHBOURS,
    drop_letter,
    insert_letter,
    mistype_letter,
    paraphrase,
    perturb_class_text,
    swap_letters,
)

Outcomes = Counter[str]


def outcomes(draw: Callable[[random.Random], str], seeds: int = 600) -> Outcomes:
    """What comes out over the seeds, and how often."""
    return Counter(draw(random.Random(seed)) for seed in range(seeds))


def is_even(found: Outcomes, expected: set[str]) -> bool:
    """Whether exactly the expected outcomes were found, none less than half as often as if all were equally likely."""
    return set(found) == expected and min(found.values()) > sum(found.values()) / len(expected) / 2


def test_typos_by_enumeration() -> None:
    assert is_even(outcomes(lambda rng: swap_letters("abcd", rng)), {"bacd", "acbd", "abdc"})
    assert is_even(outcomes(lambda rng: drop_letter("abcd", rng)), {"bcd", "acd", "abd", "abc"})
    assert is_even(outcomes(lambda rng: insert_letter("abcd", rng)), {"aabcd", "abbcd", "abccd", "abcdd"})
    assert is_even(outcomes(lambda rng: mistype_letter("go犬", rng)), {"fo犬", "ho犬", "gi犬", "gp犬"})
    assert is_even(outcomes(lambda rng: mistype_letter("Qz", rng)), {"wz", "Qx"})
    assert set(outcomes(lambda rng: mistype_letter("7犬", rng))) == {"7犬"}


def test_keyboard() -> None:
    assert len(KEYBOARD_NEIGHBOURS) == 26
    for letter, neighbours in {
        "q": "w",
        "p": "o",
        "a": "s",
        "l": "k",
        "z": "x",
        "m": "n",
        "g": "fh",
        "b": "vn",
    }.items():
        assert KEYBOARD_NEIGHBOURS[letter] == neighbours
    assert all(letter in KEYBOARD_NEIGHBOURS[other] for letter, row in KEYBOARD_NEIGHBOURS.items() for other in row)


def test_paraphrases_by_enumeration() -> None:
    def of(template: str) -> Outcomes:
        return outcomes(lambda rng: paraphrase(template, rng))

    nouns = ("an image", "a picture", "a photograph", "a snapshot", "a shot")
    assert is_even(of("a photo of a {}."), {f"{noun} of a {{}}." for noun in nouns})
    assert is_even(of("look, A Picture of {}"), {f"look, {noun} of {{}}" for noun in nouns if noun != "a picture"})
    others = ("a photo of {}.", "an image of {}.", "a picture showing {}.", "this is {}.", "there is {} here.")
    assert is_even(of("{} texture."), set(others))
    assert is_even(of("this is {}."), {other for other in others if other != "this is {}."})
    for article in ("a", "An", "the"):
        expected = {other.replace("{}", f"{article} {{}}") for other in others}
        assert is_even(of(f"art of {article} {{}}"), expected), article
    assert is_even(of("data photo of {}"), set(others)), "only the article by itself is one"


def test_a_word_of_the_template_is_dropped_and_never_the_name() -> None:
    assert is_even(
        outcomes(lambda rng: perturb._drop_word("a red {}, here", rng)), {"red {}, here", "a {}, here", "a red {},"}
    )
    assert set(outcomes(lambda rng: perturb._drop_word("({})", rng))) == {"({})"}


def test_typos_go_into_whole_words_long_ones_first() -> None:
    def mark(word: str, rng: random.Random) -> str:
        return f"<{word}>"

    def of(text: str) -> Outcomes:
        return outcomes(lambda rng: perturb._edit_word(text, mark, rng))

    assert is_even(of("a red ox, 737"), {"a <red> ox, 737", "a red ox, <737>"})
    assert is_even(of("an ox, 7"), {"<an> ox, 7", "an <ox>, 7"})
    assert set(of("a 7 犬")) == {"a 7 犬"}
    assert set(of("déjà")) == {"<déjà>"}


def test_each_of_six_edits_is_as_likely_and_no_text_is_clean() -> None:
    """Told apart by a class name whose typos lie nowhere else."""
    found = outcomes(lambda rng: perturb_class_text("wolf", ["photo {} here"], rng), 3000)
    kinds: Counter[str] = Counter()
    for text, count in found.items():
        paraphrased = text in {other.replace("{}", "wolf") for other in perturb.PARAPHRASES}
        dropped = text in {"photo wolf", "wolf here"}
        longer = len(text) - len("photo wolf here")
        swapped = sorted(text) == sorted("photo wolf here")
        kinds["paraphrase" if paraphrased else "drop word" if dropped else "swap" if swapped else str(longer)] += count
    assert set(kinds) == {"paraphrase", "drop word", "swap", "1", "-1", "0"}
    assert all(count == pytest.approx(500, rel=0.2) for count in kinds.values()), kinds
    assert "photo wolf here" not in found


def test_every_template_is_drawn_and_none_comes_out_clean() -> None:
    """An edit that gives another template's clean text is none."""
    templates = ["a photo of {}.", "an image of {}.", "{} sketch"]
    found = outcomes(lambda rng: perturb_class_text("cat", templates, rng))
    assert not {template.replace("{}", "cat") for template in templates} & set(found)
    assert any(text.startswith("cat s") for text in found)
    assert any("a snapshot" in text for text in found)
    assert any("image f" in text or "imge" in text for text in found)


def test_texts_stay_the_same_from_version_to_version() -> None:
    """Noise prompts can be made again from a configuration only if they do."""
    texts = [perturb_class_text("small fish", ["a photo of a {}."], random.Random(seed)) for seed in range(6)]
    assert texts == PINNED


PINNED = [
    "a of a small fish.", "a photo of a mall fish.", "a hpoto of a small fish.", "a photo of a small fihs.",
    "a photo of small fish.", "photo of a small fish.",
]  # fmt: skip
