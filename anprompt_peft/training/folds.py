"""Folds over the classes: how much of the frozen CLIP answers for classes that nothing was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..method.config import ANPromptConfig

FOLDS = "folds"
"""Stands for a frozen share that is chosen here."""
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
DEFAULT_SHARE = ANPromptConfig.frozen_share
MARGIN = 2.0  # standard errors
LEAST_CLASSES = 4  # two in each half: one alone is always answered right


class Fold(NamedTuple):
    """Classes to train on, and other classes to answer for, each in the order of their labels."""

    learned: tuple[str, ...]
    held_out: tuple[str, ...]


class HeldOut(NamedTuple):
    """Logits `[n, C]` for n images of a fold's C classes that were held out."""

    rows: Tensor  # int64 [n], which images of the data they are
    labels: Tensor  # int64 [n], positions in the C classes
    adapted: Tensor  # of what was trained on the other classes
    frozen: Tensor  # of the frozen CLIP


@dataclass(frozen=True)
class Candidate:
    """What a share got right of the images held out.

    Args:
        share (`float`): of the frozen CLIP's logits.
        accuracy (`float`): in per cent.
        cross_entropy (`float`): mean over the images.
        behind (`float`): points of accuracy behind the best candidate.
        error (`float`): the standard error of that difference, paired by image.
    """

    share: float
    accuracy: float
    cross_entropy: float
    behind: float
    error: float


@dataclass(frozen=True)
class ShareChoice:
    """The frozen share that folds over the classes chose, and from what.

    Args:
        share (`float`): the choice.
        reason (`str`): how it came about.
        seed (`int`): of the cuts and of the trainings.
        images (`int`): n images that were answered for, each in every cut.
        folds (`tuple[Fold, ...]`): the halves.
        candidates (`tuple[Candidate, ...]`): by share.
    """

    share: float
    reason: str
    seed: int
    images: int = 0
    folds: tuple[Fold, ...] = ()
    candidates: tuple[Candidate, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        halves = [{"learned": list(fold.learned), "held_out": list(fold.held_out)} for fold in self.folds]
        return {**asdict(self), "folds": halves, "candidates": [asdict(each) for each in self.candidates]}


def class_folds(names: Sequence[str], seed: int, cuts: int = 1) -> list[Fold]:
    """Cut classes into halves at random, the first with `ceil(C / 2)`, and return both directions of every cut.

    Args:
        names (`Sequence[str]`): C class names in the order of their labels.
        seed (`int`): of the cuts.
        cuts (`int`): their number.

    Returns:
        `list[Fold]`: `2 * cuts`, or none for fewer than 4 classes.

    Raises:
        ValueError: if `cuts` is below 1.
    """
    if cuts < 1:
        raise ValueError(f"cuts={cuts} must be at least 1.")
    if len(names) < LEAST_CLASSES:
        return []
    folds = []
    for cut in range(cuts):
        order = np.random.default_rng([seed, cut]).permutation(len(names))
        first = {*order[: (len(names) + 1) // 2].tolist()}
        one, other = (tuple(each for at, each in enumerate(names) if (at in first) is side) for side in (True, False))
        folds += [Fold(one, other), Fold(other, one)]
    return folds


def choose_share(
    folds: Sequence[Fold], answers: Sequence[HeldOut], seed: int, shares: Sequence[float] = SHARES
) -> ShareChoice:
    """Choose the share of the frozen CLIP by the images of classes that were held out.

    The best candidate has the highest accuracy, among equals the lowest cross entropy. Of the candidates that are
    behind it by at most two standard errors of the difference, paired by image, the one nearest to the default is
    chosen. That is the rule of Breiman et al. ("Classification and Regression Trees", 1984, section 3.4.3) with the
    default in the place of the simplest tree, and two errors in the place of one: a difference that is not
    significant at 5 % leaves the default where it is, and 0 or 1 is chosen only if all that lies between it and the
    default is clearly worse.

    Args:
        folds (`Sequence[Fold]`): the halves; none leaves the default.
        answers (`Sequence[HeldOut]`): for each fold, the logits of the images held out.
        seed (`int`): for the record.
        shares (`Sequence[float]`): the candidates.
    """
    if not folds:
        reason = f"the default: folds need {LEAST_CLASSES} classes or more"
        return ShareChoice(DEFAULT_SHARE, reason, seed)
    right, surprise = (torch.stack(each) for each in zip(*(_judged(answers, share) for share in shares), strict=True))
    accuracy, cross_entropy = right.mean(dim=1), surprise.mean(dim=1)
    best = min(range(len(shares)), key=lambda at: (-accuracy[at].item(), cross_entropy[at].item()))
    behind = right[best] - right
    errors = behind.std(dim=1) / behind.shape[1] ** 0.5
    candidates = tuple(
        Candidate(share, *(round(figure.item(), 4) for figure in figures))
        for share, *figures in zip(
            shares, 100 * accuracy, cross_entropy, 100 * behind.mean(dim=1), 100 * errors, strict=True
        )
    )
    level = [each for each in candidates if each.behind <= MARGIN * each.error]
    chosen = min(level, key=lambda each: (abs(each.share - DEFAULT_SHARE), each.behind, each.cross_entropy))
    reason = f"the nearest to the default of those at most {MARGIN:g} standard errors behind the best"
    return ShareChoice(chosen.share, reason, seed, right.shape[1], tuple(folds), candidates)


def _judged(answers: Sequence[HeldOut], share: float) -> tuple[Tensor, Tensor]:
    """Return for n images, each averaged over the cuts, whether a share is right and its cross entropy: `[n]`."""
    rows = torch.cat([each.rows for each in answers])
    figures = []
    for each in answers:
        logits = ((1 - share) * each.adapted + share * each.frozen).double()
        right = (logits.argmax(dim=-1) == each.labels).double()
        figures.append(torch.stack([right, F.cross_entropy(logits, each.labels, reduction="none")]))
    _, image = rows.unique(return_inverse=True)
    sums = torch.zeros(2, int(image.max()) + 1, dtype=torch.float64).index_add_(1, image, torch.cat(figures, dim=1))
    right, surprise = sums / image.bincount()
    return right, surprise
