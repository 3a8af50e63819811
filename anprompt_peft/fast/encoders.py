"""The features of images and texts with prompts in: by CLIP's own forward, or with its layers taken apart."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel
from transformers.masking_utils import create_causal_mask

from ..classes import end_of_text_positions
from ..config import ANPromptConfig
from ..fingerprint import Fingerprint, autocast_state
from ..layer import ANPromptLayer, PromptContext
from .blocks import NewPrompts, QueriesKeysValues, comes_apart, is_hooked, queries_keys_values, run_unmasked
from .image_cache import digest
from .text import TextPrefix, run_text, text_prefix
from .vision import run_vision

IMAGES_AT_ONCE = 8


@dataclass
class ImageFeatures:
    """Image features before normalisation.

    Attributes:
        features (`Tensor`): `[B, d]`, of the class token, with prompts in.
        prompts (`Tensor`, *optional*): `[B, p, d_v]`, the prompts as they left the last layer.
        frozen (`Tensor`, *optional*): `[B, d]`, CLIP's own, without prompts and without gradients.
    """

    features: Tensor
    prompts: Tensor | None
    frozen: Tensor | None


def can_be_fast(clip: CLIPModel) -> bool:
    """Whether the layers of both encoders are built as [`blocks`] takes them to be."""
    layers = [tower.encoder.layers[-1] for tower in (clip.text_model, clip.vision_model)]
    return all(comes_apart(layer.get_base_layer()) for layer in layers)


def image_features(clip: Any, images: dict[str, Any], with_frozen: bool) -> ImageFeatures:
    """Return image features with the active adapter's prompts in, if it is on.

    Args:
        clip (`ANPromptCLIPModel`): the model.
        images (`dict`): `pixel_values` `[B, 3, H, W]`, and further arguments of CLIP's vision encoder.
        with_frozen (`bool`): whether the frozen features are wanted.
    """
    further = images.keys() - {"pixel_values", "interpolate_pos_encoding"}
    if not further and comes_apart_now(clip):
        return _encode_images(clip, **images, with_frozen=with_frozen)
    context = PromptContext()
    features = clip.get_image_features(prompt_context=context, **images).pooler_output
    frozen = None
    if with_frozen:
        with torch.no_grad():
            frozen = clip.get_image_features(prompt_context=PromptContext(enabled=False), **images).pooler_output
    return ImageFeatures(features, context.vision_prompts, frozen)


def text_features(clip: Any, input_ids: Tensor, source: Tensor, templates: int = 1) -> Tensor:
    """Return text features `[n, d]` with the active adapter's prompts in, if it is on, not normalised.

    Args:
        clip (`ANPromptCLIPModel`): the model.
        input_ids (`Tensor`): int64 `[n, L]`, on the model's device.
        source (`Tensor`): token ids that stay the same object for as long as the texts are the same.
        templates (`int`): number T of templates, whose texts take turns.
    """
    if not clip.savings.text_end:
        missing = clip.config.text_config.max_position_embeddings - input_ids.shape[1]
        input_ids = torch.cat([input_ids, input_ids[:, -1:].expand(-1, missing)], dim=1)
    if not comes_apart_now(clip):
        return clip.get_text_features(input_ids=input_ids).pooler_output
    rows = [_encode_texts(clip, prefix) for prefix in _kept_prefixes(clip, input_ids, source, templates)]
    return torch.stack(rows, dim=1).flatten(0, 1)


def comes_apart_now(clip: Any) -> bool:
    """Whether the layers are taken apart, as the savings ask, or CLIP's own forward has to run."""
    config = clip.visual_projection.active_config
    dropout = clip.config.text_config.attention_dropout or clip.config.vision_config.attention_dropout
    return (
        clip.savings.takes_layers_apart
        and config is not None
        and config.num_prompts > 0
        and not (clip.training and dropout)
        and not hasattr(clip, "hf_device_map")
        and not any(_is_hooked(tower) for tower in (clip.text_model, clip.vision_model))
        and clip.knows_layers()
    )


