"""PromptSRC: prompts in both encoders that stay near the frozen CLIP (Khattak et al., 2023b, arXiv 2307.06948)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbone import Backbone
from ..task import ClassTexts, ImageSet
from .prompt_training import Features, FittedPrompts, PromptableCLIP, detached, fit_prompts, prompts_of_both
from .prompted import TEXT_CHUNK, WORDS, Context, Prompts
from .training import Batch, Recipe

PUBLISHED_DEPTH = 9


@dataclass(frozen=True)
class PromptSRC:
    """IVLP's prompts, trained to agree with the frozen CLIP and averaged over the epochs.

    With prompted features x, t and logits z, frozen features x', t' and logits z' (all features normalised, t' the
    mean of many templates), the loss of m images and C classes is

        cross entropy(z) + image_weight mean |x - x'| + text_weight mean |t - t'| + KL(softmax z' || softmax z) / (m C)

    with the KL divergence summed over the images. The result is the mean of the prompts at the end of each epoch,
    weighted by a Gaussian of the epoch's number, from 1.
    """

    recipe: Recipe
    vision_tokens: int
    image_weight: float
    text_weight: float
    average_centre: float  # the Gaussian's mean, as a share of the epochs
    average_width: float  # its standard deviation, as a share of the epochs
    text_tokens: int | None = None  # default: as many as the words have
    words: str = WORDS  # where the first text tokens start; empty: at random
    depth: int | None = None  # layers of both encoders with tokens; default: 9, or all of a smaller encoder
    templates: tuple[str, ...] = ()  # of the frozen class texts, beside the task's own
    text_chunk: int = TEXT_CHUNK  # class texts encoded at a time, as in CoOp

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> FittedPrompts:
        """Learn the tokens."""
        clip = PromptableCLIP(backbone, Context(self.words, self.text_tokens), self.text_chunk)
        learner = prompts_of_both(clip, self.depth, PUBLISHED_DEPTH, self.vision_tokens, seed)
        texts = tuple(dict.fromkeys((*classes.templates, *self.templates)))
        frozen_text = backbone.class_features(replace(classes, templates=texts)).to(clip.like)

        def loss(batch: Batch, prompted: Features) -> Tensor:
            image = batch.features(backbone)
            frozen = Features(image, frozen_text, backbone.logit_scale * image @ frozen_text.T)
            return F.cross_entropy(prompted.logits, batch.labels) + self.distance(prompted, frozen)

        epochs: list[Prompts] = []
        fit_prompts(clip, learner, shots, classes, self.recipe, seed, loss, lambda: epochs.append(detached(learner())))
        return FittedPrompts(clip, self.average(epochs))

    def distance(self, prompted: Features, frozen: Features) -> Tensor:
        """Return the weighted distance of prompted and frozen features and logits, a scalar."""
        log_prompted, log_frozen = prompted.logits.log_softmax(dim=1), frozen.logits.log_softmax(dim=1)
        divergence = F.kl_div(log_prompted, log_frozen, reduction="sum", log_target=True) / log_prompted.numel()
        image = F.l1_loss(prompted.image, frozen.image)
        return self.image_weight * image + self.text_weight * F.l1_loss(prompted.text, frozen.text) + divergence

    def average(self, epochs: Sequence[Prompts]) -> Prompts:
        """Return the mean of E epochs' prompts, weighted by the Gaussian."""
        numbers = torch.arange(1, len(epochs) + 1, dtype=torch.float64)
        deviations = (numbers / len(epochs) - self.average_centre) / self.average_width
        weights = (-(deviations**2) / 2).softmax(dim=0).tolist()
        return Prompts(*(_weighted_sum(tower, weights) for tower in zip(*epochs, strict=True)))


def _weighted_sum(epochs: Sequence[tuple[Tensor, ...]], weights: Sequence[float]) -> tuple[Tensor, ...]:
    """Return per layer the sum over epochs of weights times prompts."""
    return tuple(
        torch.stack([weight * prompts for weight, prompts in zip(weights, layer, strict=True)]).sum(dim=0)
        for layer in zip(*epochs, strict=True)
    )
