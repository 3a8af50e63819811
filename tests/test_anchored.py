"""The anchored classifier as pure functions: its minimum, how its strength is found, and how it joins other logits."""

from __future__ import annotations

from typing import Any

import pytest
import scipy
import torch
from torch import Tensor

from anprompt_peft.anchored import STRENGTHS, WITHOUT_FOLDS, fit_anchored, folds, join, known_classes, share_among
from reference import anchored_loss, joined, normalize

SCALE = 20.0
LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 1, 3, 3, 2, 2, 0])


def features(seed: int, labels: Tensor = LABELS, spread: float = 0.5) -> tuple[Tensor, Tensor]:
    """Normalised images [n, 6] about the class means, and class texts [5, 6], of which the last has no image."""
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randn(5, 6, generator=generator, dtype=torch.float64) + 2
    noise = torch.randn(len(labels), 6, generator=generator, dtype=torch.float64)
    return normalize(texts[labels] + spread * noise), normalize(texts)


@pytest.mark.parametrize("strength", [0.3, 0.003, 1e-4])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_is_zero_at_the_minimum(strength: float, weighted: bool) -> None:
    images, texts = features(1)
    weights = torch.tensor([1.0, 4.0, 0.5, 2.0, 3.0], dtype=torch.float64) if weighted else None
    fitted = fit_anchored(images, LABELS, texts, SCALE, weights, strength)
    delta = (fitted.rows - texts).requires_grad_()
    weights = torch.ones(5, dtype=torch.float64) if weights is None else weights
    loss = anchored_loss(images, LABELS, texts, delta, SCALE, strength, weights)
    (gradient,) = torch.autograd.grad(loss, delta)
    assert fitted.strength == strength
    assert gradient[:4].abs().max() < 1e-8
    assert not delta[4].any()  # it has no image
    assert delta[:4].abs().max() > 1e-3


def test_another_solver_finds_the_same_minimum() -> None:
    images, texts = features(2)
    ones = torch.ones(5, dtype=torch.float64)

    def objective(flat: object) -> tuple[float, object]:
        free = torch.tensor(flat).view(4, 6).requires_grad_()
        loss = anchored_loss(images, LABELS, texts, torch.cat([free, torch.zeros(1, 6)]), SCALE, 0.01, ones)
        (gradient,) = torch.autograd.grad(loss, free)
        return loss.item(), gradient.flatten().numpy()

    options = {"ftol": 0, "gtol": 1e-9, "maxiter": 10_000}
    found = scipy.optimize.minimize(objective, torch.zeros(24).numpy(), jac=True, method="L-BFGS-B", options=options)
    ours = fit_anchored(images, LABELS, texts, SCALE, strength=0.01).rows - texts
    assert (ours[:4] - torch.tensor(found.x).view(4, 6)).abs().max() < 2e-4


def test_a_strong_pull_is_zero_shot_and_a_weak_one_learns_all_shots() -> None:
    images, texts = features(3, spread=2.0)
    held = fit_anchored(images, LABELS, texts, SCALE, strength=1e9).rows
    free = fit_anchored(images, LABELS, texts, SCALE, strength=1e-6).rows
    assert (held - texts).abs().max() < 1e-7
    assert ((images @ texts.T).argmax(dim=1) != LABELS).any()
    probabilities = (SCALE * images @ free.T).softmax(dim=1)
    assert probabilities[torch.arange(len(LABELS)), LABELS].min() > 0.99


def test_folds_deal_out_the_images_of_each_class() -> None:
    labels = torch.tensor([0] * 9 + [1] * 3 + [2] + [4] * 4)
    fold = folds(labels, 0)
    assert sorted(torch.bincount(fold[labels == 0]).tolist()) == [2, 2, 2, 3]
    assert fold[labels == 1].tolist() != sorted(fold[labels == 1].tolist()) or fold[labels == 1].unique().numel() == 3
    assert fold[labels == 2].tolist() == [-1]
    assert sorted(fold[labels == 4].tolist()) == [0, 1, 2, 3]
    assert torch.equal(fold, folds(labels, 0))
    assert not torch.equal(fold, folds(labels, 1))
    assert int(folds(torch.tensor([0, 0, 1, 1]), 0).max()) == 1