def _encode_images(clip: Any, pixel_values: Tensor, with_frozen: bool, **settings: Any) -> ImageFeatures:
    grouped = clip.savings.image_groups and pixel_values.device.type == "cpu"
    groups = pixel_values.split(IMAGES_AT_ONCE) if grouped else (pixel_values,)
    encoded = [_encode_group(clip, group, with_frozen, **settings) for group in groups]
    if len(encoded) == 1:
        return encoded[0]
    features, prompts, frozen = ([getattr(each, field.name) for each in encoded] for field in fields(ImageFeatures))
    return ImageFeatures(
        torch.cat(features),
        None if prompts[0] is None else torch.cat(prompts),
        None if frozen[0] is None else torch.cat(frozen),
    )


def _encode_group(
    clip: Any, pixel_values: Tensor, with_frozen: bool, interpolate_pos_encoding: bool = False
) -> ImageFeatures:
    tower, mixing, savings = clip.vision_model, _config(clip).prompt_mixing, clip.savings
    before, prompted = _split(tower, clip)
    blocks = [layer.get_base_layer() for layer in prompted]

    def run_prefix(pixels: Tensor) -> Tensor:
        with _gradients_if(pixels, *_weights(tower.embeddings, tower.pre_layrnorm, *before)):
            hidden = tower.pre_layrnorm(tower.embeddings(pixels, interpolate_pos_encoding=interpolate_pos_encoding))
            for layer in before:
                hidden = run_unmasked(layer, hidden, savings.activation)
        return hidden

    @torch.no_grad()
    def run_frozen(hidden: Tensor, opened: QueriesKeysValues | None = None) -> Tensor:
        output, _ = run_vision(blocks, hidden, [None] * len(blocks), 1.0, savings, opened)
        return clip.visual_projection(tower.post_layernorm(output))

    @torch.no_grad()
    def compute(pixels: Tensor) -> dict[str, Tensor]:
        hidden = run_prefix(pixels)
        return {"hidden": hidden, "frozen": run_frozen(hidden)}

    frozen = opened = None
    if with_frozen and clip.image_cache is not None:
        depends_on = f"{_frozen_vision_digest(clip)} {len(before)} {interpolate_pos_encoding}"
        kept = clip.image_cache.fetch(pixel_values, depends_on, compute)
        hidden, frozen = kept["hidden"], kept["frozen"]
    else:
        hidden = run_prefix(pixel_values)
        if with_frozen and savings.vision_prefix and len(blocks) > 1:
            opened = queries_keys_values(blocks[0], hidden)
    output, prompts = run_vision(blocks, hidden, _prompts(prompted, clip, hidden.dtype), mixing, savings, opened)
    features = clip.visual_projection(tower.post_layernorm(output))
    if with_frozen and frozen is None:
        with torch.no_grad():
            frozen = run_frozen(hidden if savings.vision_prefix else run_prefix(pixel_values), opened)
    return ImageFeatures(features, prompts, frozen)


@torch.compiler.disable
def _frozen_vision_digest(clip: Any) -> str:
    """Return a digest of all that CLIP's image features depend on, besides the images; computed at most once."""
    tower = clip.vision_model
    modules = (tower.embeddings, tower.pre_layrnorm, *map(_block, tower.encoder.layers), tower.post_layernorm)
    weights = _weights(*modules, clip.visual_projection.base_layer)
    if any(weight.requires_grad for weight in weights):
        raise ValueError(
            "The image cache keeps results of CLIP's frozen vision encoder, and weights of it are trained. Freeze "
            "them (requires_grad_(False)), or call set_image_cache(None)."
        )
    fingerprint = Fingerprint(weights, autocast_state(clip.device.type))
    kept = clip.__dict__.get("_kept_vision_digest")
    if kept is None or kept[0] != fingerprint:
        config = clip.config.vision_config.to_json_string()
        numerics = f"{torch.__version__} {clip.device.type} {autocast_state(clip.device.type)}"
        kept = clip._kept_vision_digest = (fingerprint, digest(weights, config, numerics))
    return kept[1]


