"""CoCoOp: a context that depends on the image (Zhou et al., 2022b, arXiv 2203.05557)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...method.families import joint_width
from ..backbone import Backbone
from ..task import ClassTexts, ImageSet
from .prompt_training import PromptableCLIP
from .prompted import TEXT_CHUNK, WORDS, Context, encode_texts
from .training import Batch, Recipe, seeded, train

REDUCTION = 16


class ConditionalContext(nn.Module):
    """The contexts `v_k + h(x)` of images x, with h two linear layers and a ReLU between them.

    The hidden layer has a 16th of the joint dimension d, at least 1. All starts as `nn.Linear` does, v at the context
    `[M, d_t]`.
    """

    def __init__(self, context: Tensor, dim: int, like: Tensor) -> None:
        super().__init__()
        self.context = nn.Parameter(context.to(like))
        hidden = max(1, dim // REDUCTION)
        self.meta_net = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, context.shape[-1]))
        self.to(like)

    def forward(self, image: Tensor) -> Tensor:
        """Return the contexts `[m, M, d_t]` of normalised image features `[m, d]`."""
        return self.context + self.meta_net(image)[:, None]


@dataclass(frozen=True)
class CoCoOp:
    """CoOp's context, shifted by a small network of the image's feature.

    With class texts t_i(x) read behind an image's own context, the logits are `exp(logit_scale) x t(x)^T`, so that n
    images and C classes take n C passes through the text encoder. The context stands in the place of the task's
    templates.
    """

    recipe: Recipe
    tokens: int | None = None  # M; default: as many as the words have
    words: str = WORDS  # where the context starts; empty: at random
    text_chunk: int = TEXT_CHUNK  # texts encoded at a time; more are each computed twice, to save memory

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> FittedCoCoOp:
        """Learn the context and the network."""
        context = Context(self.words, self.tokens)
        clip = PromptableCLIP(backbone, context, self.text_chunk)
        with seeded(seed):
            first = context.initial(clip.tokenizer, clip.model)
            learner = ConditionalContext(first, joint_width(clip.model.config), clip.like)
        fitted = FittedCoCoOp(clip, context, learner)
        ids = fitted.ids(classes)

        def loss_of_batch(batch: Batch) -> Tensor:
            return F.cross_entropy(fitted.score(batch.features(backbone), ids), batch.labels)

        train(learner.parameters(), loss_of_batch, shots, self.recipe, seed)
        learner.requires_grad_(False)
        return fitted


@dataclass(frozen=True, eq=False)
class FittedCoCoOp:
    """A context and its network, with the CLIP that they were trained for."""

    clip: PromptableCLIP
    context: Context
    learner: ConditionalContext

    def ids(self, classes: ClassTexts) -> Tensor:
        """Return the class texts, int64 `[C, L]`."""
        return self.context.ids(classes.written, self.clip.tokenizer, self.clip.model)

    def score(self, image: Tensor, ids: Tensor) -> Tensor:
        """Return the logits `[m, C]` of normalised image features `[m, d]` and class texts `[C, L]`."""
        contexts = self.learner(image).repeat_interleave(len(ids), dim=0)  # m * C, M, d_t
        text = encode_texts(self.clip.model, ids.repeat(len(image), 1), [contexts], self.clip.chunk)
        text = text.unflatten(0, (len(image), len(ids)))  # m, C, d
        return self.clip.backbone.logit_scale * torch.einsum("md,mcd->mc", image, text)

    @torch.no_grad()
    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        """Return the logits `[n, C]`."""
        ids = self.ids(classes)
        features = self.clip.backbone.image_features(images).to(self.clip.like)
        size = max(1, self.clip.chunk // len(ids))
        return torch.cat([self.score(image, ids) for image in features.split(size)]).cpu()
