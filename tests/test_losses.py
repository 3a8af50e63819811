"""Logits and loss terms as functions of features: by hand, number by number, and their symmetries."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anprompt_peft import ANPromptConfig
from anprompt_peft.method.features import normalize
from anprompt_peft.method.losses import (
    Frozen,
    Scores,
    clip_logits,
    loss_terms,
    score,
    similarity_loss,
    total_loss,
    waloss,
)
from helpers import adapted

SCALE = torch.tensor(7.0, dtype=torch.float64)
LABELS = torch.tensor([3, 0, 2, 3, 1])


def features(rows: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Features `[rows, 6]`, not normalised."""
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unit(rows: list[list[float]]) -> list[list[float]]:
    return [[value / math.sqrt(sum(each * each for each in row)) for value in row] for row in rows]


def dots(left: list[list[float]], right: list[list[float]]) -> list[list[float]]:
    return [[sum(a * b for a, b in zip(one, two, strict=True)) for two in right] for one in left]


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(math.exp(value) for value in row))
    return [value - total for value in row]


def cross_entropy(logits: Tensor, weights: list[float] | None = None) -> float:
    weights = weights or [1.0] * logits.shape[1]
    pairs = [
        (weights[label], log_softmax(row)[label]) for row, label in zip(logits.tolist(), LABELS.tolist(), strict=True)
    ]
    return -sum(weight * value for weight, value in pairs) / sum(weight for weight, _ in pairs)


def normalized(rows: int, seed: int) -> Tensor:
    return torch.tensor(unit(features(rows, seed).tolist()), dtype=torch.float64)


def example(prototype: bool = True, frozen: bool = True, **weights: Any) -> tuple[Scores, dict[str, Any]]:
    """Five images, four classes, and what `loss_terms` takes."""
    text = normalized(4, 3)
    config = ANPromptConfig(
        class_names=list("abcd"), **{"alpha": 0.3, "similarity_weight": 2.0, "waloss_weight": 5.0, **weights}
    )
    scores = score(normalized(5, 1), normalized(5, 2) if prototype else None, text, SCALE, config)
    return scores, {
        "text": text,
        "labels": LABELS,
        "frozen": Frozen(normalized(5, 4), normalized(4, 5), normalized(4, 6)) if frozen else None,
        "scale": SCALE,
        "config": config,
    }


def close(ours: Tensor, expected: Any) -> None:
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_logits_by_hand() -> None:
    scores, given_ = example()
    text = given_["text"].tolist()
    image, prototype = unit(features(5, 1).tolist()), unit(features(5, 2).tolist())
    by_class = [[7 * value for value in row] for row in dots(image, text)]
    by_prototype = [[7 * value for value in row] for row in dots(prototype, text)]
    close(scores.image_embeds, image)
    close(scores.logits_class, by_class)
    assert scores.prototype_embeds is not None
    assert scores.logits_prototype is not None
    close(scores.prototype_embeds, prototype)
    close(scores.logits_prototype, by_prototype)
    fused = [
        [0.3 * a + 0.7 * b for a, b in zip(*rows, strict=True)] for rows in zip(by_class, by_prototype, strict=True)
    ]
    close(scores.logits_fused, fused)


def test_without_a_prototype_the_class_logits_are_all() -> None:
    scores, _ = example(prototype=False)
    assert scores.logits_fused is scores.logits_class
    assert scores.prototype_embeds is scores.logits_prototype is None


