"""Features of the frozen CLIP and the numerics that all features share."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPModel

from .classes import ClassSet, tokenize
from .config import ANPromptConfig
from .layer import PromptContext
from .noise import class_means, normalize, perturbed_features

TEXT_CHUNK = 256


@torch.no_grad()
def frozen_text_features(clip: CLIPModel, input_ids: Tensor) -> Tensor:
    """Return the frozen CLIP's normalised text features `[n, d]`, at least float32.

    Args:
        clip (`CLIPModel`): with or without adapters.
        input_ids (`Tensor`): int64 `[n, L]`.
    """
    training = clip.training
    clip.eval()
    frozen = {"prompt_context": PromptContext(enabled=False)}
    try:
        rows = [
            clip.get_text_features(input_ids=chunk.to(clip.device), **frozen).pooler_output
            for chunk in input_ids.split(TEXT_CHUNK)
        ]
    finally:
        clip.train(training)
    return normalize(at_least_float32(torch.cat(rows)))


@torch.no_grad()
def text_targets(
    clip: CLIPModel, classes: ClassSet, config: ANPromptConfig, tokenizer: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the method needs from the frozen text encoder.

    Args:
        clip (`CLIPModel`): with or without adapters.
        classes (`ClassSet`): C classes.
        config (`ANPromptConfig`): names the noise.
        tokenizer: of the backbone.

    Returns:
        `tuple[Tensor, Tensor, Tensor]`: the clean features w `[C, d]`, the perturbed ones u `[C, d]` (the normalised
        mean over a class's draws), and all draws `[M, d]`.
    """
    names, templates = list(classes.names), list(classes.templates)
    clean = ensemble(frozen_text_features(clip, classes.input_ids), len(templates))

    def encode(texts: list[str], truncate: bool) -> Tensor:
        return frozen_text_features(clip, tokenize(texts, tokenizer, clip.config, truncate))

    draws, owners = perturbed_features(names, templates, clean, encode, config)
    return clean, class_means(draws, owners, len(names)), draws


def ensemble(features: Tensor, num_templates: int) -> Tensor:
    """Return per class the normalised mean `[C, d]` of its templates' normalised features `[C * T, d]`."""
    if num_templates == 1:
        return features
    return normalize(features.unflatten(0, (-1, num_templates)).mean(dim=1))


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or as it is in float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a context without autocast on the tensor's device: logits and losses are computed in full precision."""
    return torch.autocast(tensor.device.type, enabled=False)
