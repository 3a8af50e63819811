"""The features of images and texts with prompts in, as a plan says: by CLIP's own forward, or with layers decomposed.

Shapes: B images, n texts, L positions, p prompts; d_v, d_t and d are the widths of the encoders and the joint one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer as Layer

from ..method.config import ANPromptConfig
from ..method.families import embed_images, family_of, image_entry, image_head, project_images, project_texts
from ..method.features import Pass
from ..method.layer import ANPromptLayer
from .blocks import Changes, NewPrompts, QueriesKeysValues, is_hooked, queries_keys_values, run_whole
from .plan import Plan, Texts
from .text import TextPrefix, run_text
from .vision import run_vision


class ImageFeatures(NamedTuple):
    """Image features `[B, d]` with prompts in, those prompts' output `[B, p, d_v]`, and CLIP's own; not normalised."""

    features: Tensor
    prompts: Tensor | None
    frozen: Tensor | None


def encode_images(clip: PreTrainedModel, plan: Plan, pixel_values: Tensor, interpolate: bool) -> ImageFeatures:
    """Return the features of images `[B, 3, H, W]`, the frozen ones only if the plan needs them."""
    if not plan.decomposed:
        return _encode_whole_images(clip, plan, pixel_values, interpolate)
    layers = _prompted(clip, "vision", plan.config)
    blocks = [block(layer) for layer in layers]
    updates = [layer.attention_updates(plan.adapter) for layer in layers]
    frozen = of_hidden = None
    if plan.image_work is not None:
        hidden, frozen = plan.image_work
    else:
        hidden = image_prefix(clip, plan, pixel_values, interpolate)  # B, L, d_v
        if plan.with_frozen:
            shares = len(blocks) > 1 and len(updates[0]) == 0
            of_hidden = queries_keys_values(blocks[0], hidden, ()) if shares else None
            frozen = frozen_image_features(clip, plan, hidden, of_hidden)  # B, d
    prompts = _prompts(layers, plan, hidden.dtype)
    pooled = pooled_positions(clip, hidden)
    output, prompts_out = run_vision(blocks, hidden, pooled, prompts, updates, plan.config.prompt_mixing, of_hidden)
    there = prompts_out if plan.config.num_prompts else None
    return ImageFeatures(project_images(clip, output), there, frozen)  # B, d; B, p, d_v; B, d


def image_prefix(clip: PreTrainedModel, plan: Plan, pixel_values: Tensor, interpolate: bool) -> Tensor:
    """Return images as they enter the first layer with prompts, `[B, L, d_v]`."""
    before = [block(layer) for layer in _before(clip, "vision", plan.config)]
    with gradients_if(pixel_values, *weights_of(*image_entry(clip), *before)):
        hidden = embed_images(clip, pixel_values, interpolate)
        for layer in before:
            hidden = run_whole(layer, hidden, causal=False)
    return hidden


@torch.no_grad()
def frozen_image_features(
    clip: PreTrainedModel, plan: Plan, hidden: Tensor, of_hidden: QueriesKeysValues | None = None
) -> Tensor:
    """Return CLIP's own features `[B, d]` of what [`image_prefix`] gave."""
    blocks = [block(layer) for layer in _prompted(clip, "vision", plan.config)]
    count, pooled = len(blocks), pooled_positions(clip, hidden)
    output, _ = run_vision(blocks, hidden, pooled, [None] * count, [()] * count, 1.0, of_hidden)
    return project_images(clip, output)


def pooled_positions(clip: PreTrainedModel, hidden: Tensor) -> int:
    """Return how many of the L positions of images `[B, L, d_v]`, from the first on, their features are pooled of."""
    return hidden.shape[1] if family_of(clip).pools_images else 1


def text_prefix_states(clip: PreTrainedModel, plan: Plan, input_ids: Tensor, size: int | None) -> Tensor:
    """Return texts `[n, L]` as they enter the first layer with prompts, `[n, L, d_t]`, `size` computed at a time."""
    embeddings, before = clip.text_model.embeddings, _before(clip, "text", plan.config)
    updates = [layer.denoising(plan.adapter) if isinstance(layer, ANPromptLayer) else () for layer in before]

    def run(ids: Tensor) -> Tensor:
        hidden = embeddings(input_ids=ids)
        for layer, own in zip(before, updates, strict=True):
            hidden = run_whole(block(layer), hidden, family_of(clip).causal, own)
        return hidden

    with gradients_if(*weights_of(embeddings, *map(block, before))):
        return torch.cat([run(ids) for ids in input_ids.split(size or len(input_ids))])


