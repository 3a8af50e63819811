"""The features of images and texts with prompts in: by CLIP's own forward, or with its layers decomposed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer, CLIPTextModel, CLIPVisionModel

from ..method.class_texts import end_of_text_positions
from ..method.config import ANPromptConfig
from ..method.features import PromptContext
from ..method.layer import ANPromptLayer
from .blocks import NewPrompts, QueriesKeysValues, Updates, is_hooked, queries_keys_values, run_whole
from .fingerprint import Fingerprint, autocast_state
from .image_cache import digest
from .state import head_of, state_of
from .text import TextPrefix, run_text, text_prefix
from .vision import run_vision


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


def image_features(
    clip: CLIPModel, pixel_values: Tensor, interpolate_pos_encoding: bool, with_frozen: bool
) -> ImageFeatures:
    """Return image features with the active adapter's prompts in, if it is on.

    Args:
        clip (`CLIPModel`): the adapted model.
        pixel_values (`Tensor`): `[B, 3, H, W]`.
        interpolate_pos_encoding (`bool`): allow other image sizes.
        with_frozen (`bool`): whether the frozen features are wanted.
    """
    if runs_decomposed(clip):
        return _encode_images(clip, pixel_values, with_frozen, interpolate_pos_encoding)
    images: Any = {"pixel_values": pixel_values, "interpolate_pos_encoding": interpolate_pos_encoding}
    context = PromptContext()
    features = clip.get_image_features(prompt_context=context, **images).pooler_output
    frozen = None
    if with_frozen:
        with torch.no_grad():
            frozen = clip.get_image_features(prompt_context=PromptContext(enabled=False), **images).pooler_output
    return ImageFeatures(features, context.vision_prompts, frozen)


def text_features(clip: CLIPModel, input_ids: Tensor, source: Tensor | None, templates: int = 1) -> Tensor:
    """Return text features `[n, d]` with the active adapter's prompts in, if it is on, not normalised.

    Args:
        clip (`CLIPModel`): the adapted model.
        input_ids (`Tensor`): int64 `[n, L]`, on any device; what is planned with them is planned on the host.
        source (`Tensor`, *optional*): token ids that stay the same object for as long as the texts are the same;
            without it no work is kept for the next call.
        templates (`int`): number T of templates, whose texts take turns.
    """
    if not state_of(clip).savings.decomposed:
        missing = clip.config.text_config.max_position_embeddings - input_ids.shape[1]
        input_ids = torch.cat([input_ids, input_ids[:, -1:].expand(-1, missing)], dim=1)
    if not runs_decomposed(clip):
        return clip.get_text_features(input_ids=input_ids.to(clip.device)).pooler_output
    if source is None:
        prefixes = _text_prefixes(clip, input_ids, templates)
    else:
        prefixes = _kept_prefixes(clip, input_ids, source, templates)
    rows = [_encode_texts(clip, prefix) for prefix in prefixes]
    return torch.stack(rows, dim=1).flatten(0, 1)  # T of [n/T, d] -> n, d


def runs_decomposed(clip: CLIPModel) -> bool:
    """Whether a pass runs with the layers decomposed, as the savings ask, or by CLIP's own forward."""
    state, config = state_of(clip), head_of(clip).active_config
    dropout = clip.config.text_config.attention_dropout or clip.config.vision_config.attention_dropout
    return (
        state.decomposes
        and state.savings.decomposed
        and config is not None
        and config.num_prompts > 0
        and not (clip.training and dropout)
        and not hasattr(clip, "hf_device_map")
        and not any(_is_hooked(clip, tower) for tower in ("text", "vision"))
    )


