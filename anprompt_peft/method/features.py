"""Features of the frozen CLIP, and the numerics that all features share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel

TEXT_CHUNK = 256


@dataclass
class PromptContext:
    """What one pass through an encoder is told and tells back; it travels as a keyword argument through the encoder.

    Attributes:
        enabled (`bool`): whether prompts take part. `False` is the frozen CLIP.
        vision_prompts (`Tensor`, *optional*): `[B, n, d_v]`, the prompts as they left the last vision layer.
    """

    enabled: bool = True
    vision_prompts: Tensor | None = None


@torch.no_grad()
def frozen_text_features(clip: CLIPModel, input_ids: Tensor) -> Tensor:
    """Return the frozen CLIP's normalised text features `[n, d]`, at least float32.

    Args:
        clip (`CLIPModel`): with or without adapters.
        input_ids (`Tensor`): int64 `[n, L]`.
    """
    frozen = {"prompt_context": PromptContext(enabled=False)}
    with evaluating(clip):
        rows = [
            clip.get_text_features(input_ids=chunk.to(clip.device, non_blocking=True), **frozen).pooler_output
            for chunk in input_ids.split(TEXT_CHUNK)
        ]
    return normalize(at_least_float32(torch.cat(rows)))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a block; then each of its modules is in the mode it was in before."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


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


def normalize(features: Tensor) -> Tensor:
    """Return `features` divided by their L2 norm over the last dimension, computed as transformers' CLIP does."""
    return features / features.pow(2).sum(dim=-1, keepdim=True).pow(0.5)