@pytest.mark.parametrize(
    ("given_dtype", "expected"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_logits_are_at_least_float32(given_dtype: torch.dtype, expected: torch.dtype, pixels: Tensor) -> None:
    model = adapted(dtype=given_dtype, inference_logits="ensemble")
    output = model(pixel_values=pixels.to(given_dtype), return_dict=False)
    assert [tensor.dtype for tensor in output] == [expected] * 7


def test_terms_by_hand() -> None:
    scores, given_ = example()
    terms = loss_terms(scores, **given_)
    frozen: Frozen = given_["frozen"]
    prototype = scores.prototype_embeds
    assert prototype is not None
    assert scores.logits_prototype is not None
    image_cosines = [
        dots([a], [b])[0][0] for a, b in zip(scores.image_embeds.tolist(), frozen.image.tolist(), strict=True)
    ]
    text_cosines = [dots([a], [b])[0][0] for a, b in zip(given_["text"].tolist(), frozen.clean.tolist(), strict=True)]
    target = [[7 * value for value in row] for row in dots(prototype.tolist(), frozen.perturbed.tolist())]
    entries = scores.logits_class.flatten().tolist()
    mean = sum(entries) / 20
    std = math.sqrt(sum((entry - mean) ** 2 for entry in entries) / 19)
    divergence = sum(
        math.exp(p) * (p - q)
        for goal, row in zip(target, scores.logits_class.tolist(), strict=True)
        for p, q in zip(log_softmax(goal), log_softmax(row), strict=True)
    )
    expected = {
        "cross_entropy_class": (cross_entropy(scores.logits_class), 0.3),
        "cross_entropy_prototype": (cross_entropy(scores.logits_prototype), 0.7),
        "similarity_image": (1 - sum(image_cosines) / 5, 2.0),
        "similarity_text": (1 - sum(text_cosines) / 4, 2.0),
        "waloss": (divergence / ((std + 1e-6) * 20), 5.0),
    }
    assert terms.keys() == expected.keys()
    for name, (value, weight) in expected.items():
        close(terms[name].value, value)
        assert terms[name].weight == pytest.approx(weight, abs=1e-15), name
        assert value > 1e-3
    close(total_loss(terms), sum(weight * value for value, weight in expected.values()))


def test_without_a_prototype_alpha_plays_no_part() -> None:
    scores, given_ = example(prototype=False)
    terms = loss_terms(scores, **given_)
    assert {name: term.weight for name, term in terms.items()} == {
        "cross_entropy_class": 1.0, "similarity_image": 2.0, "similarity_text": 2.0
    }  # fmt: skip
    expected = cross_entropy(scores.logits_class) + 2 * sum(
        terms[name].value.item() for name in ("similarity_image", "similarity_text")
    )
    close(total_loss(terms), expected)


@pytest.mark.parametrize("prototype", [True, False])
def test_without_the_frozen_clip_the_loss_is_the_cross_entropy(prototype: bool) -> None:
    scores, given_ = example(prototype=prototype, frozen=False)
    terms = loss_terms(scores, **given_)
    assert list(terms) == ["cross_entropy_class"]
    close(total_loss(terms), cross_entropy(scores.logits_class))


def test_class_weights_are_of_both_cross_entropies_and_of_nothing_else() -> None:
    scores, given_ = example()
    weights = [0.5, 3.0, 1.0, 2.0]
    plain = loss_terms(scores, **given_)
    terms = loss_terms(scores, **given_, class_weights=torch.tensor(weights, dtype=torch.float64))
    assert scores.logits_prototype is not None
    close(terms["cross_entropy_class"].value, cross_entropy(scores.logits_class, weights))
    close(terms["cross_entropy_prototype"].value, cross_entropy(scores.logits_prototype, weights))
    for name in ("similarity_image", "similarity_text", "waloss"):
        assert terms[name].value == plain[name].value
    assert {name: term.weight for name, term in terms.items()} == {name: term.weight for name, term in plain.items()}


def test_similarity_of_equal_features_is_nothing() -> None:
    rows = normalized(4, 1)
    close(similarity_loss(rows, rows), 0.0)
    close(similarity_loss(rows, -rows), 2.0)


def test_waloss_of_equal_predictions_is_nothing_and_their_order_matters() -> None:
    """Shifts of a row change no prediction; which of the two is the target changes the value."""
    logits, other = 3 * features(3, 1), 3 * features(3, 2)
    close(waloss(logits, logits + torch.tensor([[1.0], [-2.0], [5.0]])), 0.0)
    assert waloss(logits, other) > 0.01
    assert (waloss(logits, other) * logits.std() - waloss(other, logits) * other.std()).abs() > 0.01


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(4)), seed=st.integers(0, 2**31))
def test_permuted_classes_permute_the_logits_and_leave_the_loss(order: list[int], seed: int) -> None:
    scores, given_ = example()
    permuted = torch.tensor(order)
    frozen: Frozen = given_["frozen"]
    moved = {
        **given_,
        "text": given_["text"][permuted],
        "labels": permuted.argsort()[LABELS],
        "frozen": Frozen(frozen.image, frozen.clean[permuted], frozen.perturbed[permuted]),
    }
    weights = torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    other = score(normalized(5, 1), normalized(5, 2), moved["text"], SCALE, given_["config"])
    for name in ("logits_class", "logits_prototype", "logits_fused"):
        torch.testing.assert_close(getattr(other, name), getattr(scores, name)[:, permuted], rtol=0, atol=1e-12)
    ours = loss_terms(scores, **given_, class_weights=weights)
    theirs = loss_terms(other, **moved, class_weights=weights[permuted])
    for name, term in ours.items():
        torch.testing.assert_close(theirs[name].value, term.value, rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 100), st.integers(0, 2**31))
def test_the_length_of_features_plays_no_part(length: float, seed: int) -> None:
    factors = length * (0.5 + torch.rand(5, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    torch.testing.assert_close(normalize(features(5, 1) * factors), normalized(5, 1), rtol=0, atol=1e-12)


def test_clip_logits_keep_images_in_rows() -> None:
    logits = clip_logits(normalized(5, 1), normalized(4, 2), SCALE)
    assert logits.shape == (5, 4)
    close(logits, [[7 * value for value in row] for row in dots(normalized(5, 1).tolist(), normalized(4, 2).tolist())])