def _encode_images(
    clip: CLIPModel, pixel_values: Tensor, with_frozen: bool, interpolate_pos_encoding: bool = False
) -> ImageFeatures:
    tower, state, mixing = clip.vision_model, state_of(clip), _config(clip).prompt_mixing
    before, prompted = _split(clip, "vision")
    blocks = [layer.get_base_layer() for layer in prompted]

    def run_prefix(pixels: Tensor) -> Tensor:  # B, 3, H, W -> B, L, d_v
        with _gradients_if(pixels, *_weights(tower.embeddings, tower.pre_layrnorm, *before)):
            hidden = tower.pre_layrnorm(tower.embeddings(pixels, interpolate_pos_encoding=interpolate_pos_encoding))
            for layer in before:
                hidden = run_whole(layer, hidden, causal=False)
        return hidden

    @torch.no_grad()
    def run_frozen(hidden: Tensor, opened: QueriesKeysValues | None = None) -> Tensor:  # B, L, d_v -> B, d
        output, _ = run_vision(blocks, hidden, [None] * len(blocks), 1.0, opened)
        return clip.visual_projection(tower.post_layernorm(output))

    @torch.no_grad()
    def compute(pixels: Tensor) -> dict[str, Tensor]:
        hidden = run_prefix(pixels)
        return {"hidden": hidden, "frozen": run_frozen(hidden)}

    @torch.no_grad()
    def outline(pixels: Tensor) -> dict[str, Tensor]:
        """Return names, shapes and dtypes of what is computed, without a layer."""
        hidden = tower.pre_layrnorm(tower.embeddings(pixels, interpolate_pos_encoding=interpolate_pos_encoding))
        return {"hidden": hidden, "frozen": clip.visual_projection(tower.post_layernorm(hidden[:, 0]))}

    frozen = opened = None
    if with_frozen and state.image_cache is not None:
        depends_on = f"{_frozen_vision_digest(clip)} {len(before)} {interpolate_pos_encoding}"
        kept = state.image_cache.fetch(pixel_values, depends_on, compute, outline)
        hidden, frozen = kept["hidden"], kept["frozen"]
    else:
        hidden = run_prefix(pixel_values)
        if with_frozen:
            opened = queries_keys_values(blocks[0], hidden) if len(blocks) > 1 else None
            frozen = run_frozen(hidden, opened)
    output, prompts = run_vision(blocks, hidden, _prompts(prompted, clip, hidden.dtype), mixing, opened)
    features = clip.visual_projection(tower.post_layernorm(output))  # B, d_v -> B, d
    return ImageFeatures(features, prompts, frozen)


@torch.compiler.disable
def _frozen_vision_digest(clip: CLIPModel) -> str:
    """Return a digest of all that CLIP's image features depend on, besides the images; computed at most once."""
    tower = clip.vision_model
    modules = (tower.embeddings, tower.pre_layrnorm, *map(_block, tower.encoder.layers), tower.post_layernorm)
    weights = _weights(*modules, head_of(clip).base_layer)
    if any(weight.requires_grad for weight in weights):
        raise ValueError(
            "The image cache keeps results of CLIP's frozen vision encoder, and weights of it are trained. Freeze "
            "them (requires_grad_(False)), or call set_image_cache(None)."
        )

    def compute() -> str:
        numerics = f"{torch.__version__} {clip.device.type} {autocast_state(clip.device.type)}"
        return digest(weights, clip.config.vision_config.to_json_string(), numerics)

    return state_of(clip).kept("vision digest", Fingerprint(weights, autocast_state(clip.device.type)), compute)


@torch.compiler.disable
def _kept_prefixes(clip: CLIPModel, input_ids: Tensor, source: Tensor, templates: int) -> list[TextPrefix]:
    """Return the texts of every template as they enter the first layer with prompts; frozen ones are kept."""
    state, before = state_of(clip), _split(clip, "text")[0]
    weights = _weights(clip.text_model.embeddings, *before)
    compute = partial(_text_prefixes, clip, input_ids, templates)
    if any(weight.requires_grad for weight in weights):
        return compute()
    fingerprint = Fingerprint(
        (*weights, source),
        (state.savings, templates, tuple(input_ids.shape), input_ids.storage_offset(), len(before)),
        torch.is_inference_mode_enabled(),
        autocast_state(clip.device.type),
    )

    def are_frozen(prefixes: list[TextPrefix]) -> bool:
        return not any(prefix.chunks[0].hidden.requires_grad for prefix in prefixes)  # as hooks can ask for

    return state.kept("text prefixes", fingerprint, compute, keep_if=are_frozen)


