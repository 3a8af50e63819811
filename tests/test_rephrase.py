"""Rephrased class texts: what is drawn, and what training asks of their prompted features."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPTokenizer

import reference
from anprompt_peft.evaluation.robustness import texts as measured
from anprompt_peft.fast.savings import Savings
from anprompt_peft.method import rephrase as own
from anprompt_peft.method.rephrase import draw_rephrased, rephrase, vocabulary
from helpers import CLASSES, LABELS, adapted, assert_exact, make_clip, trainable
from oracle import reference_adapter

REPHRASED: dict[str, Any] = {"rephrased_weight": 2.0, "rephrased_texts": 5, "text_update_rank": 2}
TEMPLATES = ["a photo of a {}.", "one {}"]


def expected_features(model: Any, plain: Any, tokenizer: CLIPTokenizer, seed: int) -> tuple[Tensor, Tensor]:
    """Of the texts that a step draws: those of rephrased ones with prompts in, and of the clean ones without."""
    config = model.peft_config["default"]
    torch.manual_seed(seed)
    rng = random.Random(int(torch.randint(2**62, ())))
    drawn = draw_rephrased(CLASSES, config.templates, vocabulary(tokenizer), config.rephrased_texts, rng)
    assert (len(drawn.texts), len(drawn.anchors)) == (config.rephrased_texts, config.rephrased_texts // 2)
    found = []
    for text in (*drawn.texts, *drawn.anchors):
        ids = tokenizer(text, truncation=True, return_tensors="pt").input_ids
        found.append(reference.encode_text(plain, ids, None, reference_adapter(model)))
    wanted = []
    for name in (CLASSES[at] for at in drawn.classes):
        rows = [
            reference.encode_text(plain, tokenizer(each.format(name), return_tensors="pt").input_ids, None, None)
            for each in config.templates
        ]
        wanted.append(reference.normalize(torch.stack([reference.normalize(row) for row in rows]).mean(dim=0)))
    for text in drawn.anchors:
        ids = tokenizer(text, return_tensors="pt").input_ids
        wanted.append(reference.normalize(reference.encode_text(plain, ids, None, None)))
    return reference.normalize(torch.cat(found)), torch.cat(wanted).detach()


def expected_term(model: Any, plain: Any, tokenizer: CLIPTokenizer, seed: int) -> Tensor:
    """One minus their mean cosine."""
    found, wanted = expected_features(model, plain, tokenizer, seed)
    return 1 - (found * wanted).sum(dim=1).mean()


@pytest.mark.parametrize("savings", [Savings(), Savings.none(), Savings(text_chunk=2)], ids=["all", "none", "chunks"])
@pytest.mark.parametrize("template", [TEMPLATES[0], TEMPLATES], ids=["one template", "two"])
def test_the_term_against_the_reference(
    savings: Savings, template: Any, tokenizer: CLIPTokenizer, pixels: Tensor
) -> None:
    model = adapted(dtype=torch.float64, template=template, **REPHRASED)
    model.set_savings(savings)
    inputs = {"pixel_values": pixels.double(), "labels": LABELS}
    without = model(**inputs)
    assert "similarity_rephrased" not in without.loss_terms, "evaluation draws nothing"
    model.train()
    torch.manual_seed(3)
    output = model(**inputs)
    expected = expected_term(model, make_clip(dtype=torch.float64), tokenizer, 3)
    assert expected > 1e-2
    assert_exact(output.loss_terms["similarity_rephrased"], expected.detach())
    assert_exact(output.loss, without.loss + 2 * expected)
    weights = trainable(model)
    ours = torch.autograd.grad(output.loss - without.loss, list(weights.values()), allow_unused=True)
    theirs = torch.autograd.grad(2 * expected, list(weights.values()), allow_unused=True)
    for name, mine, other in zip(weights, ours, theirs, strict=True):
        assert mine is not None
        assert_exact(mine, torch.zeros_like(mine) if other is None else other, name)
    assert any("anprompt_update" in name for name in weights)


@pytest.mark.parametrize("template", [TEMPLATES[0], TEMPLATES], ids=["one template", "two"])
def test_the_page_prints_the_whole_loss(template: Any, tokenizer: CLIPTokenizer, pixels: Tensor) -> None:
    """With the default weights, and its gradients."""
    page = (Path(__file__).parents[1] / "docs" / "method.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?def loss\(.*?)```", page, re.DOTALL)
    assert code
    printed: dict[str, Any] = {}
    exec(code.group(1), printed)
    model = adapted(dtype=torch.float64, template=template, rephrased_weight=10.0).train()
    torch.manual_seed(3)
    output = model(pixel_values=pixels.double(), labels=LABELS)
    clip = model.get_base_model()
    with torch.no_grad(), model.disable_adapter():
        frozen = model(pixel_values=pixels.double()).image_embeds
    expected = printed["loss"](
        output.image_embeds, output.prototype_embeds, clip.encode_classes(), frozen,
        clip.head.anprompt_clean_features["default"], clip.head.anprompt_perturbed_features["default"],
        *expected_features(model, make_clip(dtype=torch.float64), tokenizer, 3),
        clip.logit_scale.exp(), LABELS,
    )  # fmt: skip
    assert_exact(output.loss, expected)
    weights = trainable(model)
    ours = torch.autograd.grad(output.loss, list(weights.values()), retain_graph=True)
    theirs = torch.autograd.grad(expected, list(weights.values()))
    for name, mine, other in zip(weights, ours, theirs, strict=True):
        assert_exact(mine, other, name)


@pytest.mark.parametrize("off", [{"rephrased_weight": 0.0}, {"rephrased_texts": 0}])
def test_nothing_is_drawn_where_it_is_not_wanted(off: dict[str, Any], pixels: Tensor) -> None:
    model = adapted(**{**REPHRASED, **off}).train()
    before = torch.get_rng_state()
    output = model(pixel_values=pixels, labels=LABELS)
    assert "similarity_rephrased" not in output.loss_terms
    assert torch.equal(torch.get_rng_state(), before)


def test_a_seed_gives_the_same_texts_and_the_next_step_others(pixels: Tensor) -> None:
    model = adapted(**REPHRASED).train()

    def step() -> Tensor:
        return model(pixel_values=pixels, labels=LABELS).loss_terms["similarity_rephrased"]

    torch.manual_seed(0)
    first, second = step(), step()
    torch.manual_seed(0)
    assert torch.equal(step(), first)
    assert not torch.equal(first, second)


def test_other_classes_are_rephrased_too(pixels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model, names = adapted(**REPHRASED).train(), []

    def noted(*given: Any) -> Any:
        names.append(given[0])
        return draw_rephrased(*given)

    monkeypatch.setattr("anprompt_peft.fast.planning.draw_rephrased", noted)
    model(pixel_values=pixels[:1], labels=LABELS[:1])
    model.set_classes(["small fish", "red bird"])
    model(pixel_values=pixels[:1], labels=torch.tensor([1]))
    assert names == [tuple(CLASSES), ("small fish", "red bird")]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_rephrased_texts(count: int, pixels: Tensor) -> None:
    model = adapted(rephrased_weight=1.0, rephrased_texts=count).train()
    assert model(pixel_values=pixels, labels=torch.tensor([0, 1, 2])).loss_terms["similarity_rephrased"] > 0


def test_rephrased_texts_name_their_class_and_vary() -> None:
    rng = random.Random(0)
    texts = {rephrase("cat", TEMPLATES[0], rng) for _ in range(200)}
    assert len(texts) > 60
    assert all("cat" in text for text in texts)
    kinds = {kind for kind in ("beside", "with ", "seen", "sketch") if any(kind in text for text in texts)}
    assert kinds == {"beside", "with ", "seen", "sketch"}
    assert all("a cat" in text for text in texts if "cat beside" not in text and text[:3] != "cat")


def test_a_word_that_ends_like_an_article_is_none() -> None:
    texts = {rephrase("split", "banana {}", random.Random(seed)) for seed in range(100)}
    assert not any("a split" in text.replace("banana split", "") for text in texts)


def test_drawing_is_seeded() -> None:
    words = ["apple", "river", "stone"]
    first = draw_rephrased(CLASSES, TEMPLATES, words, 8, random.Random(1))
    assert first == draw_rephrased(CLASSES, TEMPLATES, words, 8, random.Random(1))
    assert first != draw_rephrased(CLASSES, TEMPLATES, words, 8, random.Random(2))
    assert (len(first.texts), len(first.classes), len(first.anchors)) == (8, 8, 4)
    for text, at in zip(first.texts, first.classes, strict=True):
        assert CLASSES[at] in text
    for anchor in first.anchors:
        assert any(word in anchor for word in words)


def test_the_measurement_uses_other_words() -> None:
    trained = {*own.SENTENCES, *own.ENDINGS, *own.THINGS}
    assert not trained & {*measured.FRAMES, *measured.CLAUSES, *measured.THINGS}


def test_the_vocabulary_has_whole_words(tokenizer: CLIPTokenizer) -> None:
    words = vocabulary(tokenizer)
    assert words == sorted(words)
    assert all(len(word) > 2 and word.isalpha() for word in words)
    for word in words[:20]:
        assert len(tokenizer(word).input_ids) == 3, "one piece between begin and end of text"


def test_a_vocabulary_without_words_is_refused(tokenizer: CLIPTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda _: {"a</w>": 0, "b": 1, "cat</w>": 2})
    with pytest.raises(ValueError, match=r"has 1 whole words in its vocabulary.*rephrased_texts=0"):
        vocabulary(tokenizer)
