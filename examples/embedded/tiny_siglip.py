"""A tiny SigLIP, made of the tiny CLIP: the same layers, read both ways, with heads of its own and the sigmoid loss.

`pretrain_embedded.py --family siglip` trains it. Without the CLIP's layers as a start that would take half an hour.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, processors
from torch import Tensor
from transformers import (
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
)

from tiny import Recipe

SCALE, BIAS = math.log(10), -10.0
"""Where SigLIP's logits start."""
RECIPE = Recipe(steps=400, icons=40, digits=20, letters=4, icon_pool=12_000, character_pool=6_000, learning_rate=1e-3)
"""A quarter of the tiny CLIP's batches, and a sixth of its steps."""


def sigmoid_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Return SigLIP's loss (Zhai et al., 2023, arXiv 2303.15343, algorithm 1): all pairs of equal class are positive.

    Args:
        logits: float [n, n], images along rows, captions along columns, with scale and bias in.
        classes: int64 [n], class of each image and of its caption.
    """
    signs = 2.0 * (classes[:, None] == classes[None, :]) - 1
    return -F.logsigmoid(signs * logits).sum(dim=1).mean()


def siglip_of(clip: CLIPModel) -> SiglipModel:
    """Return a SigLIP that starts from a CLIP's embeddings, layers and last norms; its heads start at random."""
    sizes = {}
    for tower in ("text_config", "vision_config"):
        own = getattr(clip.config, tower)
        names = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
        names += ["vocab_size", "max_position_embeddings"] if tower == "text_config" else ["image_size", "patch_size"]
        sizes[tower] = {name: getattr(own, name) for name in names}
    tokens = {name: getattr(clip.config.text_config, name) for name in ("eos_token_id", "pad_token_id")}
    width = clip.config.vision_config.hidden_size
    text = {**sizes["text_config"], **tokens, "bos_token_id": None, "projection_size": width}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=sizes["vision_config"]))
    weights = clip.state_dict()
    positions = "vision_model.embeddings.position_embedding.weight"
    weights[positions] = weights[positions][1:]  # there is no class token
    own_weights = model.state_dict()
    shared = {name: weight for name, weight in weights.items() if name in own_weights and weight.dim()}
    model.load_state_dict(shared, strict=False)
    with torch.no_grad():
        model.logit_scale.fill_(SCALE)
        model.logit_bias.fill_(BIAS)
    return model


def processor_of(clip: CLIPProcessor) -> SiglipProcessor:
    """Return SigLIP's processor: the same values of pixels, without a crop, and texts without a start token."""
    images, tokenizer = clip.image_processor, clip.tokenizer
    side = {name: images.crop_size[name] for name in ("height", "width")}
    pixels = SiglipImageProcessorPil(size=side, image_mean=images.image_mean, image_std=images.image_std)
    return SiglipProcessor(image_processor=pixels, tokenizer=without_start(tokenizer))


def without_start(tokenizer: CLIPTokenizer) -> PreTrainedTokenizerFast:
    """Return the same tokens, with an end-of-text token behind texts and no token before."""
    end, backend = tokenizer.eos_token, Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=end,
        pad_token=end,
        unk_token=end,
        model_max_length=tokenizer.model_max_length,
    )
