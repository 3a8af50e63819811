"""Folds over the classes: how they are cut, and which frozen share they choose."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from anprompt_peft.training.folds import SHARES, Fold, HeldOut, choose_share, class_folds

NAMES = ("ant", "bee", "cat", "dog", "elk")


def answered(wins: Sequence[str], rows: Sequence[int] | None = None) -> HeldOut:
    """Two classes, the first of them right: `wins` says of each image which shares get it, from and to.

    The frozen CLIP's margin is -1 where small shares are right ("<=x"), +1 where large ones are (">=x").
    """
    adapted, frozen = [], []
    for each in wins:
        sign, limit = each[:2], float(each[2:])
        edge = limit + 0.1 if sign == "<=" else limit - 0.1  # where (1 - s) a + s f changes its sign
        a, f = (edge, edge - 1) if sign == "<=" else (-edge, 1 - edge)
        adapted.append([a, 0.0])
        frozen.append([f, 0.0])
    labels = torch.zeros(len(wins), dtype=torch.int64)
    at = torch.arange(len(wins)) if rows is None else torch.tensor(rows)
    return HeldOut(at, labels, torch.tensor(adapted), torch.tensor(frozen))


def test_every_class_is_held_out_once_in_a_cut() -> None:
    folds = class_folds(NAMES, seed=3, cuts=4)
    assert len(folds) == 8
    for there, back in zip(folds[::2], folds[1::2], strict=True):
        assert there == Fold(back.held_out, back.learned)
        assert (len(there.learned), len(there.held_out)) == (3, 2)
        assert sorted(there.learned + there.held_out) == list(NAMES)
        assert list(there.learned) == sorted(there.learned), "in the order of the labels"
    assert len({fold.learned for fold in folds}) > 4, "cuts differ"
    assert class_folds(NAMES, seed=3) == folds[:2]
    assert any(class_folds(NAMES, seed) != folds[:2] for seed in range(3))
    with pytest.raises(ValueError, match="cuts=0 must be at least 1"):
        class_folds(NAMES, 0, cuts=0)


def test_few_classes_leave_the_default() -> None:
    assert class_folds(NAMES[:3], seed=0) == []
    choice = choose_share([], [], seed=7)
    assert (choice.share, choice.seed, choice.images, choice.candidates) == (0.5, 7, 0, ())
    assert choice.reason == "the default: folds need 4 classes or more"


FOLDS = class_folds(NAMES[:4], seed=0)


@pytest.mark.parametrize(
    ("wins", "share"),
    [
        (["<=1"] * 20, 0.5),  # all level
        (["<=0"] * 3 + ["<=1"] * 17, 0.5),  # 15 points, and two standard errors are 16.4
        (["<=0"] * 4 + ["<=1"] * 16, 0.0),  # 20 points, and two standard errors are 18.4
        (["<=0.25"] * 8 + ["<=1"] * 12, 0.25),
        (["<=0"] + ["<=0.25"] * 8 + ["<=1"] * 11, 0.25),  # the edge is one image ahead
        ([">=1"] * 8 + ["<=1"] * 12, 1.0),
        ([">=1"] + [">=0.75"] * 8 + ["<=1"] * 11, 0.75),
        ([">=0.75"] * 5 + ["<=0.25"] * 6 + ["<=1"] * 9, 0.25),  # worse by one image at the other side of the default
    ],
)
def test_the_nearest_to_the_default_within_two_standard_errors(wins: list[str], share: float) -> None:
    answers = [answered(wins[:10], range(0, 20, 2)), answered(wins[10:], range(1, 20, 2))]
    choice = choose_share(FOLDS, answers, seed=1)
    assert choice.share == share
    assert choice.images == 20
    assert choice.folds == tuple(FOLDS)


def test_figures_are_those_of_a_plain_reckoning() -> None:
    """Random logits, two cuts: each image counts once, with the mean over its cuts."""
    folds, rng = class_folds(NAMES, seed=2, cuts=2), np.random.default_rng(0)
    of_class = rng.integers(5, size=60)
    answers = []
    judged: dict[float, tuple[list[list[float]], list[list[float]]]] = {
        share: ([[] for _ in range(60)], [[] for _ in range(60)]) for share in SHARES
    }
    for fold in folds:
        numbers = [NAMES.index(name) for name in fold.held_out]
        rows = [row for row in range(60) if of_class[row] in numbers]
        labels = [numbers.index(of_class[row]) for row in rows]
        adapted, frozen = rng.normal(size=(2, len(rows), len(numbers)))
        for at, label in enumerate(labels):
            adapted[at, label] += 1
            for share in SHARES:
                logits = (1 - share) * adapted[at] + share * frozen[at]
                right, surprise = judged[share]
                right[rows[at]].append(float(logits.argmax() == label))
                surprise[rows[at]].append(math.log(sum(math.exp(each) for each in logits)) - logits[label])
        answers.append(HeldOut(torch.tensor(rows), torch.tensor(labels), torch.tensor(adapted), torch.tensor(frozen)))
    choice = choose_share(folds, answers, seed=2)
    accurate = {share: np.array([np.mean(each) for each in both[0]]) for share, both in judged.items()}
    best = max(SHARES, key=lambda share: accurate[share].mean())
    for each in choice.candidates:
        entropy = np.mean([np.mean(every) for every in judged[each.share][1]])
        behind = accurate[best] - accurate[each.share]
        expected = (
            100 * accurate[each.share].mean(),
            entropy,
            100 * behind.mean(),
            100 * behind.std(ddof=1) / 60**0.5,
        )
        assert (each.accuracy, each.cross_entropy, each.behind, each.error) == pytest.approx(expected, abs=1e-4)
    assert [each.share for each in choice.candidates] == list(SHARES)
    assert choice.images == 60
    written = json.loads(json.dumps(choice.to_dict()))
    assert written["folds"][0] == {"learned": list(folds[0].learned), "held_out": list(folds[0].held_out)}
    assert written["candidates"][4]["share"] == 1.0
    again = choose_share(folds, answers, seed=2)
    assert again == choice
