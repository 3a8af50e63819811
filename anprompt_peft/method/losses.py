"""The logits and loss terms of ANPrompt, as pure functions of features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from .config import ANPromptConfig

STD_EPSILON = 1e-6


@dataclass
class Scores:
    """Normalised features v and v_p of B images `[B, d]`, and their logits `[B, C]`; `None` where there are none."""

    image_embeds: Tensor
    logits_class: Tensor
    logits_fused: Tensor
    prototype_embeds: Tensor | None = None
    logits_prototype: Tensor | None = None
    logits_ensemble: Tensor | None = None


class Frozen(NamedTuple):
    """What the frozen CLIP says, normalised: images f(x) `[B, d]`, clean texts w and perturbed texts u `[C, d]`."""

    image: Tensor
    clean: Tensor
    perturbed: Tensor


class Term(NamedTuple):
    """A loss term, a scalar, and its weight in the loss."""

    value: Tensor
    weight: float


def score(
    image: Tensor,  # v, [B, d], normalised
    prototype: Tensor | None,  # v_p (NRVPP), [B, d], normalised
    text: Tensor,  # t, [C, d], normalised
    scale: Tensor,  # exp(logit_scale)
    config: ANPromptConfig,
    frozen: Tensor | None = None,  # the frozen CLIP's logits [B, C]
    bias: Tensor | None = None,  # of logits
) -> Scores:
    """Return all logits of images, with prompts in; those of the ensemble only with the frozen CLIP's."""
    logits = clip_logits(image, text, scale, bias)
    scores = Scores(image, logits, logits, prototype)
    if prototype is not None:
        scores.logits_prototype = clip_logits(prototype, text, scale, bias)
        scores.logits_fused = config.alpha * logits + (1 - config.alpha) * scores.logits_prototype
    if frozen is not None:
        scores.logits_ensemble = (1 - config.frozen_share) * logits + config.frozen_share * frozen
    return scores


def loss_terms(
    scores: Scores,
    text: Tensor,  # t, [C, d], normalised
    labels: Tensor,  # int64 [B]
    frozen: Frozen | None,
    scale: Tensor,  # exp(logit_scale)
    config: ANPromptConfig,
    class_weights: Tensor | None = None,  # [C], of both cross entropies, as the smoothing
    rephrased: tuple[Tensor, Tensor] | None = None,  # [m, d] with prompts in, and the frozen CLIP's of the clean texts
    label_smoothing: float = 0.0,
) -> dict[str, Term]:
    """Return the terms by name; without prompts alpha plays no part, without `frozen` one cross entropy is left."""
    cross_entropy = partial(F.cross_entropy, target=labels, weight=class_weights, label_smoothing=label_smoothing)
    prototype, logits_prototype = scores.prototype_embeds, scores.logits_prototype
    share = config.alpha if frozen is not None and prototype is not None else 1.0
    terms = {"cross_entropy_class": Term(cross_entropy(scores.logits_class), share)}
    if frozen is None:
        return terms
    terms["similarity_image"] = Term(similarity_loss(scores.image_embeds, frozen.image), config.similarity_weight)
    terms["similarity_text"] = Term(similarity_loss(text, frozen.clean), config.similarity_weight)
    if rephrased is not None:
        terms["similarity_rephrased"] = Term(similarity_loss(*rephrased), config.rephrased_weight)
    if prototype is not None and logits_prototype is not None:
        terms["cross_entropy_prototype"] = Term(cross_entropy(logits_prototype), 1 - config.alpha)
        logits_perturbed = clip_logits(prototype, frozen.perturbed, scale)
        terms["waloss"] = Term(waloss(scores.logits_class, logits_perturbed), config.waloss_weight)
    return terms


def total_loss(terms: dict[str, Term]) -> Tensor:
    """Return the weighted sum of the terms."""
    first, *others = (term.weight * term.value for term in terms.values())
    return sum(others, start=first)


def clip_logits(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `scale * image @ text.T + bias`, `[B, C]`, in the order of operations of transformers' models."""
    logits = text @ image.t() * scale
    return (logits if bias is None else logits + bias).t()


def similarity_loss(adapted: Tensor, frozen: Tensor) -> Tensor:
    """Return `1 - mean cos(adapted, frozen)` over rows of normalised features `[n, d]` (ANPrompt's sim loss)."""
    return 1 - (adapted * frozen).sum(dim=-1).mean()


def waloss(logits_class: Tensor, logits_perturbed: Tensor) -> Tensor:
    """Return the consistency of clean and weakly perturbed predictions `[B, C]` (ANPrompt's WALoss).

    `s * KL(softmax(logits_perturbed) || softmax(logits_class))`, summed over all entries, with
    `s = 1 / ((std(logits_class) + 1e-6) * numel)` inside the graph; the standard deviation is the unbiased one.
    """
    divergence = F.kl_div(
        logits_class.log_softmax(dim=-1), logits_perturbed.log_softmax(dim=-1), reduction="sum", log_target=True
    )
    return divergence / ((logits_class.std() + STD_EPSILON) * logits_class.numel())
