"""Perturbations of texts and images, the curves, an adapter's logits under them, and the command line."""

from __future__ import annotations

import io
import json
import random
import re
import string
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from peft import get_peft_model
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor

import chromium
from anprompt_cli import main
from anprompt_peft import ANPromptConfig
from anprompt_peft.data import ClipTransform, RGBImage
from anprompt_peft.denoising import grammar
from anprompt_peft.evaluation.backbone import Backbone
from anprompt_peft.evaluation.robustness import (
    FORMS,
    HELD_OUT,
    IMAGE_FAMILIES,
    UNDECIDED_FORMS,
    Family,
    FittedAdapter,
    ImageFamily,
    Record,
    TextFamily,
    description_family,
    measure_robustness,
    phrasing,
    phrasing_families,
    summarise,
    synonym_family,
    text_families,
)
from anprompt_peft.evaluation.robustness import texts as text_module
from anprompt_peft.evaluation.robustness.texts import FRAMES, MARKS, THINGS, drop_words
from anprompt_peft.evaluation.task import ClassTexts, ImageSet, Part
from anprompt_peft.files import to_json
from anprompt_peft.method import rephrase
from anprompt_peft.method.perturb import PARAPHRASES, PHOTO_NOUNS
from anprompt_peft.report import ReportData, render_report
from anprompt_peft.report.charts import robustness_charts
from conftest import CONTEXT, IMAGE_SIZE
from handwriting import CLASS_NAMES, TEMPLATE
from helpers import CLASSES, adapted, logits, make_clip, marks, scatter, texts

GOLDEN = Path(__file__).with_name("golden")
TINY_CLIP = Path(__file__).parents[1] / "examples" / "embedded" / "tiny_clip"
NAMES = ("golden retriever", "annual crop land", "red car", "blue car", "car", "siamese cat")
TEMPLATES = ("a photo of a {}.", "a blurry photo of the {}, a type of thing!")
TEXTS = ClassTexts(NAMES, TEMPLATES)
SYNONYMS = {
    "golden retriever": ["dog"],
    "car": ["automobile", "red car"],
    "siamese cat": ["kitty", "puss"],
    "x": ["y"],
}
DESCRIPTIONS = {"car": ["with four wheels", "on a road"], "red car": ["of red paint"]}
FAMILIES = text_families(SYNONYMS, DESCRIPTIONS)
BY_NAME = {family.name: family for family in FAMILIES}
BY_CHANGE = {family.name: family for family in IMAGE_FAMILIES}

BY_FORM = {family.name: family for family in (*FORMS, *UNDECIDED_FORMS)}

ids = pytest.mark.parametrize("family", [*FAMILIES, *BY_FORM.values()], ids=lambda family: family.name)
image_ids = pytest.mark.parametrize("family", IMAGE_FAMILIES, ids=lambda family: family.name)