def test_the_strength_has_the_least_loss_on_shots_left_out() -> None:
    """Of what is tried, from the strongest on, as long as it falls."""
    images, texts = features(12, spread=1.0)
    fold = folds(LABELS, 7)
    ones = torch.ones(5, dtype=torch.float64)
    losses = []
    for strength in STRENGTHS:
        total = 0.0
        for each in range(4):
            learn = fold != each
            rows = fit_anchored(images[learn], LABELS[learn], texts, SCALE, strength=strength).rows
            out = images[~learn], LABELS[~learn], rows, torch.zeros_like(rows), SCALE, 0.0, ones
            total += float(anchored_loss(*out)) * len(out[1])
        losses.append(total)
    first_rise = next(at for at in range(len(losses)) if at + 1 == len(losses) or losses[at + 1] > losses[at])
    assert 0 < first_rise < len(losses) - 1
    assert fit_anchored(images, LABELS, texts, SCALE, seed=7).strength == STRENGTHS[first_rise]


def test_without_two_images_of_a_class_the_strength_is_the_stated_one() -> None:
    labels = torch.tensor([0, 1, 3])
    images, texts = features(5, labels)
    assert fit_anchored(images, labels, texts, SCALE).strength == WITHOUT_FOLDS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(0, 6)}, "at least one image"),
        ({"strength": 0.0}, "strength=0.0 .* positive"),
        ({"strength": float("nan")}, "strength=nan .* positive"),
        ({"texts": torch.full((5, 6), float("nan"))}, "NaN or infinite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change: dict[str, Any], message: str) -> None:
    images, texts = features(6)
    given: dict[str, Any] = {"images": images, "texts": texts, **change}
    with pytest.raises(ValueError, match=message):
        fit_anchored(labels=LABELS, scale=SCALE, **given)


ASKED = ["red bird", "Cat ", "new", "dog"]


@pytest.mark.parametrize("asked", [ASKED, ["cat", "dog", "red bird"], ["cat", "red bird"], ["new", "dog"], ["new"]])
def test_a_classifier_joins_the_logits_of_the_classes_it_knows(asked: list[str]) -> None:
    names = ["cat", "dog", "red  bird", "other"]
    images, rows = features(7)
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(len(images), len(asked), generator=generator, dtype=torch.float64)
    at, of = known_classes(asked, names)
    assert [names[row] for row in of] == [
        name.strip().lower().replace("red ", "red  ") for name in asked if name != "new"
    ]
    result = join(logits, torch.tensor(at, dtype=torch.int64), images, rows[of], SCALE, 0.7)
    if not at:
        assert result is logits
        return
    expected = joined(logits, SCALE * images @ rows[of].T, at, 0.7)
    assert (result.softmax(dim=1) - expected).abs().max() < 1e-12
    if len(at) == len(asked):
        plain = logits.log_softmax(dim=1) + 0.7 * (SCALE * images @ rows[of].T).log_softmax(dim=1)
        assert (result - plain).abs().max() < 1e-10
    assert len(at) == 1 or (result.softmax(dim=1) - logits.softmax(dim=1)).abs().max() > 1e-3


def test_known_classes_share_what_the_logits_give_them_together() -> None:
    logits, learned = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[5.0, 4.0]])
    shared = share_among(logits, torch.tensor([0, 2]), learned).softmax(dim=1)
    assert shared[0, 1] == pytest.approx(float(logits.softmax(dim=1)[0, 1]))
    assert shared[0, 0] / shared[0, 2] == pytest.approx(2.718281828, rel=1e-5)
