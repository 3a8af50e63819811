"""CLIP's encoders with learnable tokens among their inputs, layer by layer.

Shapes: C classes, R texts of L tokens, m images, n learnable tokens, widths d_t and d_v, joint dimension d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import CLIPModel

from ...method.class_texts import end_of_text_positions
from ...method.features import at_least_float32, normalize
from .training import in_chunks

WORDS = "a photo of a"
INITIAL_STD = 0.02
TEXT_CHUNK = 128
END_TOKENS = 2


class Prompts(NamedTuple):
    """Learnable tokens per layer, from the first: those of layer 1 come in, those of later layers replace them.

    Attributes:
        text (`tuple[Tensor, ...]`): each `[n, d_t]`, behind the start token, or `[R, n, d_t]` with texts' own.
        vision (`tuple[Tensor, ...]`): each `[n, d_v]`, behind the last patch.
    """

    text: tuple[Tensor, ...] = ()
    vision: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Context:
    """How class texts begin: with n learnable tokens. A text is `{words} {name}.`, whatever the task's templates."""

    words: str  # their first n tokens are where the learnable ones start; empty: these start at random
    tokens: int | None = None  # n; default: all tokens of the words

    def count(self, tokenizer: Any) -> int:
        """Return n, which is positive, and at most the number of the words' tokens."""
        given = self._given(tokenizer)
        count = given if self.tokens is None else self.tokens
        if count < 1 or (given and count > given):
            limit = f"between 1 and {given}, the number of tokens of words={self.words!r}" if given else "at least 1"
            raise ValueError(f"tokens={self.tokens} must be {limit}; words='' starts any number at random.")
        return count

    def ids(self, names: Sequence[str], tokenizer: Any, clip: CLIPModel) -> Tensor:
        """Return the texts of C class names, int64 `[C, L]`; what stands at positions 1 to n is to be replaced.

        Texts that are too long are cut before their end-of-text token, as everywhere in this harness.
        """
        places, count = clip.config.text_config.max_position_embeddings, self.count(tokenizer)
        given = self._given(tokenizer)
        if max(given, count) + END_TOKENS >= places:
            raise ValueError(
                f"a context of {max(given, count)} tokens leaves no room for a class name in the {places} positions "
                "of CLIP's text encoder: use fewer tokens."
            )
        rows = [tokenizer(f"{self.words} {name}.".strip(), verbose=False)["input_ids"] for name in names]
        if not given:
            rows = [[*row[:1] * (1 + count), *row[1:]] for row in rows]
        rows = [row if len(row) <= places else [*row[: places - 1], row[-1]] for row in rows]
        length = max(map(len, rows))
        return torch.tensor([row + row[-1:] * (length - len(row)) for row in rows], device=clip.device)

    def initial(self, tokenizer: Any, clip: CLIPModel) -> Tensor:
        """Return the first values of the learnable tokens, `[n, d_t]`, drawn from torch's random numbers if at all."""
        count, embedding = self.count(tokenizer), clip.text_model.embeddings.token_embedding
        if not self.words:
            return random_prompts(count, embedding.embedding_dim)
        ids = torch.tensor(tokenizer(self.words)["input_ids"], device=clip.device)
        return embedding(ids[1 : 1 + count]).detach()

    def _given(self, tokenizer: Any) -> int:
        return len(tokenizer(self.words)["input_ids"]) - END_TOKENS


def random_prompts(count: int, width: int) -> Tensor:
    """Draw `[count, width]` from N(0, 0.02) with torch's random numbers."""
    return torch.randn(count, width) * INITIAL_STD


def depth_in(layers: nn.ModuleList, asked: int | None, published: int) -> int:
    """Return in how many layers, from the first, prompts come in: by default the published number, or all of fewer."""
    if asked is None:
        return min(published, len(layers))
    if not 1 <= asked <= len(layers):
        raise ValueError(
            f"depth={asked} must lie between 1 and the {len(layers)} layers of this CLIP's encoder. None takes "
            f"{published}, or all layers where there are fewer."
        )
    return asked


def encode_texts(clip: CLIPModel, ids: Tensor, prompts: Sequence[Tensor], chunk: int = TEXT_CHUNK) -> Tensor:
    """Return normalised features `[R, d]` of texts `[R, L]` with prompts in, at least float32, so many at a time."""

    def encode(rows: Tensor) -> Tensor:
        return _encode_texts(clip, ids[rows], [each[rows] if each.dim() == 3 else each for each in prompts])

    return in_chunks(encode, torch.arange(len(ids), device=ids.device), chunk)


def _encode_texts(clip: Any, ids: Tensor, prompts: Sequence[Tensor]) -> Tensor:
    text, layers = clip.text_model, clip.text_model.encoder.layers
    hidden = _behind_start(text.embeddings.token_embedding(ids), prompts[0])
    hidden = text.embeddings(inputs_embeds=hidden)  # adds the positions
    mask = None
    if text.config._attn_implementation == "eager":  # the others are told by is_causal
        mask = hidden.new_full((hidden.shape[1],) * 2, torch.finfo(hidden.dtype).min).triu(1)[None, None]
    for number, layer in enumerate(layers):
        if 0 < number < len(prompts):
            hidden = _behind_start(hidden, prompts[number])
        hidden = layer(hidden, mask, is_causal=True)
    ends = end_of_text_positions(ids, clip.config)
    pooled = text.final_layer_norm(hidden[torch.arange(len(ids), device=ids.device), ends])
    return normalize(at_least_float32(clip.text_projection(pooled)))


def _behind_start(hidden: Tensor, prompts: Tensor) -> Tensor:
    """Put prompts `[n, d_t]` or `[R, n, d_t]` in the place of what stands at positions 1 to n of `[R, L, d_t]`."""
    prompts = prompts.expand(len(hidden), -1, -1)
    return torch.cat([hidden[:, :1], prompts, hidden[:, 1 + prompts.shape[1] :]], dim=1)


def encode_images(clip: Any, pixels: Tensor, prompts: Sequence[Tensor] = ()) -> Tensor:
    """Return normalised features `[m, d]` of images `[m, 3, H, W]` with prompts in, at least float32.

    The first layer's prompts pass CLIP's first layer norm, as the patches do; those of later layers do not.
    """
    vision = clip.vision_model
    hidden = vision.embeddings(pixels)
    patches = hidden.shape[1]
    for number, layer in enumerate(vision.encoder.layers):
        if number < len(prompts):
            hidden = torch.cat([hidden[:, :patches], prompts[number].expand(len(hidden), -1, -1)], dim=1)
        if number == 0:
            hidden = vision.pre_layrnorm(hidden)
        hidden = layer(hidden, None)
    return normalize(at_least_float32(clip.visual_projection(vision.post_layernorm(hidden[:, 0]))))