def distance(one: str, other: str) -> int:
    """The Levenshtein distance."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        above, row = row, [number]
        for at, against in enumerate(other):
            row.append(min(above[at + 1] + 1, row[-1] + 1, above[at] + (letter != against)))
    return row[-1]


# --- texts


@ids
def test_strength_zero_is_the_same_texts(family: TextFamily) -> None:
    assert family.texts(TEXTS, 0, draw=3) is TEXTS
    with pytest.raises(ValueError, match=r"strength=-1 must not be below 0"):
        family.texts(TEXTS, -1)


@ids
def test_an_ensemble_of_templates_is_perturbed_as_the_templates_are(family: TextFamily) -> None:
    for strength in family.strengths:
        swapped = replace(TEXTS, templates=TEXTS.templates[::-1])
        changed = family.texts(replace(TEXTS, ensemble=swapped.templates), strength)
        assert replace(changed, ensemble=()) == family.texts(TEXTS, strength)
        assert changed.ensemble == family.texts(swapped, strength).templates


@ids
def test_texts_follow_from_seed_and_draw(family: TextFamily) -> None:
    for strength in family.strengths:
        drawn = [family.texts(TEXTS, strength, draw, seed) for draw, seed in ((0, 0), (0, 0), (1, 0), (0, 1), (2, 0))]
        assert drawn[0] == drawn[1]
        assert len(set(drawn)) > 1 or family.draws == 1 or (family.name, strength) == ("descriptions", 2)
        assert any(each != TEXTS for each in drawn)


@ids
def test_classes_keep_their_identity_and_stay_apart(family: TextFamily) -> None:
    close = ClassTexts(("a", "b", "ab", "red car", "blue car", "car", "Red", "blue", "golden retriever"), TEMPLATES)
    for classes in (TEXTS, close):
        if family.name == "synonyms" and classes is close:
            classes = replace(close, names=(*close.names[:-1], "golden retriever"))
        for strength in family.strengths:
            for draw in range(15):
                changed = family.texts(classes, strength, draw)
                folded = [" ".join(name.lower().split()) for name in changed.written]
                assert changed.names == classes.names
                assert len(set(folded)) == len(folded) == len(classes.names)
                assert all(folded)
                assert [each.count("{}") for each in changed.templates] == [1, 1]


@ids
def test_a_family_changes_names_or_templates_as_its_kind_says(family: TextFamily) -> None:
    of_names = {"misspelt names", "distractors", "synonyms", "descriptions"}
    of_both = {"case", "dropped words"}
    drawn = [family.texts(TEXTS, family.strengths[-1], draw) for draw in range(5)]
    assert any(each.written != TEXTS.written for each in drawn) == (family.name in of_names | of_both)
    assert any(each.templates != TEXTS.templates for each in drawn) == (family.name not in of_names)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
def test_character_error_rates_are_what_they_say(rate: float) -> None:
    family, clean = BY_NAME["misspelt names"], ClassTexts(("golden retriever", "annual crop land", "sea or lake"))
    drawn = [family.texts(clean, rate, draw).written for draw in range(600)]
    rates = [
        distance(name, text) / len(name) for names in drawn for name, text in zip(clean.names, names, strict=True)
    ]
    # several errors in a short name can undo each other: up to 8 % less
    assert (
        0.92 * rate - 3 * stdev(rates) / len(rates) ** 0.5 < mean(rates) < rate + 3 * stdev(rates) / len(rates) ** 0.5
    )
    family = BY_NAME["misspelt template"]
    templates = [family.texts(clean, rate, draw).templates[0] for draw in range(600)]
    rates = [distance(TEMPLATES[0], text) / len(TEMPLATES[0].replace("{}", "")) for text in templates]
    assert abs(mean(rates) - rate) < 0.1 * rate + 3 * stdev(rates) / len(rates) ** 0.5


def test_a_name_of_one_letter_can_be_misspelt() -> None:
    family, digits = BY_NAME["misspelt names"], ClassTexts(tuple("0123456789"))
    drawn = [family.texts(digits, 0.2, draw).written for draw in range(20)]
    assert all(len(set(names)) == 10 for names in drawn)
    assert len(set(drawn)) > 10


def test_letters_are_inserted_left_out_exchanged_and_swapped() -> None:
    family, clean = BY_NAME["misspelt names"], ClassTexts(("abcdefgh", "stuvwxyz"))
    first = {family.texts(clean, 0.1, draw).written[0] for draw in range(300)}
    once = [text for text in first if distance("abcdefgh", text) == 1 or sorted(text) == list("abcdefgh")]
    assert any(len(text) == 9 for text in once)
    assert any(len(text) == 7 for text in once)
    assert any(len(text) == 8 and sorted(text) != list("abcdefgh") for text in once)
    assert any(sorted(text) == list("abcdefgh") and text != "abcdefgh" for text in once)


def test_case() -> None:
    assert BY_NAME["case"].texts(TEXTS, 1).texts[0] == "A Photo Of A Golden Retriever."
    assert BY_NAME["case"].texts(TEXTS, 2).texts[0] == "A PHOTO OF A GOLDEN RETRIEVER."


@pytest.mark.parametrize("count", [1, 2, 4])
def test_marks_are_added_and_nothing_else(count: int) -> None:
    for draw in range(10):
        for clean, marked in zip(TEMPLATES, BY_NAME["punctuation"].texts(TEXTS, count, draw).templates, strict=True):
            marks = list(MARKS)
            pattern = "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True))
            assert 0 < len(marked) - len(clean) <= 3 * count
            assert re.sub(rf"{pattern}|\.|,|!", "", marked).split() == re.sub(r"[.,!]", "", clean).split()


def test_a_share_of_the_words_is_dropped_and_never_all() -> None:
    family = BY_NAME["dropped words"]
    classes = ClassTexts(("one two three four", "five", "six seven"), ("a photo of a {} here.",))
    for draw in range(20):
        half = family.texts(classes, 0.5, draw)
        words = half.written[0].split()
        assert len(words) == 2
        assert words == [word for word in classes.names[0].split() if word in words]
        assert half.written[1] == "five"
        assert half.written[2] in ("six", "seven")
        assert len(half.templates[0].split()) == 3
        assert "{}" in half.templates[0]
        everything = drop_words(classes, 1, text_module.random.Random(draw))
        assert [len(name.split()) for name in everything.written] == [1, 1, 1]
        assert everything.templates == ("{}",)


def test_a_name_stays_clean_where_every_other_spelling_is_taken() -> None:
    classes = ClassTexts(("red car", "Red", "car"))
    assert BY_NAME["dropped words"].texts(classes, 0.5).written == classes.names
    vans = ClassTexts(("red van", "blue van"))
    drawn = {BY_NAME["dropped words"].texts(vans, 0.5, draw).written for draw in range(40)}
    assert drawn == {("red", "blue"), ("red", "van"), ("van", "blue")}


def test_paraphrases_keep_what_the_template_says_of_the_class() -> None:
    drawn = {BY_NAME["paraphrased template"].texts(TEXTS, 1, draw).templates for draw in range(60)}
    phrases = ("a {}", "the {}, a type of thing")
    expected = [{frame.replace("{}", phrase) for frame in FRAMES} for phrase in phrases]
    for at in (0, 1):
        assert {templates[at] for templates in drawn} == expected[at]
    bare = BY_NAME["paraphrased template"].texts(ClassTexts(("cat", "dog"), ("{}",)), 1).templates
    assert bare[0] in FRAMES


def test_an_ensemble_gets_different_paraphrases() -> None:
    classes = ClassTexts(("cat", "dog"), tuple(f"{each} {{}}" for each in "bcdefgh"))
    changed = BY_NAME["paraphrased template"].texts(classes, 1).templates
    assert len({re.sub(r"\b[b-h] \{\}", "{}", template) for template in changed}) == 7


def test_evaluation_shares_no_text_with_training() -> None:
    trained = {text.replace("{}", f"{article}{{}}") for text in PARAPHRASES for article in ("", "a ", "an ", "the ")}
    trained |= {f"{noun} of a {{}}." for noun in PHOTO_NOUNS}
    ours = {frame.replace("{}", f"{article}{{}}") for frame in FRAMES for article in ("", "a ", "an ", "the ")}
    assert not ours & trained
    source = Path(text_module.__file__).read_text()
    assert not re.search(r"^(from|import) .*perturb", source, re.MULTILINE)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_longer_texts_and_random_words(count: int) -> None:
    for clean, longer in zip(TEMPLATES, BY_NAME["longer text"].texts(TEXTS, count).templates, strict=True):
        assert longer.startswith(clean[:-1] + ", ")
        assert longer[-1] == clean[-1]
        clauses = longer[len(clean) + 1 : -1].split(", ")
        assert len(set(clauses)) == count
        assert set(clauses) <= set(text_module.CLAUSES)
    for clean, longer in zip(TEMPLATES, BY_NAME["random words"].texts(TEXTS, count).templates, strict=True):
        words = longer.removeprefix(f"{clean[:-1]}, which has ").removesuffix(clean[-1]).split(", ")
        assert len(words) == count
        assert all(4 <= len(word) <= 7 and set(word) <= set(string.ascii_lowercase) for word in words)


def test_distractors_name_no_class() -> None:
    classes = ClassTexts(("pebble", "dust storm", "cat"))
    for draw in range(20):
        for name, text in zip(classes.names, BY_NAME["distractors"].texts(classes, 4, draw).written, strict=True):
            things = text.removeprefix(f"{name} next to ").split(" and ")
            assert len(set(things)) == 4
            assert set(things) <= set(THINGS) - {"a pebble", "some dust"}
    many = ClassTexts(tuple(thing.split()[-1] for thing in THINGS))
    with pytest.raises(ValueError, match="leave only 0 things as distractors, fewer than 1"):
        BY_NAME["distractors"].texts(many, 1)


def test_entries_are_found_under_composed_names() -> None:
    classes, entries = ClassTexts(("Caf\u00e9", "dog")), {"Cafe\u0301": ["bar"]}
    assert synonym_family(entries).texts(classes, 1).written == ("bar", "dog")
    assert description_family(entries).texts(classes, 1).written == ("Caf\u00e9, bar", "dog")


def test_synonyms_replace_a_share_of_the_names_that_have_any() -> None:
    whole = [BY_NAME["synonyms"].texts(TEXTS, 1, draw).written for draw in range(20)]
    assert {names[0] for names in whole} == {"dog"}
    assert {names[4] for names in whole} == {"automobile"}  # "red car" is another class
    assert {names[5] for names in whole} == {"kitty", "puss"}
    assert {names[1:4] for names in whole} == {NAMES[1:4]}
    half = [BY_NAME["synonyms"].texts(TEXTS, 0.5, draw).written for draw in range(20)]
    assert {sum(ours != clean for ours, clean in zip(names, NAMES, strict=True)) for names in half} == {2}
    with pytest.raises(ValueError, match=r"none of the classes \['a', 'b'\] has synonyms"):
        synonym_family(SYNONYMS).texts(ClassTexts(("a", "b")), 1)


def test_descriptions_are_added_to_names() -> None:
    assert BY_NAME["descriptions"].texts(TEXTS, 1).written[2] == "red car, of red paint"
    both = BY_NAME["descriptions"].texts(TEXTS, 2).written[4]
    assert sorted(both.split(", ")) == ["car", "on a road", "with four wheels"]
    with pytest.raises(ValueError, match="has descriptions"):
        description_family(DESCRIPTIONS).texts(ClassTexts(("a", "b")), 1)


def test_families_by_kind() -> None:
    assert {family.name for family in FAMILIES} - {family.name for family in text_families()} == {
        "synonyms", "descriptions",
    }  # fmt: skip
    kinds = {"typing", "form", "meaning", "distraction", "control"}
    assert {family.kind for family in FAMILIES} == kinds
    assert all(list(family.strengths) == sorted(family.strengths) and family.strengths[0] > 0 for family in FAMILIES)
    misspelt = [family for family in FAMILIES if family.kind == "typing"]
    assert {family.strengths for family in misspelt} == {(0.05, 0.1, 0.2)}


# --- phrasing

ENDING = ClassTexts(NAMES, ("a photo of the pet {}.", "an icon of {}"))
"""Classes whose templates end with the name."""

form_ids = pytest.mark.parametrize("form", BY_FORM.values(), ids=list(BY_FORM))


def in_one_of(kind: str, pattern: str, text: str) -> bool:
    """Whether a text is a pattern with one of a kind's strings for `<>`."""
    return text in {pattern.replace("<>", string.rstrip(".")) for string in phrasing.STRINGS[kind]}


