"""The logits and loss terms of ANPrompt, as pure functions of normalised features."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from .config import ANPromptConfig

STD_EPSILON = 1e-6


@dataclass
class Scores:
    """Normalised features of B images and their logits over C classes; `None` where there is no prototype.

    Attributes:
        image_embeds (`Tensor`): v, `[B, d]`.
        logits_class (`Tensor`): `[B, C]`.
        logits_fused (`Tensor`): `[B, C]`.
        prototype_embeds (`Tensor`, *optional*): v_p, `[B, d]`.
        logits_prototype (`Tensor`, *optional*): `[B, C]`.
    """

    image_embeds: Tensor
    logits_class: Tensor
    logits_fused: Tensor
    prototype_embeds: Tensor | None = None
    logits_prototype: Tensor | None = None


def clip_logits(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Return `scale * image @ text.T`, `[B, C]`, in the order of operations of transformers' `CLIPModel`.

    Args:
        image (`Tensor`): `[B, d]`, normalised.
        text (`Tensor`): `[C, d]`, normalised.
        scale (`Tensor`): scalar, `exp(logit_scale)`.
    """
    return (text @ image.t() * scale).t()


def similarity_loss(adapted: Tensor, frozen: Tensor) -> Tensor:
    """Return `1 - mean cos(adapted, frozen)` over rows of normalised features `[n, d]` (ANPrompt's sim loss)."""
    return 1 - (adapted * frozen).sum(dim=-1).mean()


def waloss(logits_class: Tensor, logits_perturbed: Tensor) -> Tensor:
    """Return the consistency of clean and weakly perturbed predictions (ANPrompt's WALoss).

    `s * KL(softmax(logits_perturbed) || softmax(logits_class))`, summed over all entries, with
    `s = 1 / ((std(logits_class) + 1e-6) * numel)` inside the graph; the standard deviation is the unbiased one.

    Args:
        logits_class (`Tensor`): `[B, C]`, image features against prompted text features.
        logits_perturbed (`Tensor`): `[B, C]`, prototypes against perturbed text features.
    """
    divergence = F.kl_div(
        logits_class.log_softmax(dim=-1), logits_perturbed.log_softmax(dim=-1), reduction="sum", log_target=True
    )
    return divergence / ((logits_class.std() + STD_EPSILON) * logits_class.numel())


def total_loss(terms: dict[str, Tensor], config: ANPromptConfig) -> Tensor:
    """Return the weighted sum of the loss terms that are there; without a prototype alpha plays no part."""
    weights = {
        "cross_entropy_class": config.alpha if "cross_entropy_prototype" in terms else 1.0,
        "cross_entropy_prototype": 1 - config.alpha,
        "similarity_image": config.similarity_weight,
        "similarity_text": config.similarity_weight,
        "waloss": config.waloss_weight,
    }
    first, *others = (weights[name] * term for name, term in terms.items())
    return sum(others, start=first)
