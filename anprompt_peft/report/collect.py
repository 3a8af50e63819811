"""Reads what a report shows out of an adapted model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..publish.card import hyper_parameters
from ..publish.non_finite import own_tensors
from ..tuner import adapted_clip
from .data import Geometry


@torch.no_grad()
def read_geometry(model: Any) -> Geometry:
    """Read where the active adapter's own classes, and its noise prompts, lie in CLIP's joint space.

    Noise prompts that were mapped into another latent space have no place there and are left out; the note says so.

    Args:
        model (`PeftModel` or `AdaptedModel`): with an active adapter.

    Raises:
        TypeError: if the model carries no ANPrompt adapter.
        ValueError: if no adapter is active, or its noise prompts were neither computed nor loaded.
    """
    clip = adapted_clip(model)
    head = clip.head
    classes = clip.trained_classes
    clean = head.anprompt_clean_features[head.adapter]
    perturbed = head.anprompt_perturbed_features[head.adapter]
    noise, note = head.anprompt_noise_prompts[head.adapter], ""
    if noise.shape[-1] != clean.shape[-1]:
        note = (
            f"The {len(noise)} noise prompts live in a latent space of {noise.shape[-1]} dimensions and not in CLIP's "
            f"joint space of {clean.shape[-1]}, so they are not shown."
        )
    return Geometry(
        classes.names,
        clean=_array(clean),
        prompted=_array(clip.text_embeds(classes)),
        perturbed=_array(perturbed),
        noise_prompts=None if note else _array(noise),
        note=note,
    )


def describe_adapter(model: Any) -> dict[str, Any]:
    """Return what the active adapter is: base model, classes, template, size, and hyper-parameters.

    Args:
        model (`PeftModel` or `AdaptedModel`): with an active adapter.

    Raises:
        TypeError: if the model carries no ANPrompt adapter.
        ValueError: if no adapter is active.
    """
    clip = adapted_clip(model)
    config, adapter = clip.active_config, clip.head.adapter
    own = own_tensors(adapter)
    size = sum(weight.numel() for name, weight in clip.named_parameters() if own.search(name))
    return {
        "base model": config.base_model_name_or_path or clip.name_or_path,
        "classes": config.class_names,
        "template": config.template,
        "adapter parameters": f"{size:,}",
        **hyper_parameters(config),
    }


def _array(features: Tensor) -> np.ndarray:
    return features.double().cpu().numpy()