@pytest.mark.parametrize(
    ("form", "kind", "first", "second"),
    [
        ("clause behind", "clauses behind", "a photo of the pet car, <>.", "an icon of car, <>"),
        ("unrelated behind", "remarks", "a photo of the pet car. <>.", "an icon of car. <>"),
        ("clause in front", "clauses in front", "<>, a photo of the pet car.", "<>, an icon of car"),
        ("unrelated in front", "remarks", "<>. a photo of the pet car.", "<>. an icon of car"),
    ],
)
def test_forms_put_one_string_at_one_place(form: str, kind: str, first: str, second: str) -> None:
    for draw in range(10):
        texts = BY_FORM[form].texts(ENDING, 1, draw).texts
        at = 2 * NAMES.index("car")
        assert in_one_of(kind, first, texts[at])
        assert in_one_of(kind, second, texts[at + 1])


def test_other_sentences_keep_what_the_template_says_of_the_class() -> None:
    drawn = {each for draw in range(40) for each in BY_FORM["other sentence"].texts(TEXTS, 1, draw).templates}
    phrases = ("a {}", "the {}, a type of thing")
    sentences = phrasing.STRINGS["sentences"]
    assert drawn == {sentence.replace("{}", phrase) for sentence in sentences for phrase in phrases}


def test_a_thing_is_named_behind_each_class_or_before_all() -> None:
    beside, things, joins = (phrasing.STRINGS[kind] for kind in ("beside", "things", "joins"))
    expected = {f"car {each.replace('{}', thing)}" for each in beside for thing in things}
    drawn = [BY_FORM["thing behind"].texts(ENDING, 1, draw) for draw in range(20)]
    assert {each.templates for each in drawn} == {ENDING.templates}
    assert {each.written[NAMES.index("car")] for each in drawn} <= expected
    behind = [name.removeprefix(clean) for each in drawn for clean, name in zip(NAMES, each.written, strict=True)]
    assert len(set(behind)) > 20, "each class has a draw of its own"
    undecided = {BY_FORM["thing in front"].texts(TEXTS, 1, draw).templates for draw in range(20)}
    assert undecided <= {
        (f"a photo of {thing} {join} a {{}}.", f"a blurry photo of {thing} {join} the {{}}, a type of thing!")
        for thing in things
        for join in joins
    }


