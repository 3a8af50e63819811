"""Training prompts for a frozen CLIP, and asking it with them: what the prompt methods share.

Shapes: C classes, m images, n learnable tokens, widths d_t and d_v, joint dimension d.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone import Backbone, CachedFeatures
from ..task import ClassTexts, ImageSet
from .prompted import TEXT_CHUNK, Context, Prompts, depth_in, encode_images, encode_texts, random_prompts
from .training import Batch, Recipe, seeded, train


class PromptableCLIP:
    """A frozen CLIP that is given prompts, at least in float32; without a context, class texts are the task's."""

    def __init__(self, backbone: Backbone, context: Context | None = None, chunk: int = TEXT_CHUNK) -> None:
        self.backbone, self.context, self.chunk = backbone, context, chunk
        exact = torch.promote_types(backbone.clip.dtype, torch.float32) == backbone.clip.dtype
        self.model = backbone.clip if exact else backbone.copy().float()
        self.tokenizer = backbone.processor.tokenizer
        self.text_layers, self.vision_layers = (
            tower.encoder.layers for tower in (self.model.text_model, self.model.vision_model)
        )
        config = self.model.config
        self.widths = config.text_config.hidden_size, config.vision_config.hidden_size  # d_t, d_v
        self.like = self.model.text_model.embeddings.token_embedding.weight  # whose device and dtype prompts take

    def text_encoder(self, classes: ClassTexts) -> Callable[[Prompts], Tensor]:
        """Return what gives the classes' features `[C, d]` for prompts; the texts are tokenised once."""
        if self.context is None:
            frozen = self.backbone.class_features(classes)
            return lambda prompts: frozen
        ids = self.context.ids(classes.written, self.tokenizer, self.model)
        return lambda prompts: encode_texts(self.model, ids, prompts.text, self.chunk)

    def encode_batch(self, batch: Batch, prompts: Prompts) -> Tensor:
        """Return the features of a batch of shots, `[m, d]`."""
        if prompts.vision:
            return encode_images(self.model, batch.pixels, prompts.vision)
        return batch.features(self.backbone)


class Learner(nn.Module):
    """Holds learnable tokens that are what the encoders get, in the device and dtype of `like`."""

    def __init__(self, start: Prompts, like: Tensor) -> None:
        super().__init__()
        self.text = nn.ParameterList([nn.Parameter(each.to(like)) for each in start.text])
        self.vision = nn.ParameterList([nn.Parameter(each.to(like)) for each in start.vision])

    def forward(self) -> Prompts:
        """Return the prompts."""
        return Prompts(tuple(self.text), tuple(self.vision))


class Features(NamedTuple):
    """What a loss is computed from: features `[m, d]` and `[C, d]`, normalised, and logits `[m, C]`."""

    image: Tensor
    text: Tensor
    logits: Tensor


@dataclass(frozen=True, eq=False)
class FittedPrompts:
    """Detached prompts after training, with the CLIP that they were trained for."""

    clip: PromptableCLIP
    prompts: Prompts

    @cached_property
    def _images(self) -> CachedFeatures:
        return CachedFeatures(
            lambda pixels: encode_images(self.clip.model, pixels.to(self.clip.like), self.prompts.vision)
        )

    @torch.no_grad()
    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        """Return the logits `[n, C]`. Features are cached, texts' too: a context takes the template's place."""
        seen = self._images.of(images) if self.prompts.vision else self.clip.backbone.image_features(images)
        key = tuple(classes.texts) if self.clip.context is None else classes.written
        if key not in self._texts:
            self._texts[key] = self.clip.text_encoder(classes)(self.prompts)
        return (self.clip.backbone.logit_scale * seen @ self._texts[key].T).cpu()

    @cached_property
    def _texts(self) -> dict[tuple[str, ...], Tensor]:
        return {}


def fit_prompts(
    clip: PromptableCLIP,
    learner: nn.Module,  # without input, gives Prompts
    shots: ImageSet,
    classes: ClassTexts,
    recipe: Recipe,
    seed: int,
    loss: Callable[[Batch, Features], Tensor] | None = None,  # default: the cross entropy of the logits
    after_epoch: Callable[[], None] | None = None,
) -> FittedPrompts:
    """Train prompts on shots."""
    encode, scale = clip.text_encoder(classes), clip.backbone.logit_scale

    def loss_of_batch(batch: Batch) -> Tensor:
        prompts = learner()
        image, text = clip.encode_batch(batch, prompts), encode(prompts)
        features = Features(image, text, scale * image @ text.T)
        return F.cross_entropy(features.logits, batch.labels) if loss is None else loss(batch, features)

    train(learner.parameters(), loss_of_batch, shots, recipe, seed, after_epoch)
    return FittedPrompts(clip, detached(learner()))


def detached(prompts: Prompts) -> Prompts:
    """Return a copy of prompts without gradients."""
    return Prompts(*(tuple(each.detach().clone() for each in tower) for tower in prompts))


def deep_prompts(clip: PromptableCLIP, text_depth: int, vision_depth: int, vision_tokens: int, seed: int) -> Learner:
    """Return prompts of their own for the first layers of one or both encoders.

    The first text prompts start as the context says, and number as many; all others start from N(0, 0.02).
    """
    if vision_depth and vision_tokens < 1:
        raise ValueError(f"vision_tokens={vision_tokens} must be at least 1.")
    text_width, vision_width = clip.widths
    with seeded(seed):
        text: list[Tensor] = []
        if clip.context is not None:
            text.append(clip.context.initial(clip.tokenizer, clip.model))
            text += [random_prompts(len(text[0]), text_width) for _ in range(text_depth - 1)]
        vision = [random_prompts(vision_tokens, vision_width) for _ in range(vision_depth)]
    return Learner(Prompts(tuple(text), tuple(vision)), clip.like)


def prompts_of_both(clip: PromptableCLIP, depth: int | None, published: int, vision_tokens: int, seed: int) -> Learner:
    """Return [`deep_prompts`] for both encoders, in as many layers of each as [`depth_in`] says."""
    text_depth, vision_depth = (
        depth_in(layers, depth, published) for layers in (clip.text_layers, clip.vision_layers)
    )
    return deep_prompts(clip, text_depth, vision_depth, vision_tokens, seed)