@torch.compiler.disable
def _kept_prefixes(clip: Any, input_ids: Tensor, source: Tensor, templates: int) -> list[TextPrefix]:
    """Return the texts of every template as they enter the first layer with prompts, computed at most once."""
    tower, savings = clip.text_model, clip.savings
    before = _split(tower, clip)[0]
    weights = _weights(tower.embeddings, *before)
    fingerprint = Fingerprint(
        (*weights, source),
        (savings, templates, tuple(input_ids.shape), input_ids.storage_offset(), len(before)),
        torch.is_inference_mode_enabled(),
        autocast_state(clip.device.type),
    )
    kept = clip.__dict__.get("_kept_prefixes")
    if kept is None or kept[0] != fingerprint:
        kept = (fingerprint, [_text_prefix(clip, before, input_ids[at::templates]) for at in range(templates)])
        if savings.text_prefix and not any(prefix.opening.requires_grad for prefix in kept[1]):
            clip._kept_prefixes = kept
    return kept[1]


def _text_prefix(clip: Any, before: list[nn.Module], input_ids: Tensor) -> TextPrefix:
    tower, savings = clip.text_model, clip.savings

    def run(ids: Tensor) -> Tensor:
        hidden = tower.embeddings(input_ids=ids)
        mask = create_causal_mask(config=tower.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None)
        for layer in before:
            hidden = layer(hidden, mask, is_causal=True)
        return hidden

    with _gradients_if(*_weights(tower.embeddings, *before)):
        hidden = torch.cat([run(ids) for ids in input_ids.split(savings.text_chunk or len(input_ids))])
    return text_prefix(hidden, input_ids, end_of_text_positions(input_ids, clip.config), savings)


def _encode_texts(clip: Any, prefix: TextPrefix) -> Tensor:
    tower = clip.text_model
    prompted = _split(tower, clip)[1]
    blocks = [layer.get_base_layer() for layer in prompted]
    output = run_text(blocks, prefix, _prompts(prompted, clip, prefix.opening.dtype), clip.savings)
    return clip.text_projection(tower.final_layer_norm(output))


def _is_hooked(tower: Any) -> bool:
    """Whether somebody waits for calls of modules that are not called as a whole."""
    wrappers = [layer for layer in tower.encoder.layers if isinstance(layer, ANPromptLayer)]
    blocks: list[Any] = [layer.get_base_layer() for layer in wrappers]
    return is_hooked(tower, tower.encoder, *wrappers, *blocks, *(block.self_attn for block in blocks))


def _config(clip: Any) -> ANPromptConfig:
    return clip.visual_projection.active_config


def _split(tower: Any, clip: CLIPModel) -> tuple[list[nn.Module], list[ANPromptLayer]]:
    """Return the layers of an encoder before the first with prompts, without wrappers, and those from there on."""
    layers, config = list(tower.encoder.layers), _config(clip)
    first = layers[-1].target_layers(config)[0]
    return [_block(layer) for layer in layers[: first - 1]], layers[first - 1 :]


def _block(layer: Any) -> nn.Module:
    return layer.get_base_layer() if isinstance(layer, ANPromptLayer) else layer


def _weights(*modules: nn.Module) -> list[Tensor]:
    return [weight for module in modules for weight in module.parameters()]


def _gradients_if(*tensors: Tensor) -> AbstractContextManager[Any]:
    """Record gradients only if one of these wants them, whatever hooks for checkpointing say of embeddings."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and any(each.requires_grad for each in tensors))


def _prompts(layers: list[ANPromptLayer], clip: Any, dtype: torch.dtype) -> NewPrompts:
    config, head = _config(clip), clip.visual_projection
    return [layer.project(head).to(dtype) if layer.number in layer.target_layers(config) else None for layer in layers]