def test_around_is_in_front_and_behind() -> None:
    for draw in range(20):
        changed = BY_FORM["around"].texts(ENDING, 1, draw)
        assert all(
            text.endswith(clean) and text != clean
            for text, clean in zip(changed.templates, ENDING.templates, strict=True)
        )
        assert all(
            text.startswith(clean) and text != clean for text, clean in zip(changed.written, NAMES, strict=True)
        )


@pytest.mark.parametrize("form", ["thing behind", "clause behind", "unrelated behind"])
def test_what_follows_a_template_that_goes_on_stands_at_its_end(form: str) -> None:
    changed = BY_FORM[form].texts(TEXTS, 1)
    assert changed.written == NAMES
    added = changed.templates[0].removeprefix(TEMPLATES[0][:-1]).removesuffix(".")
    assert added
    assert changed.templates[1] == f"{TEMPLATES[1][:-1]}{added}!"
    mixed = BY_FORM[form].texts(replace(ENDING, ensemble=TEMPLATES), 1)
    assert mixed.written == NAMES, "names carry it only where every text ends with them"
    assert mixed.ensemble == changed.templates
    assert mixed.templates[0].removeprefix(ENDING.templates[0][:-1]) == f"{added}."


@form_ids
def test_forms_name_no_class(form: TextFamily) -> None:
    others = ("bucket", "ladder rung", "it is getting late", "imagine", "further back", "to be honest", "on top of")
    for draw in range(30):
        texts = form.texts(ClassTexts((*others, "siamese cat"), ("an icon of {}.",)), 1, draw).texts
        assert not re.search(rf"\b(ladder|{'|'.join(others)})\b", texts[-1])


def test_data_that_leave_no_string_are_refused() -> None:
    things = ClassTexts(tuple(thing.split()[-1] for thing in phrasing.STRINGS["things"]))
    with pytest.raises(
        ValueError, match=r"each of the 10 things for phrasing names one of the classes: leave the group"
    ):
        BY_FORM["thing behind"].texts(things, 1)


def test_no_string_of_the_forms_is_in_training_or_in_other_families() -> None:
    trained = {*rephrase.SENTENCES, *rephrase.ENDINGS, *rephrase.THINGS, *rephrase.BESIDE, *PARAPHRASES}
    trained |= {f"{noun} of {{}}." for noun in PHOTO_NOUNS}
    trained |= {each for strings in grammar.FORMS.values() for each in strings}
    measured = {each for strings in text_module.WORDS.values() for each in strings}
    ours, others = (
        [re.sub(r"[^\w{}]+", " ", each).strip() for each in strings] for strings in (HELD_OUT, trained | measured)
    )
    assert len(set(ours)) == len(ours)
    assert not set(ours) & set(others)
    assert not re.search(r"^(from|import) .*(perturb|rephrase)", Path(phrasing.__file__).read_text(), re.MULTILINE)