@torch.compiler.disable
def _text_prefixes(clip: CLIPModel, input_ids: Tensor, templates: int) -> list[TextPrefix]:
    before = _split(clip, "text")[0]
    return [_text_prefix(clip, before, input_ids[at::templates]) for at in range(templates)]


def _text_prefix(clip: CLIPModel, before: list[CLIPEncoderLayer], input_ids: Tensor) -> TextPrefix:
    tower, size = clip.text_model, state_of(clip).savings.text_chunk

    def run(ids: Tensor) -> Tensor:  # n, L -> n, L, d_t
        hidden = tower.embeddings(input_ids=ids)
        for layer in before:
            hidden = run_whole(layer, hidden, causal=True)
        return hidden

    with _gradients_if(*_weights(tower.embeddings, *before)):
        asked = input_ids.to(clip.device, non_blocking=True)
        hidden = torch.cat([run(ids) for ids in asked.split(size or len(asked))])
    input_ids = input_ids.cpu()
    return text_prefix(hidden, input_ids, end_of_text_positions(input_ids, clip.config), size)


def _encode_texts(clip: CLIPModel, prefix: TextPrefix) -> Tensor:
    prompted = _split(clip, "text")[1]
    blocks = [layer.get_base_layer() for layer in prompted]
    updates: Updates = [partial(layer.update, adapter_name=head_of(clip).adapter) for layer in prompted]
    prompts = _prompts(prompted, clip, prefix.chunks[0].hidden.dtype)
    output = run_text(blocks, prefix, prompts, updates, recompute=state_of(clip).savings.text_chunk is not None)
    return clip.text_projection(clip.text_model.final_layer_norm(output))  # n, d_t -> n, d


def _is_hooked(clip: CLIPModel, tower: str) -> bool:
    """Whether somebody waits for calls of modules that are not called as a whole."""
    model = _tower(clip, tower)
    wrappers = [layer for layer in model.encoder.layers if isinstance(layer, ANPromptLayer)]
    blocks = [_block(layer) for layer in wrappers]
    return is_hooked(model, model.encoder, *wrappers, *blocks, *(block.self_attn for block in blocks))


def _config(clip: CLIPModel) -> ANPromptConfig:
    config = head_of(clip).active_config
    assert config is not None
    return config


def _tower(clip: CLIPModel, tower: str) -> CLIPTextModel | CLIPVisionModel:
    return clip.text_model if tower == "text" else clip.vision_model


def _split(clip: CLIPModel, tower: str) -> tuple[list[CLIPEncoderLayer], list[ANPromptLayer]]:
    """Return the layers of an encoder before the first that changes, without wrappers, and those from there on."""
    layers, first = list(_tower(clip, tower).encoder.layers), _config(clip).first_layer(tower)
    return [_block(layer) for layer in layers[: first - 1]], layers[first - 1 :]


def _block(layer: nn.Module) -> CLIPEncoderLayer:
    return layer.get_base_layer() if isinstance(layer, ANPromptLayer) else layer


def _weights(*modules: nn.Module) -> list[Tensor]:
    return [weight for module in modules for weight in module.parameters()]


def _gradients_if(*tensors: Tensor) -> AbstractContextManager[None]:
    """Record gradients only if one of these wants them, whatever hooks for checkpointing say of embeddings."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and any(each.requires_grad for each in tensors))


def _prompts(layers: Sequence[ANPromptLayer], clip: CLIPModel, dtype: torch.dtype) -> NewPrompts:
    config, head = _config(clip), head_of(clip)
    return [layer.project(head).to(dtype) if layer.number in layer.target_layers(config) else None for layer in layers]
