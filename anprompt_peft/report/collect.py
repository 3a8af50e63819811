"""Reads what a report shows out of an adapted model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import RandomSampler
from tqdm import tqdm

from ..model import adapted_clip
from .data import Geometry, Predictions

ESSENTIALS = (
    "template",
    "num_virtual_tokens",
    "num_noise_tokens",
    "latent_dim",
    "text_layers",
    "vision_layers",
    "noise_source",
    "noise_scale",
    "noise_draws",
    "noise_seed",
    "alpha",
    "similarity_weight",
    "waloss_weight",
    "projection_rank",
    "prototype_rank",
)


@torch.no_grad()
def predict(
    model: Any,
    batches: Iterable[Mapping[str, Tensor]],
    name: str,
    image: Callable[[int], Image.Image] | None = None,
    sources: Sequence[str] | None = None,
) -> Predictions:
    """Classify labelled images among the model's current classes.

    Inside `with model.disable_adapter():` it is the zero-shot CLIP that answers.

    Args:
        model (`PeftModel` or `ANPromptCLIPModel`): left in the mode, training or evaluation, it is found in.
        batches (`Iterable`): a `DataLoader` that does not shuffle, or any batches with `pixel_values` `[B, 3, H, W]`
            and `labels`, int64 `[B]`.
        name (`str`): what the images are: `"base"`, `"new"`, `"test"`.
        image (`Callable[[int], Image]`, *optional*): gives the image of row i, `lambda row: dataset[row]["image"]`.
        sources (`Sequence[str]`, *optional*): their file names.

    Raises:
        TypeError: if the model carries no ANPrompt adapter.
        ValueError: if the loader shuffles, or there are no images.
    """
    clip = adapted_clip(model)
    if isinstance(getattr(batches, "sampler", None), RandomSampler):
        raise ValueError("The loader shuffles, so rows would not match their images. Build it with shuffle=False.")
    training = model.training
    model.eval()
    labels, logits = [], []
    try:
        for batch in tqdm(batches, desc=f"predicting {name}", unit="batch"):
            labels.append(batch["labels"].cpu())
            logits.append(model(pixel_values=batch["pixel_values"].to(clip.device)).logits.cpu())
    finally:
        model.train(training)
    if not logits:
        raise ValueError(f"There are no images in the batches of {name!r}.")
    probabilities = torch.cat(logits).softmax(dim=-1)
    return Predictions(
        name,
        clip.class_names,
        torch.cat(labels).numpy(),
        probabilities.argmax(dim=-1).numpy(),
        probabilities.numpy(),
        image,
        sources,
    )


@torch.no_grad()
def read_geometry(model: Any) -> Geometry:
    """Read where the active adapter's own classes, and its noise prompts, lie in CLIP's joint space.

    Noise prompts that were mapped into another latent space have no place there and are left out; the note says so.

    Args:
        model (`PeftModel` or `ANPromptCLIPModel`): with an active adapter.

    Raises:
        TypeError: if the model carries no ANPrompt adapter.
        ValueError: if no adapter is active, or its noise prompts were neither computed nor loaded.
    """
    clip = adapted_clip(model)
    head = clip.visual_projection
    classes = clip._trained_classes()
    clean, perturbed = classes.targets[head.adapter]
    noise, note = head.anprompt_noise_prompts[head.adapter], ""
    if noise.shape[-1] != clean.shape[-1]:
        note = (
            f"The {len(noise)} noise prompts live in a latent space of {noise.shape[-1]} dimensions and not in CLIP's "
            f"joint space of {clean.shape[-1]}, so they are not shown."
        )
    return Geometry(
        classes.names,
        clean=_array(clean),
        prompted=_array(clip._text_embeds(classes)),
        perturbed=_array(perturbed),
        noise_prompts=None if note else _array(noise),
        note=note,
    )


def describe_adapter(model: Any) -> dict[str, Any]:
    """Return what the active adapter is: base model, classes, size, and the settings that shape it.

    Args:
        model (`PeftModel` or `ANPromptCLIPModel`): with an active adapter.

    Raises:
        TypeError: if the model carries no ANPrompt adapter.
        ValueError: if no adapter is active.
    """
    clip = adapted_clip(model)
    config, adapter = clip._active_config(), clip.visual_projection.adapter
    own = re.compile(rf"\.anprompt_\w+\.{re.escape(adapter)}(\.|$)")
    size = sum(weight.numel() for name, weight in clip.named_parameters() if own.search(name))
    return {
        "base model": config.base_model_name_or_path or clip.name_or_path,
        "classes": config.class_names,
        "adapter parameters": f"{size:,}",
        **{name: getattr(config, name) for name in ESSENTIALS},
    }


def _array(features: Tensor) -> np.ndarray:
    return features.double().cpu().numpy()