def test_the_groups_of_forms() -> None:
    assert phrasing_families() == FORMS
    assert [form.name for form in phrasing_families(SYNONYMS)] == [*(form.name for form in FORMS), "synonyms"]
    assert ({form.kind for form in FORMS}, {form.kind for form in UNDECIDED_FORMS}) == ({"phrasing"}, {"undecided"})
    assert not set(BY_FORM) & set(BY_NAME)


def test_the_embedded_clip_reads_the_class_in_every_form() -> None:
    """Its context holds 32 tokens: what stands in front must not push the name out."""
    tokenizer = CLIPProcessor.from_pretrained(TINY_CLIP).tokenizer
    name = "arrow down right circle"
    for form in BY_FORM.values():
        for draw in range(40):
            for template in ("an icon of {}.", "a photo of the digit {}."):
                (text,) = form.texts(ClassTexts((name,), (template,)), 1, draw).texts
                ids = tokenizer(text, truncation=True)["input_ids"]
                assert name in tokenizer.decode(ids)


# --- images


def scene(width: int = 60, height: int = 48, seed: int = 0) -> Image.Image:
    """Coloured shapes on a gradient."""
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([across, down, 0.5 * (across + down)], axis=-1) * 120 + 40
    rng = np.random.default_rng(seed)
    for _ in range(6):
        left, top = int(rng.integers(width - 12)), int(rng.integers(height - 12))
        pixels[top : top + 10, left : left + 12] = rng.integers(20, 200, 3)
    return Image.fromarray(pixels.astype(np.uint8))


