"""Whether a CLIP is the one that an adapter was trained with, by the clean features of the adapter's class texts."""

from __future__ import annotations

import warnings

import torch
from transformers import PreTrainedModel

from ..method.families import image_head
from ..method.features import ensemble, frozen_text_features

TEXTS = 8
SAME, SAME_IF_QUANTISED = 0.99, 0.9
"""Least mean cosine of text features of one and the same CLIP, whatever the precision of its weights."""


def warn_of_another_clip(clip: PreTrainedModel, adapter: str) -> None:
    """Warn if this CLIP does not compute the clean text features, of `TEXTS` texts, that an adapter was saved with."""
    if any(parameter.is_meta for parameter in clip.parameters()):
        return
    head = image_head(clip)
    config = head.configs[adapter]
    templates = len(config.templates)
    classes = max(1, TEXTS // templates)
    texts = head.anprompt_class_ids[adapter][: classes * templates]
    found = ensemble(frozen_text_features(clip, texts, adapter), templates)
    saved = head.anprompt_clean_features[adapter][:classes].to(found)
    cosine = float(torch.cosine_similarity(found, saved).mean())
    if cosine < (SAME_IF_QUANTISED if _is_quantised(clip) else SAME):
        name = config.base_model_name_or_path or "the one that it was trained with"
        warnings.warn(
            f"This CLIP is not the one that the adapter {adapter!r} was trained with, so its answers will be wrong: "
            f"their features of the adapter's class texts have a cosine of {cosine:.2f}, and not 1. Load {name}.",
            stacklevel=6,
        )


def _is_quantised(clip: PreTrainedModel) -> bool:
    return not all(parameter.is_floating_point() for parameter in clip.parameters())
