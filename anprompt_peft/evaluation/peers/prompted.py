"""CLIP's encoders with learnable tokens among their inputs, layer by layer.

Shapes: C classes, R texts of L tokens, m images, n learnable tokens, widths d_t and d_v, joint dimension d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...method.class_texts import cleaned, end_of_text_positions, tokenize
from ...method.families import family_of, image_entry, project_images, project_texts
from ...method.features import at_least_float32, normalize
from .training import in_chunks

WORDS = "a photo of a"
INITIAL_STD = 0.02
TEXT_CHUNK = 128


class Prompts(NamedTuple):
    """Learnable tokens per layer, from the first: those of layer 1 come in, those of later layers replace them.

    Attributes:
        text (`tuple[Tensor, ...]`): each `[n, d_t]`, or `[R, n, d_t]` with texts' own, behind the start token, if any.
        vision (`tuple[Tensor, ...]`): each `[n, d_v]`, behind the last patch.
    """

    text: tuple[Tensor, ...] = ()
    vision: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Context:
    """How class texts begin: with n learnable tokens. A text is `{words} {name}.`, whatever the task's templates."""

    words: str  # their first n tokens are where the learnable ones start; empty: these start at random
    tokens: int | None = None  # n; default: all tokens of the words

    def count(self, tokenizer: Any, clip: PreTrainedModel) -> int:
        """Return n, which is positive, and at most the number of the words' tokens."""
        given = self._given(tokenizer, clip)
        count = given if self.tokens is None else self.tokens
        if count < 1 or (given and count > given):
            limit = f"between 1 and {given}, the number of tokens of words={self.words!r}" if given else "at least 1"
            raise ValueError(f"tokens={self.tokens} must be {limit}; words='' starts any number at random.")
        return count

    def ids(self, names: Sequence[str], tokenizer: Any, clip: PreTrainedModel) -> Tensor:
        """Return the texts of C class names, int64 `[C, L]`; what stands at n positions from the start is replaced.

        Texts that are too long are cut before their end-of-text token, as everywhere in this harness.
        """
        places, count = clip.config.text_config.max_position_embeddings, self.count(tokenizer, clip)
        given = self._given(tokenizer, clip)
        if max(given, count) + tokenizer.num_special_tokens_to_add() >= places:
            raise ValueError(
                f"a context of {max(given, count)} tokens leaves no room for a class name in the {places} positions "
                "of CLIP's text encoder: use fewer tokens."
            )
        ids = tokenize([f"{self.words} {name}.".strip() for name in names], tokenizer, clip.config, truncate=True)
        if not given:
            start = family_of(clip).start
            ids = torch.cat([ids[:, :start], ids[:, :1].expand(-1, count), ids[:, start:]], dim=1)
        if ids.shape[1] > places:
            ids = torch.cat([ids[:, : places - 1], ids[:, -1:]], dim=1)
        return ids.to(clip.device)

    def initial(self, tokenizer: Any, clip: PreTrainedModel) -> Tensor:
        """Return the first values of the learnable tokens, `[n, d_t]`, drawn from torch's random numbers if at all."""
        count, embedding = self.count(tokenizer, clip), clip.text_model.embeddings.token_embedding
        if not self.words:
            return random_prompts(count, embedding.embedding_dim)
        (ids,), start = tokenize([self.words], tokenizer, clip.config), family_of(clip).start
        return embedding(ids[start : start + count].to(clip.device)).detach()

    def _given(self, tokenizer: Any, clip: PreTrainedModel) -> int:
        return len(tokenizer(cleaned(self.words, clip.config))["input_ids"]) - tokenizer.num_special_tokens_to_add()


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


def encode_texts(clip: PreTrainedModel, ids: Tensor, prompts: Sequence[Tensor], chunk: int = TEXT_CHUNK) -> Tensor:
    """Return normalised features `[R, d]` of texts `[R, L]` with prompts in, at least float32, so many at a time."""

    def encode(rows: Tensor) -> Tensor:
        return _encode_texts(clip, ids[rows], [each[rows] if each.dim() == 3 else each for each in prompts])

    return in_chunks(encode, torch.arange(len(ids), device=ids.device), chunk)


def _encode_texts(clip: Any, ids: Tensor, prompts: Sequence[Tensor]) -> Tensor:
    text, layers, family = clip.text_model, clip.text_model.encoder.layers, family_of(clip)
    hidden = _behind_start(text.embeddings.token_embedding(ids), prompts[0], family.start)
    hidden = text.embeddings(inputs_embeds=hidden)  # adds the positions
    mask, causal = None, {"is_causal": True} if family.causal else {}
    if causal and text.config._attn_implementation == "eager":  # the others are told by is_causal
        mask = hidden.new_full((hidden.shape[1],) * 2, torch.finfo(hidden.dtype).min).triu(1)[None, None]
    for number, layer in enumerate(layers):
        if 0 < number < len(prompts):
            hidden = _behind_start(hidden, prompts[number], family.start)
        hidden = layer(hidden, mask, **causal)
    ends = end_of_text_positions(ids, clip.config)
    pooled = hidden[torch.arange(len(ids), device=ids.device), ends]
    return normalize(at_least_float32(project_texts(clip, pooled)))


def _behind_start(hidden: Tensor, prompts: Tensor, start: int) -> Tensor:
    """Put prompts `[n, d_t]` or `[R, n, d_t]` in the place of n positions of `[R, L, d_t]`, from `start` on."""
    prompts = prompts.expand(len(hidden), -1, -1)
    return torch.cat([hidden[:, :start], prompts, hidden[:, start + prompts.shape[1] :]], dim=1)


def encode_images(clip: Any, pixels: Tensor, prompts: Sequence[Tensor] = ()) -> Tensor:
    """Return normalised features `[m, d]` of images `[m, 3, H, W]` with prompts in, at least float32.

    The first layer's prompts pass CLIP's first layer norm, as the patches do; those of later layers do not. Attention
    that pools images sees no prompts.
    """
    embeddings, *norms = image_entry(clip)
    hidden = embeddings(pixels)
    patches = hidden.shape[1]
    for number, layer in enumerate(clip.vision_model.encoder.layers):
        if number < len(prompts):
            hidden = torch.cat([hidden[:, :patches], prompts[number].expand(len(hidden), -1, -1)], dim=1)
        if number == 0 and norms:
            hidden = norms[0](hidden)
        hidden = layer(hidden, None)
    return normalize(at_least_float32(project_images(clip, hidden[:, :patches])))
