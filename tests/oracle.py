"""An adapted model put in the terms of the plain reference, and the reference's answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPModel

import reference
from anprompt_peft.method.layer import ANPromptHead, ANPromptLayer, LowRank


def reference_adapter(model: Any) -> reference.Adapter:
    """The adapter's tensors in the reference's terms; gradients flow through to the adapter's parameters."""
    head: ANPromptHead = model.head
    config = model.peft_config["default"]
    noise = head.anprompt_noise_prompts["default"]
    if "default" in head.anprompt_noise_map:
        noise = head.anprompt_noise_map["default"](noise)
    maps: dict[str, reference.Maps] = {"text": {}, "vision": {}}
    updates: dict[int, Tensor] = {}
    matrices: reference.Matrices = {}
    for layer in model.modules():
        if isinstance(layer, ANPromptLayer) and "default" in layer.anprompt_lora:
            lora: Any = layer.anprompt_lora["default"]
            for name, down, up in zip(("q_proj", "k_proj", "v_proj", "out_proj"), lora.down, lora.up, strict=True):
                path = f"{layer.tower}_model.encoder.layers.{layer.number - 1}.self_attn.{name}.weight"
                matrices[path] = up @ down / len(down) ** 0.5
        if isinstance(layer, ANPromptLayer) and "default" in layer.anprompt_update:
            update: Any = layer.anprompt_update["default"]
            updates[layer.number] = update.up @ update.down
        if isinstance(layer, ANPromptLayer) and "default" in layer.anprompt_projection:
            projection: Any = layer.anprompt_projection["default"]
            if isinstance(projection, LowRank):
                shared: Any = getattr(head, f"anprompt_{layer.tower}_map")["default"]
                weight, bias = shared.weight + projection.up @ projection.down, shared.bias
            else:
                weight, bias = projection.weight, projection.bias
            maps[layer.tower][layer.number] = (weight, bias)
    linear = isinstance(head.base_layer, nn.Linear)
    prototype: Any = getattr(head.anprompt_prototype, "default", head.base_layer)  # it has none without prompts
    if isinstance(prototype, LowRank):
        update = prototype.up @ prototype.down
        projection = head.base_layer.weight + update if linear else update
    else:
        projection = getattr(prototype, "weight", None)
    return reference.Adapter(
        tokens=head.anprompt_tokens["default"] if "default" in head.anprompt_tokens else noise[:0],
        noise=noise,
        text_maps=maps["text"],
        vision_maps=maps["vision"],
        prototype=projection,
        text_updates=updates,
        matrices=matrices,
        integration=config.noise_integration,
        prompt_mixing=config.prompt_mixing,
        alpha=config.alpha,
        similarity_weight=config.similarity_weight,
        waloss_weight=config.waloss_weight,
    )


def reference_outputs(
    plain: CLIPModel,
    adapter: reference.Adapter,
    pixels: Tensor,
    tokens: Any,
    labels: Tensor,
    perturbed: Tensor,
    templates: int,
) -> dict[str, Tensor]:
    """The reference's outputs; with several templates, with its text features averaged per class."""
    if templates == 1:
        with torch.no_grad():
            clean = reference.normalize(reference.encode_text(plain, tokens.input_ids, None, None))
        return reference.reference_forward(plain, adapter, pixels, tokens.input_ids, None, labels, clean, perturbed)

    def ensemble(rows: Tensor) -> Tensor:
        return reference.normalize(reference.normalize(rows).reshape(-1, templates, rows.shape[-1]).mean(dim=1))

    frozen_text, encode_text = reference.encode_text(plain, tokens.input_ids, None, None), reference.encode_text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "encode_text", lambda *arguments: ensemble(encode_text(*arguments)))
        clean = ensemble(frozen_text).detach()
        return reference.reference_forward(plain, adapter, pixels, tokens.input_ids, None, labels, clean, perturbed)