def encode_texts(clip: PreTrainedModel, plan: Plan, texts: Texts) -> Tensor:
    """Return the features of texts `[n, d]` with prompts in, not normalised."""
    if texts.input_ids is not None:
        return clip.get_text_features(input_ids=texts.input_ids, prompt_context=plan.options()).pooler_output
    rows = [_encode_prefix(clip, plan, prefix, texts.chunked) for prefix in texts.prefixes]
    return torch.stack(rows, dim=1).flatten(0, 1)  # T of [n/T, d] -> n, d


def text_prefix_weights(clip: PreTrainedModel, plan: Plan) -> list[Tensor]:
    """Return the weights that [`text_prefix_states`] depend on."""
    frozen = weights_of(clip.text_model.embeddings, *map(block, _before(clip, "text", plan.config)))
    return [*frozen, *denoiser_of(clip, plan.adapter)]


def denoiser_of(clip: PreTrainedModel, adapter: str) -> tuple[Tensor, ...]:
    """Return the tensors of an adapter's denoiser, if it has one."""
    return image_head(clip).denoiser(adapter) or ()


def runs_decomposed(clip: PreTrainedModel, config: ANPromptConfig) -> bool:
    """Whether a pass with prompts can run with the layers decomposed, without dropout, hooks and offloading."""
    dropout = clip.config.text_config.attention_dropout or clip.config.vision_config.attention_dropout
    return (
        config.trains
        and not (clip.training and dropout)
        and not hasattr(clip, "hf_device_map")
        and not any(_is_hooked(tower) for tower in (clip.text_model, clip.vision_model))
    )


def block(layer: nn.Module) -> Layer:
    """Return CLIP's own layer, in a wrapper or not."""
    return layer.get_base_layer() if isinstance(layer, ANPromptLayer) else layer


def weights_of(*modules: nn.Module) -> list[Tensor]:
    """Return the parameters of modules."""
    return [weight for module in modules for weight in module.parameters()]


def gradients_if(*tensors: Tensor) -> AbstractContextManager[None]:
    """Record gradients only if one of these wants them, whatever hooks for checkpointing say of embeddings."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and any(each.requires_grad for each in tensors))


def _encode_whole_images(clip: PreTrainedModel, plan: Plan, pixel_values: Tensor, interpolate: bool) -> ImageFeatures:
    images: Any = {"pixel_values": pixel_values, "interpolate_pos_encoding": interpolate}
    prompted, frozen = plan.options(), None
    features = clip.get_image_features(prompt_context=prompted, **images).pooler_output  # B, d
    if plan.with_frozen:
        with torch.no_grad():
            frozen = clip.get_image_features(prompt_context=Pass(), **images).pooler_output
    return ImageFeatures(features, prompted.vision_prompts, frozen)


def _encode_prefix(clip: PreTrainedModel, plan: Plan, prefix: TextPrefix, recompute: bool) -> Tensor:
    layers = _prompted(clip, "text", plan.config)
    changes = [
        Changes(partial(layer.update, adapter_name=plan.adapter), layer.attention_updates(plan.adapter))
        for layer in layers
    ]
    prompts = _prompts(layers, plan, prefix.chunks[0].hidden.dtype)
    blocks, family = [block(layer) for layer in layers], family_of(clip)
    output = run_text(blocks, family, prefix, prompts, changes, recompute)  # n, d_t
    return project_texts(clip, output)  # n, d


def _prompts(layers: list[ANPromptLayer], plan: Plan, dtype: torch.dtype) -> NewPrompts:
    return [
        layer.project(plan.adapter).to(dtype) if layer.number in targets else None
        for layer in layers
        for targets in [layer.target_layers(plan.config) if plan.config.num_prompts else []]
    ]


def _before(clip: PreTrainedModel, tower: str, config: ANPromptConfig) -> list[nn.Module]:
    """Return the layers of an encoder before the first whose outputs training may change, in wrappers or not."""
    return _layers(clip, tower)[: config.first_layer(tower) - 1]


def _prompted(clip: PreTrainedModel, tower: str, config: ANPromptConfig) -> list[ANPromptLayer]:
    """Return the layers of an encoder from the first whose outputs training may change."""
    return _layers(clip, tower)[config.first_layer(tower) - 1 :]


def _layers(clip: PreTrainedModel, tower: str) -> list[Any]:
    return list((clip.text_model if tower == "text" else clip.vision_model).encoder.layers)


def _is_hooked(tower: Any) -> bool:
    """Whether somebody waits for calls of modules that are not called as a whole."""
    wrappers = [layer for layer in tower.encoder.layers if isinstance(layer, ANPromptLayer)]
    blocks = [block(layer) for layer in wrappers]
    return is_hooked(tower, tower.encoder, *wrappers, *blocks, *(each.self_attn for each in blocks))
