"""Families of dual encoders: one row each with what is particular to it, which all other modules ask.

Common to those of transformers are the encoders `text_model` and `vision_model`, each with `embeddings`,
`encoder.layers` and a configuration of its own. Texts end as [`~class_texts.end_of_text_positions`] says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import CLIPModel, PreTrainedModel
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer

from .updates import UpdatedAttention


@dataclass(frozen=True)
class Family:
    """The classes of a family, and the names of its parts."""

    model: type[PreTrainedModel]
    layer: type[nn.Module]
    attention: type[nn.Module]  # a layer's `self_attn`
    updated_attention: type[nn.Module]  # what it becomes where adapters update its matrices
    image_head: str  # of the model, from the vision encoder's width to the joint one; it holds the adapters
    text_head: str
    image_norms: tuple[str, str]  # of the vision encoder, in front of the layers and behind them
    text_norm: str  # of the text encoder, behind the layers


CLIP = Family(
    CLIPModel,
    CLIPEncoderLayer,
    CLIPAttention,
    UpdatedAttention,
    image_head="visual_projection",
    text_head="text_projection",
    image_norms=("pre_layrnorm", "post_layernorm"),
    text_norm="final_layer_norm",
)
FAMILIES = {"clip": CLIP}  # by the model type in the configuration


def family_of(model: Any) -> Family:
    """Return a model's row."""
    return FAMILIES[model.config.model_type]


def image_head(model: Any) -> Any:
    """Return the module that maps pooled images to the joint width; in an adapted model it holds the adapters."""
    return getattr(model, family_of(model).image_head)


def text_modules(model: Any) -> tuple[nn.Module, nn.Module]:
    """Return the text encoder, and the module that maps pooled texts to the joint width."""
    return model.text_model, getattr(model, family_of(model).text_head)


def image_norms(model: Any) -> tuple[Any, Any]:
    """Return the norms in front of the layers of the vision encoder, and behind them."""
    first, last = family_of(model).image_norms
    return getattr(model.vision_model, first), getattr(model.vision_model, last)


def embed_images(model: Any, pixel_values: Tensor, interpolate: bool) -> Tensor:
    """Return images `[B, 3, H, W]` as they enter the first layer, `[B, L, d_v]`."""
    embedded = model.vision_model.embeddings(pixel_values, interpolate_pos_encoding=interpolate)
    return image_norms(model)[0](embedded)


def project_images(model: Any, pooled: Tensor) -> Tensor:
    """Return features `[B, d]` of images that left the last layer, `[B, d_v]`."""
    return image_head(model)(image_norms(model)[1](pooled))


def project_texts(model: Any, pooled: Tensor) -> Tensor:
    """Return features `[n, d]` of texts that left the last layer, `[n, d_t]`."""
    encoder, head = text_modules(model)
    return head(getattr(encoder, family_of(model).text_norm)(pooled))
