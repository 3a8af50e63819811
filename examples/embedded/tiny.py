"""The tiny CLIP: its recipe, a fresh model, and the loss and schedule of its pre-training."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

IMAGE_SIZE = 32  # pixels
MAX_LOGIT_SCALE = math.log(100)


@dataclass(frozen=True)
class Recipe:
    """Everything that the result depends on besides the seed."""

    steps: int = 2400
    icons: int = 192  # of each batch
    digits: int = 48
    letters: int = 16
    icon_pool: int = 80_000  # images drawn beforehand, which the batches are taken from
    character_pool: int = 24_000
    noise: float = 0.03  # largest standard deviation, drawn for every batch
    typos: float = 0.25  # share of the captions whose name has one typing error
    own_name: float = 0.5  # share of the captions that take the concept's own name in any case
    learning_rate: float = 1.5e-3
    warmup: float = 0.05  # share of the steps
    weight_decay: float = 0.1
    hidden: int = 192
    layers: int = 4
    heads: int = 4
    mlp: int = 384
    projection: int = 128
    patch: int = 8  # pixels
    context: int = 32  # tokens
    merges: int = 2000


def make_image_processor(mean: float, std: float) -> CLIPImageProcessorPil:
    """An image processor for 32 px with the given grey mean and deviation."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[mean] * 3,
        image_std=[std] * 3,
    )


def make_model(recipe: Recipe, tokenizer: CLIPTokenizer) -> CLIPModel:
    """A freshly initialised float32 model, drawn from torch's global random state."""
    width: dict[str, Any] = {
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.mlp,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "projection_dim": recipe.projection,
    }
    text = {
        **width,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": recipe.context,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**width, "image_size": IMAGE_SIZE, "patch_size": recipe.patch}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=recipe.projection))


def deepened(model: CLIPModel, layers: int) -> CLIPModel:
    """Return a CLIP of so many layers in each encoder, a multiple of those of `model`, that answers as `model` does.

    Each layer is followed by copies of itself that add nothing to what they are given: the matrices by which they
    write are 0. They may learn to add something when they are trained.
    """
    config = deepcopy(model.config)
    for tower in (config.text_config, config.vision_config):
        tower.num_hidden_layers = layers
    with torch.random.fork_rng(devices=[]):
        deep = CLIPModel(config)
    times = layers // model.config.text_config.num_hidden_layers
    for old, new in ((model.text_model, deep.text_model), (model.vision_model, deep.vision_model)):
        stack = [deepcopy(layer) for layer in old.encoder.layers for _ in range(times)]
        for at, layer in enumerate(stack):
            for written in (layer.self_attn.out_proj, layer.mlp.fc2) if at % times else ():
                torch.nn.init.zeros_(written.weight)
                torch.nn.init.zeros_(written.bias)
        new.load_state_dict(old.state_dict(), strict=False)
        new.encoder.layers = torch.nn.ModuleList(stack)
    for name in ("visual_projection", "text_projection"):
        getattr(deep, name).load_state_dict(getattr(model, name).state_dict())
    deep.logit_scale.data.copy_(model.logit_scale)
    return deep


def contrastive_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Symmetric cross-entropy in which all pairs of equal class share the target equally.

    Args:
        logits: float [n, n], images along rows, captions along columns.
        classes: int64 [n], class of each image and of its caption.
    """
    positive = (classes[:, None] == classes[None, :]).to(logits.dtype)
    target = positive / positive.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """Linear warm-up to 1, then a cosine to 0."""
    warmup = max(1, round(recipe.steps * recipe.warmup))
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(1, recipe.steps - warmup))) / 2


def parameter_groups(model: CLIPModel, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices only: biases, norms and the logit scale go without."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
