"""Families of dual encoders: one row each with what is particular to it, which all other modules ask.

Common to those of transformers are the encoders `text_model` and `vision_model`, each with a configuration of its own,
`embeddings`, `encoder.layers` and a norm behind them, `final_layer_norm` and `post_layernorm`. Layers have
`layer_norm1`, `self_attn` with four matrices, `layer_norm2` and `mlp`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from types import new_class
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    CLIPForImageClassification,
    CLIPModel,
    CLIPProcessor,
    MetaClip2ForImageClassification,
    MetaClip2Model,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    SiglipForImageClassification,
    SiglipModel,
    SiglipProcessor,
)
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer
from transformers.models.metaclip_2.modeling_metaclip_2 import MetaClip2Attention, MetaClip2EncoderLayer
from transformers.models.siglip.modeling_siglip import SiglipAttention, SiglipEncoderLayer

from .updates import UpdatedAttention


def made_of(mixin: type[Any], own: type[Any], name: str) -> type[Any]:
    """Return a class `name` of a mixin and a class of transformers, an attribute of the mixin's module for pickles."""
    module = sys.modules[mixin.__module__]
    made = new_class(name, (mixin, own), exec_body=lambda body: body.update(__module__=module.__name__))
    setattr(module, name, made)
    return made


@dataclass(frozen=True, eq=False)
class Family:
    """The classes of a family, the names of its parts, and its rules."""

    model: type[PreTrainedModel]
    classifier: type[PreTrainedModel]  # of images alone, which pipelines ask for
    processor: type[ProcessorMixin]
    layer: type[nn.Module]
    attention: type[nn.Module]  # a layer's `self_attn`
    updated_attention: type[nn.Module]  # what it becomes where adapters update its matrices
    image_head: str  # of the model, from images that left the last norm to the joint width; it holds the adapters
    text_head: str
    joint_width: str  # in the configuration
    image_norm: str | None  # of the vision encoder, in front of the layers
    start: int  # positions in front of the prompts: the begin-of-text and the class token
    text_end: Literal["first", "first, or highest", "last"]  # which end-of-text token, or position, texts are read at
    causal: bool  # whether texts are read from left to right
    pads: bool  # whether texts are padded to the context's end and padding is read, and all letters are lower case
    pools_images: bool  # whether the image head takes all positions, and not the class token alone
    biased: bool  # whether logits have a bias
    saves: bool  # whether the savings of `fast/` know its layers
    length: Callable[[Tensor], Tensor]  # of features `[..., d]`, `[..., 1]`, to the last bit as the model computes it


def root_of_squares(features: Tensor) -> Tensor:
    """Return the lengths `[..., 1]` of features `[..., d]`, as CLIP computes them."""
    return features.pow(2).sum(dim=-1, keepdim=True).pow(0.5)


CLIP = Family(
    CLIPModel,
    CLIPForImageClassification,
    CLIPProcessor,
    CLIPEncoderLayer,
    CLIPAttention,
    made_of(UpdatedAttention, CLIPAttention, "UpdatedCLIPAttention"),
    image_head="visual_projection",
    text_head="text_projection",
    joint_width="projection_dim",
    image_norm="pre_layrnorm",
    start=1,
    text_end="first, or highest",
    causal=True,
    pads=False,
    pools_images=False,
    biased=False,
    saves=True,
    length=root_of_squares,
)
METACLIP_2 = replace(
    CLIP,
    model=MetaClip2Model,
    classifier=MetaClip2ForImageClassification,
    layer=MetaClip2EncoderLayer,
    attention=MetaClip2Attention,
    updated_attention=made_of(UpdatedAttention, MetaClip2Attention, "UpdatedMetaClip2Attention"),
    text_end="first",
)
SIGLIP = Family(  # SigLIP 2 at a fixed resolution, too
    SiglipModel,
    SiglipForImageClassification,
    SiglipProcessor,
    SiglipEncoderLayer,
    SiglipAttention,
    made_of(UpdatedAttention, SiglipAttention, "UpdatedSiglipAttention"),
    image_head="vision_model.head",
    text_head="text_model.head",
    joint_width="vision_config.hidden_size",
    image_norm=None,
    start=0,
    text_end="last",
    causal=False,
    pads=True,
    pools_images=True,
    biased=True,
    saves=True,
    length=partial(torch.linalg.vector_norm, dim=-1, keepdim=True),
)
OTHERWISE = {
    "siglip2": " SigLIP 2 is served at a fixed resolution, as google/siglip2-base-patch16-224, a SiglipModel: NaFlex, "
    "whose images have their own aspect ratio, is not."
}
"""What to say of model types that are not served, besides that."""
FAMILIES = {"clip": CLIP, "metaclip_2": METACLIP_2, "siglip": SIGLIP}  # by the model type in the configuration
MODELS = tuple(each.model for each in FAMILIES.values())


def family_of(model: Any) -> Family:
    """Return the row of a model, or of its configuration; raise `ValueError` if there is none."""
    kind = getattr(model, "config", model).model_type
    if kind not in FAMILIES:
        names, more = " and ".join(map(repr, FAMILIES)), OTHERWISE.get(kind, "")
        raise ValueError(f"Models of type {kind!r} are not served, but {names}.{more}")
    return FAMILIES[kind]


def joint_width(config: PreTrainedConfig) -> int:
    """Return the width d of the features that images and texts share."""
    return attrgetter(family_of(config).joint_width)(config)


def reads_highest(config: PreTrainedConfig) -> bool:
    """Whether texts are read at their highest token: by CLIP, where the configuration has 2 as end-of-text token."""
    return family_of(config).text_end == "first, or highest" and config.text_config.eos_token_id == 2


def image_head(model: Any) -> Any:
    """Return the module that maps images to the joint width; in an adapted model it holds the adapters."""
    return attrgetter(family_of(model).image_head)(model)


def text_modules(model: Any) -> tuple[Any, Any]:
    """Return the text encoder, and the module that maps pooled texts to the joint width, which may be within."""
    return model.text_model, attrgetter(family_of(model).text_head)(model)


def image_entry(model: Any) -> tuple[Any, ...]:
    """Return the modules that images pass before the first layer."""
    vision, norm = model.vision_model, family_of(model).image_norm
    return (vision.embeddings,) if norm is None else (vision.embeddings, getattr(vision, norm))


def embed_images(model: Any, pixel_values: Tensor, interpolate: bool) -> Tensor:
    """Return images `[B, 3, H, W]` as they enter the first layer, `[B, L, d_v]`."""
    embeddings, *norms = image_entry(model)
    hidden = embeddings(pixel_values, interpolate_pos_encoding=interpolate)
    return norms[0](hidden) if norms else hidden


def project_images(model: Any, hidden: Tensor) -> Tensor:
    """Return features `[B, d]` of images that left the last layer, `[B, m, d_v]`, at least at the first position."""
    pooled = hidden if family_of(model).pools_images else hidden[:, 0]
    return image_head(model)(model.vision_model.post_layernorm(pooled))


def project_texts(model: Any, pooled: Tensor) -> Tensor:
    """Return features `[n, d]` of texts that left the last layer, `[n, d_t]`."""
    encoder, head = text_modules(model)
    return head(encoder.final_layer_norm(pooled))