def apart(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


@image_ids
def test_changes_follow_from_image_and_seed_and_not_from_the_order(family: ImageFamily) -> None:
    images = [scene(seed=seed) for seed in range(4)]
    change = family.at(3, 224)
    once = [change(image) for image in images]
    again = [change(image) for image in reversed(images)][::-1]
    assert all(apart(one, other) == 0 for one, other in zip(once, again, strict=True))
    other_seed = [family.at(3, 224, seed=seed)(images[0]) for seed in range(1, 9)]
    random = family.name in ("noise", "occlusion", "rotation")
    assert any(apart(once[0], other) > 0 for other in other_seed) == random
    assert all((image.size, image.mode) == ((60, 48), "RGB") for image in once)


@image_ids
def test_changes_grow_with_severity(family: ImageFamily) -> None:
    images = [scene(120, 100, seed) for seed in range(8)]
    means = [mean(apart(image, family.at(severity, 224)(image)) for image in images) for severity in range(1, 6)]
    assert means[0] > 0
    assert all(after > before for before, after in pairwise(means)), means


@image_ids
def test_large_images_are_first_shrunk_to_what_clip_sees(family: ImageFamily) -> None:
    large = scene(300, 200)
    changed = family.at(1, 50)(large)
    assert changed.size == (75, 50)
    assert apart(changed, family.at(1, 50)(large.resize((75, 50), Image.Resampling.BICUBIC))) == 0
    assert family.at(1, 50)(Image.new("L", (20, 20), 100)).size == (20, 20)


def test_what_the_changes_do() -> None:
    grey = Image.new("RGB", (40, 20), (100, 100, 100))

    def pixels(name: str, severity: int, image: Image.Image = grey) -> np.ndarray:
        return np.asarray(BY_CHANGE[name].at(severity, 224)(image), dtype=float)

    assert (abs(pixels("brightness", 5) - 227.5) <= 0.5).all()
    assert np.std(pixels("noise", 1)) == pytest.approx(0.08 * 255, rel=0.05)
    halves = Image.fromarray(np.repeat(np.array([50, 150], np.uint8), 20)[None].repeat(20, 0)).convert("RGB")
    low = pixels("contrast", 3, halves)
    assert np.unique(low).tolist() == [90, 110]
    blocks = pixels("pixelation", 5, scene(40, 20))
    assert (blocks.reshape(5, 4, 10, 4, 3) == blocks.reshape(5, 4, 10, 4, 3)[:, :1, :, :1]).all()
    dotted = Image.fromarray((np.indices((20, 40)).sum(axis=0) % 2 * 200).astype(np.uint8)).convert("RGB")
    assert (pixels("occlusion", 5, dotted) == 100).mean() == pytest.approx(0.4, abs=0.03)
    white = Image.new("RGB", (40, 40), "white")
    assert (pixels("rotation", 5, white) == 255).all()
    edge = Image.fromarray(np.repeat(np.array([0, 255], np.uint8), 112)[None].repeat(224, 0)).convert("RGB")
    column = pixels("blur", 5, edge)[112, :, 0]
    slope = np.diff(column) / 255
    centre = (slope * np.arange(223)).sum()
    assert (slope * (np.arange(223) - centre) ** 2).sum() ** 0.5 == pytest.approx(6, rel=0.05)


def test_severities() -> None:
    images = image_set()
    family = BY_CHANGE["noise"]
    assert family.images(images, 0) is images
    assert family.images(images, 2).labels.tolist() == images.labels.tolist()
    for wrong in (-1, 6, 1.5):
        with pytest.raises(ValueError, match=rf"severity={wrong} must be 0 \(unchanged\) or one of \(1, 2, 3, 4, 5\)"):
            family.images(images, wrong)  # type: ignore[arg-type]


def image_set(count: int = 6) -> ImageSet:
    """Scenes of three classes, larger than the tiny CLIP sees."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    rows = {"image": [scene(seed=row) for row in range(count)], "label": [row % 3 for row in range(count)]}
    dataset = Dataset.from_dict(rows, Features({"image": RGBImage(), "label": ClassLabel(names=CLASSES)}))
    return ImageSet(dataset, ClipTransform(processor))


# --- curves


@dataclass(frozen=True)
class Scripted:
    """A method whose answers stand in a script, by what the first class is called."""

    script: dict[str, list[int]]
    asked: list[Part] = field(default_factory=list)
    confidence: float = 0.9

    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        self.asked.append(Part("", images, classes))
        answers = torch.tensor(self.script[classes.written[0]])
        rest = torch.tensor((1 - self.confidence) / 2).log()
        return torch.where(torch.nn.functional.one_hot(answers, 3).bool(), torch.tensor(self.confidence).log(), rest)


@dataclass(frozen=True)
class Renamed:
    """Perturbs the first class's name into strength and draw."""

    name: str = "renamed"
    kind: str = "typing"
    strengths: tuple[float, ...] = (1, 3)
    unit: str = "units"
    draws: int = 2

    def perturbed(self, part: Part, strength: float, draw: int, seed: int) -> Part:
        written = (f"{strength}.{draw}.{seed}", *part.classes.written[1:])
        return replace(part, classes=replace(part.classes, written=written))


@pytest.fixture
def part() -> Part:
    """Four images with the labels 0, 1, 2, 0."""
    return Part("base", image_set(4), ClassTexts(tuple(CLASSES)))


def scripted() -> Scripted:
    return Scripted(
        {
            "cat": [0, 1, 2, 1],  # 3 of 4 right
            "1.0.7": [0, 1, 2, 1],  # the same
            "1.1.7": [0, 1, 0, 2],  # 2 right, 2 flips
            "3.0.7": [0, 0, 0, 0],  # 2 right, 3 flips
            "3.1.7": [1, 0, 0, 1],  # none right, 3 flips
        }
    )


def test_curves_by_hand(part: Part) -> None:
    perfect = Scripted({key: [0, 1, 2, 0] for key in scripted().script}, confidence=1 - 1e-9)
    measured = measure_robustness({"zero-shot": perfect, "ours": scripted()}, part, [Renamed()], seed=7)
    assert (measured.part, measured.images, measured.seed) == ("base", 4, 7)
    assert [curve.method for curve in measured.curves] == ["zero-shot", "ours"]
    steady, ours = measured.curves
    assert (ours.part, ours.family, ours.kind, ours.unit) == ("base", "renamed", "typing", "units")
    clean, one, three = ours.levels
    assert (clean.strength, one.strength, three.strength) == (0, 1, 3)
    assert (clean.accuracy, clean.worst, clean.deviation, clean.drop, clean.flip_rate) == (75, 75, 0, 0, 0)
    assert (one.accuracy, one.worst, one.drop, one.flip_rate) == (62.5, 50, 12.5, 25)
    assert one.deviation == pytest.approx(stdev([75, 50]))
    assert one.relative_drop == pytest.approx(100 * 12.5 / 75)
    assert (three.accuracy, three.worst, three.drop, three.flip_rate) == (25, 0, 50, 75)
    assert ours.area == pytest.approx(((75 + 62.5) / 2 * 1 + (62.5 + 25) / 2 * 2) / 3)
    assert clean.ece == pytest.approx(15)  # 0.9 sure, 75 % right
    assert three.ece == pytest.approx((40 + 90) / 2)
    assert one.adaptive_ece == pytest.approx(
        mean([100 * mean([0.1, 0.1, 0.1, 0.9]), 100 * mean([0.1, 0.1, 0.9, 0.9])])
    )
    assert steady.area == pytest.approx(100)
    assert all(level.drop == level.flip_rate == 0 for level in steady.levels)


def test_records_are_tidy_and_can_be_summarised_again(part: Part) -> None:
    measured = measure_robustness({"ours": scripted()}, part, [Renamed()], seed=7, progress=False)
    assert len(measured.records) == (1 + 2 * 2) * 4
    assert Record("ours", "base", "renamed", 3, 1, "accuracy", 0.0) in measured.records
    assert Record("ours", "base", "renamed", 1, 1, "flip rate", 50.0) in measured.records
    assert {record.draw for record in measured.records if record.strength == 0} == {0}
    assert tuple(summarise(measured.records, [Renamed()])) == measured.curves
    assert tuple(summarise(measured.records[::-1], [Renamed()])) == measured.curves
    assert json.loads(json.dumps(measured.to_dict()))["records"][0]["metric"] == "accuracy"


def test_no_digit_of_the_curves_changes() -> None:
    """Strengths that are whole numbers stay so in JSON."""
    rng = random.Random(0)
    families = [Renamed(), Renamed("blurred", "images", (0.1, 0.5, 1), "pixels", 9)]
    records = [
        Record(method, "base", family.name, strength, draw, metric, rng.randrange(1000) / 10)
        for family in families
        for strength in (0, *family.strengths)
        for draw in range(family.draws if strength else 1)
        for method in ("ours", "<theirs>")
        for metric in ("accuracy", "flip rate", "ECE", "adaptive ECE")
    ]
    curves = [to_json(asdict(curve), indent=None) for curve in summarise(records, families)]
    assert "".join(curves) == (GOLDEN / "curves.jsonl").read_text(encoding="utf-8")


def test_relative_drops_need_something_to_drop_from(part: Part) -> None:
    never = Scripted({key: [1, 2, 0, 1] for key in scripted().script})
    levels = measure_robustness({"never": never}, part, [Renamed()], seed=7).curves[0].levels
    assert [level.relative_drop for level in levels] == [None, None, None]


def test_methods_share_the_perturbed_images(part: Part) -> None:
    script = {"cat": [0, 1, 2, 0]}
    one, other = Scripted(script), Scripted(script)
    measure_robustness({"one": one, "other": other}, part, [BY_CHANGE["blur"], BY_CHANGE["noise"]])
    assert len(one.asked) == 1 + 2 * 5
    assert all(mine.images is theirs.images for mine, theirs in zip(one.asked, other.asked, strict=True))
    assert len({each.images for each in one.asked}) == 11


def test_something_to_measure_is_needed(part: Part) -> None:
    with pytest.raises(ValueError, match="at least one method and one image"):
        measure_robustness({}, part, [Renamed()])


# --- an adapter


@pytest.mark.parametrize("choice", ["auto", "class", "prototype", "fused", "ensemble"])
def test_an_adapter_answers_as_the_model_does(choice: str) -> None:
    templates = ("a photo of a {}.", "the drawing of one {}.")
    images, model = image_set(), adapted(inference_logits=choice, template=list(templates), alpha=0.3)
    before = logits(model, images.pixels())
    for names in (tuple(CLASSES), ("small fish", "cat"), ("bird", "cat", "dog")):
        model.set_classes(list(names))
        expected = logits(model, images.pixels())
        model.set_classes(None)
        torch.testing.assert_close(FittedAdapter(model).logits(images, ClassTexts(names, templates)), expected)
    assert model.class_names == CLASSES
    assert torch.equal(logits(model, images.pixels()), before)


def test_a_misspelt_class_is_still_that_class() -> None:
    """Known classes are answered with fused logits, others with the ensemble: spelling must not switch."""
    images, model = image_set(), adapted(alpha=0.3)
    written = ("cta", "dog", "smal fish")
    model.set_classes(list(written))
    with torch.no_grad():
        output = model(pixel_values=images.pixels())
    fused = FittedAdapter(model).logits(images, ClassTexts(tuple(CLASSES), written=written))
    torch.testing.assert_close(fused, output.logits_fused)
    assert not torch.allclose(fused, output.logits_ensemble, atol=1e-3)
    as_new = FittedAdapter(model).logits(images, ClassTexts(("x", "y", "z"), written=written))
    torch.testing.assert_close(as_new, output.logits_ensemble)
    alike = FittedAdapter(model).logits(images, ClassTexts(("cat", "dog"), written=("cat", "cat")))
    assert torch.equal(alike[:, 0], alike[:, 1])


def test_zero_shot_is_the_clip_without_the_adapter(clip_folder: Path) -> None:
    images, model = image_set(), adapted()
    backbone = Backbone(make_clip(), CLIPProcessor.from_pretrained(clip_folder))
    model.train()
    for classes in (ClassTexts(tuple(CLASSES)), ClassTexts(("a", "b", "c"), TEMPLATES, ("cat", "dg", "fish"))):
        found = FittedAdapter(model, zero_shot=True).logits(images, classes)
        torch.testing.assert_close(found, backbone.zero_shot_logits(images, classes), rtol=1e-4, atol=1e-4)
    assert model.training
    assert not torch.allclose(FittedAdapter(model).logits(images, ClassTexts(tuple(CLASSES))), found, atol=1e-2)


def test_texts_that_are_too_long_are_cut() -> None:
    model, images = adapted(), image_set()
    long = ClassTexts(tuple(CLASSES), ("a photo of a {}, " + "bird " * CONTEXT,))
    longer = replace(long, templates=(long.templates[0] + "fish " * 9,))
    found = FittedAdapter(model).logits(images, long)
    assert found.isfinite().all()
    assert torch.equal(found, FittedAdapter(model).logits(images, longer))


def test_images_are_encoded_once() -> None:
    model, images = adapted(), image_set()
    fitted = FittedAdapter(model)
    calls: list[int] = []
    model.get_base_model().register_forward_hook(lambda *_: calls.append(1))
    for names in (tuple(CLASSES), ("cat", "dog")):
        fitted.logits(images, ClassTexts(names))
    assert len(calls) == 1
    for names in (("bird", "cat", "dog"), ("bird", "cow")):
        fitted.logits(images, ClassTexts(names))
    assert len(calls) == 2, "once more without prompts"
    fitted.logits(images.changed(lambda image: image.rotate(90)), ClassTexts(tuple(CLASSES)))
    assert len(calls) == 3


def test_an_adapter_is_needed(clip: CLIPModel) -> None:
    with pytest.raises(TypeError, match="takes a CLIPModel with an ANPrompt adapter"):
        FittedAdapter(clip)


# --- report and command line


def test_charts_by_hand(part: Part) -> None:
    measured = measure_robustness({"zero-shot": scripted(), "ours": scripted()}, part, [Renamed()], seed=7)
    (((zero_shot, ours), chart),) = robustness_charts(measured)
    assert (zero_shot.method, ours.method) == ("zero-shot", "ours")
    found = marks(chart)
    titles = [
        f"ours, renamed {at}: {mean} %, worst draw: {worst} %"
        for at, mean, worst in ((0, 75.0, 75.0), (1, 62.5, 50.0), (3, 25.0, 0.0))
    ]
    places = np.array([found[title] for title in titles])
    # both axes are linear: strengths 0, 1, 3 and accuracies 75, 62.5, 25
    assert np.diff(places[:, 0])[1] == pytest.approx(2 * np.diff(places[:, 0])[0], rel=1e-3)
    assert np.diff(places[:, 1])[1] == pytest.approx(3 * np.diff(places[:, 1])[0], rel=1e-3)
    assert texts(chart) == ["0", "1", "3", "units", "0", "20", "40", "60"]


def test_the_report_shows_curves_and_numbers(part: Part) -> None:
    measured = measure_robustness({"<zero>": scripted(), "ours": scripted()}, part, [Renamed()], seed=7)
    page = render_report(ReportData("robust", robustness=[measured]))
    section = page.split("<h2>Robustness: base</h2>")[1]
    assert len(marks(section)) == 2 * 3
    assert "on 4 images" in section
    assert "&lt;zero&gt;" in section
    assert "<zero>" not in page
    cells = re.findall(r"<td>([\d.]*)</td>", section)
    assert cells[-9:] == ["3", "25.0", "0.0", "35.4", "50.0", "66.7", "75.0", "65.0", "70.0"]
    assert "Robustness" not in render_report(ReportData("plain"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the tiny CLIP of the digits, untrained but moved."""
    clip = CLIPModel.from_pretrained(TINY_CLIP)
    config = ANPromptConfig(class_names=sorted(CLASS_NAMES), template=TEMPLATE, text_layers=2, vision_layers=2)
    folder = tmp_path_factory.mktemp("adapter")
    scatter(get_peft_model(clip, config), 0.02).save_pretrained(folder)
    return folder


def call(*arguments: Any) -> tuple[int, str, str]:
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def test_evaluate_with_robustness(adapter: Path, digits: Path, tmp_path: Path) -> None:
    synonyms = tmp_path / "synonyms.json"
    synonyms.write_text(json.dumps({"zero": ["naught"], "one": ["single"]}))
    report = tmp_path / "report.html"
    options = ("--robustness", "--robustness-images", 6, "--synonyms", synonyms, "--report", report)
    code, out, err = call("evaluate", adapter, digits, *options, "--json")
    assert code == 0, err
    (measured,) = json.loads(out)["robustness"]
    assert (measured["part"], measured["images"]) == ("test", 6)
    families: list[Family] = [*text_families({"zero": ["naught"]}), *IMAGE_FAMILIES]
    assert list(dict.fromkeys(curve["family"] for curve in measured["curves"])) == [each.name for each in families]
    assert {record["method"] for record in measured["records"]} == {"zero-shot CLIP", "ANPrompt"}
    draws = sum(1 + len(family.strengths) * family.draws for family in families)
    assert len(measured["records"]) == 2 * 4 * draws
    page = report.read_text()
    assert page.count("<svg") == len(families) + 1, "and the class features"
    assert "robustness of test: 100%" in err
    if chromium.BINARY:
        with chromium.browser() as browser:
            for width in (1200, 360):
                browser.show(width)
                browser.open(report.as_uri())
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
                assert browser.badly_placed() == []
            assert not browser.complaints


def test_the_table_and_what_is_refused(
    adapter: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anprompt_cli.jobs.robustness.IMAGE_FAMILIES", (BY_CHANGE["noise"],))
    monkeypatch.setattr("anprompt_cli.jobs.robustness.text_families", lambda synonyms: (BY_NAME["case"],))
    code, out, err = call("evaluate", adapter, digits, "--robustness")
    assert code == 0, err
    title, head, case, noise = out.strip().splitlines()[-4:]
    assert title == "robustness, accuracy in % on 30 images of test: mean, and at the greatest strength"
    assert head.split() == ["zero-shot", "CLIP", "greatest", "ANPrompt", "greatest"]
    assert re.fullmatch(r"case( +\d+\.\d){4}", case)
    assert re.fullmatch(r"noise( +\d+\.\d){4}", noise)
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"zero": "naught"}')
    code, _, err = call("evaluate", adapter, digits, "--synonyms", wrong)
    assert (code, "--synonyms needs --robustness" in err) == (2, True)
    code, _, err = call("evaluate", adapter, digits, "--robustness", "--synonyms", wrong)
    assert (code, 'must hold a JSON object {"class name": ["other name", ...]}' in err) == (2, True)
    wrong.write_text("zero: naught")
    code, _, err = call("evaluate", adapter, digits, "--robustness", "--synonyms", wrong)
    assert (code, f"{wrong} is not valid JSON: " in err) == (2, True)
