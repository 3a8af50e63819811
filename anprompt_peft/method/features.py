"""Features of the frozen CLIP, and the numerics that all features share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .config import ANPromptConfig
from .families import family_of, root_of_squares

TEXT_CHUNK = 256
_LOCK = Lock()
_EVALUATING: WeakKeyDictionary[nn.Module, tuple[int, ExitStack]] = WeakKeyDictionary()


@dataclass
class Pass:
    """Options and outputs of one pass through an encoder; it travels through it as the keyword `prompt_context`.

    Attributes:
        adapter (`str`): the adapter whose denoiser, prompts and updates take part; empty for CLIP as it is.
        config (`ANPromptConfig`, *optional*): its configuration; `None` leaves prompts and updates out.
        vision_prompts (`Tensor`, *optional*): `[B, n, d_v]`, the prompts as they left the last vision layer.
    """

    adapter: str = ""
    config: ANPromptConfig | None = None
    vision_prompts: Tensor | None = None


@torch.no_grad()
def frozen_text_features(clip: PreTrainedModel, input_ids: Tensor, adapter: str = "") -> Tensor:
    """Return the normalised text features `[n, d]` of tokens `[n, L]` by the frozen CLIP, with adapters or without.

    An `adapter` that has a denoiser denoises them.
    """
    frozen = {"prompt_context": Pass(adapter)}
    with evaluating(clip.text_model):
        rows = [
            clip.get_text_features(input_ids=chunk.to(clip.device, non_blocking=True), **frozen).pooler_output
            for chunk in input_ids.split(TEXT_CHUNK)
        ]
    return unit(torch.cat(rows), clip)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a block; where threads overlap, modes come back after the last block."""
    with _LOCK:
        count, modes = _EVALUATING.pop(model, (0, ExitStack()))
        modes.enter_context(_evaluating(model))
        _EVALUATING[model] = count + 1, modes
    try:
        yield
    finally:
        with _LOCK:
            count, modes = _EVALUATING.pop(model)
            if count > 1:
                _EVALUATING[model] = count - 1, modes
            else:
                modes.close()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
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


def unit(features: Tensor, model: Any = None) -> Tensor:
    """Return features `[..., d]` of length 1, at least float32; those of a model to the last bit as it does."""
    features = at_least_float32(features)
    return features / (root_of_squares if model is None else family_of(model).length)(features)


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a context without autocast on the tensor's device: logits and losses are computed in full precision."""
    return torch.autocast(tensor.device.type, enabled=False)


def normalize(features: Tensor) -> Tensor:
    """Return `features` divided by their L2 norm over the last dimension, computed as transformers' CLIP does."""
    return features / root_of_squares(features)
