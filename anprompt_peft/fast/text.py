"""The prompted text encoder without the work that changes nothing, for the texts of a class list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from .blocks import (
    ALL,
    KeysValues,
    NewPrompts,
    Updates,
    attend,
    attend_shared,
    checkpointed,
    finish,
    keys_values,
    queries_keys_values,
)
from .savings import Savings


@dataclass(frozen=True)
class Bucket:
    """Neighbouring rows of one length.

    Attributes:
        rows (`slice`): the b of the chunk's R rows.
        tokens (`slice`): the b * length of the chunk's T packed tokens.
        length (`int`): tokens per row.
        visible (`Tensor`, *optional*): bool `[b, 1, 1, length]`, what a row's end sees, if not all of its row.
    """

    rows: slice
    tokens: slice
    length: int
    visible: Tensor | None


@dataclass(frozen=True)
class Chunk:
    """Rows that are computed together, their own tokens packed one behind the other.

    Attributes:
        rows (`Tensor`): int64 `[R]`, their numbers in the class list.
        hidden (`Tensor`): `[T, d]`, their own tokens as they enter the first layer with prompts.
        ends (`Tensor`): int64 `[R]`, where each row's end-of-text token lies among the T tokens.
        buckets (`list[Bucket]`): covers all rows.
    """

    rows: Tensor
    hidden: Tensor
    ends: Tensor
    buckets: list[Bucket]


@dataclass(frozen=True)
class TextPrefix:
    """Texts as they enter the first layer with prompts.

    Attributes:
        opening (`Tensor`): `[1, s, d]` if all rows share it, else `[n, 1, d]`: what stands before the own tokens.
        chunks (`list[Chunk]`): the rest.
    """

    opening: Tensor
    chunks: list[Chunk]


def text_prefix(hidden: Tensor, input_ids: Tensor, ends: Tensor, savings: Savings) -> TextPrefix:
    """Cut texts into what all begin with and what each has of its own.

    All chunks have the same mix of lengths: each then fits where the one before it was, and memory stays whole.

    Args:
        hidden (`Tensor`): `[n, L, d]`, as they enter the first layer with prompts.
        input_ids (`Tensor`): int64 `[n, L]`, on the host.
        ends (`Tensor`): int64 `[n]`, positions of the end-of-text tokens, on the host.
        savings (`Savings`): which work to leave out.
    """
    count, length = input_ids.shape
    opening = _common_opening(input_ids, ends) if savings.text_opening else 1
    own, own_ends = hidden[:, opening:], (ends - opening).tolist()
    own_lengths = [end + 1 for end in own_ends] if savings.ragged_text else [length - opening] * count
    order = sorted(range(count), key=own_lengths.__getitem__)
    parts = -(-count // (savings.text_chunk or count))
    chunks = [_chunk(order[part::parts], own_lengths, own, own_ends) for part in range(parts)]
    return TextPrefix(hidden[:1, :opening] if savings.text_opening else hidden[:, :1], chunks)


def run_text(
    layers: list[CLIPEncoderLayer], prefix: TextPrefix, prompts: NewPrompts, updates: Updates, savings: Savings
) -> Tensor:
    """Return what leaves the last layer at the end-of-text tokens: `[n, d]`.

    Args:
        layers (`list[CLIPEncoderLayer]`): from the first with prompts to the last.
        prefix (`TextPrefix`): n texts.
        prompts (`NewPrompts`): for each of the layers.
        updates (`Updates`): for each of the layers.
        savings (`Savings`): which work to leave out.
    """
    shared = list(_opening_keys(layers, prefix.opening, prompts, updates, savings))
    recompute = savings.text_chunk is not None and torch.is_grad_enabled()
    outputs = []
    for chunk in prefix.chunks:
        mine = shared if prefix.opening.shape[0] == 1 else [(k[chunk.rows], v[chunk.rows]) for k, v in shared]
        if recompute:
            outputs.append(checkpoint(_run_chunk, layers, mine, chunk, updates, savings, use_reentrant=False))
        else:
            outputs.append(_run_chunk(layers, mine, chunk, updates, savings))
    rows = torch.cat([chunk.rows for chunk in prefix.chunks])
    return torch.cat(outputs)[rows.argsort()]


def _common_opening(input_ids: Tensor, ends: Tensor) -> int:
    same = (input_ids == input_ids[:1]).all(dim=0).long().cumprod(dim=0).sum()
    return max(1, min(int(same), int(ends.min())))


def _chunk(rows: list[int], lengths: list[int], hidden: Tensor, ends: list[int]) -> Chunk:
    device = hidden.device
    buckets, packed = [], []
    packed_ends: list[int] = []
    start = token = 0
    for length, group in groupby(rows, key=lengths.__getitem__):
        members = list(group)
        last = [ends[row] for row in members]
        visible = None
        if any(end < length - 1 for end in last):
            visible = torch.arange(length, device=device) <= _sent(last, device)[:, None]  # b, length
            visible = visible[:, None, None]
        size = len(members)
        buckets.append(Bucket(slice(start, start + size), slice(token, token + size * length), length, visible))
        packed.append(hidden[_sent(members, device), :length].flatten(0, 1))  # b * length, d
        packed_ends.extend(token + at * length + end for at, end in enumerate(last))
        start, token = start + size, token + size * length
    return Chunk(_sent(rows, device), torch.cat(packed), _sent(packed_ends, device), buckets)


def _sent(numbers: list[int], device: torch.device) -> Tensor:
    """Return numbers on a device, without waiting for what it is doing."""
    return torch.tensor(numbers).to(device, non_blocking=True)


def _opening_keys(
    layers: list[CLIPEncoderLayer], opening: Tensor, prompts: NewPrompts, updates: Updates, savings: Savings
) -> Iterator[KeysValues]:
    """Yield for each layer the keys and values `[1 or n, s + p, h, e]` of all that precedes own tokens."""
    kept = opening[:, :0]
    for at, layer in enumerate(layers):
        new, is_last = prompts[at], at == len(layers) - 1
        kept = kept if new is None else new.expand(opening.shape[0], -1, -1)
        count = kept.shape[1]
        hidden = updates[at](torch.cat([opening[:, :1], kept, opening[:, 1:]], dim=1))  # 1 or n, s + p, d
        if is_last and savings.last_layer:
            yield keys_values(layer, hidden)
            return
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        unread = savings.prompt_keys and (is_last or prompts[at + 1] is not None)
        asking = torch.cat([positions[:1], positions[1 + count :]]) if unread else positions
        queries, keys, values = queries_keys_values(layer, hidden, asking)
        yield keys, values
        mixed = attend(layer, queries, keys, values, asking[:, None] >= positions)  # 1 or n, M, d
        hidden = finish(layer, hidden[:, asking], mixed, savings.activation)
        skipped = 0 if unread else count
        opening = torch.cat([hidden[:, :1], hidden[:, 1 + skipped :]], dim=1)
        kept = hidden[:, 1 : 1 + skipped]


def _run_chunk(
    layers: list[CLIPEncoderLayer], shared: list[KeysValues], chunk: Chunk, updates: Updates, savings: Savings
) -> Tensor:
    hidden = chunk.hidden
    for at, (layer, opening) in enumerate(zip(layers, shared, strict=True)):
        ends_only = savings.last_layer and at == len(layers) - 1
        step = partial(_run_layer, layer, chunk, updates[at], ends_only, savings.activation)
        hidden = checkpointed(layer, step, hidden, *opening)
    return hidden if savings.last_layer else hidden[chunk.ends]


def _run_layer(
    layer: CLIPEncoderLayer,
    chunk: Chunk,
    update: Callable[[Tensor], Tensor],
    ends_only: bool,
    fused_activation: bool,
    hidden: Tensor,
    opening_keys: Tensor,
    opening_values: Tensor,
) -> Tensor:
    hidden, asking = update(hidden), chunk.ends if ends_only else ALL
    queries, keys, values = queries_keys_values(layer, hidden, asking)  # T, h, e; queries R, h, e at the ends
    opening = opening_keys, opening_values
    mixed = [_attend_bucket(layer, queries, keys, values, opening, bucket, ends_only) for bucket in chunk.buckets]
    return finish(layer, hidden[asking], torch.cat(mixed), fused_activation)


def _attend_bucket(
    layer: CLIPEncoderLayer,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    opening: KeysValues,
    bucket: Bucket,
    at_ends: bool,
) -> Tensor:
    shape = (-1, bucket.length)
    keys, values = (each[bucket.tokens].unflatten(0, shape) for each in (keys, values))  # b, length, h, e
    if at_ends:
        queries, mask = queries[bucket.rows][:, None], bucket.visible  # b, 1, h, e
    else:
        queries = queries[bucket.tokens].unflatten(0, shape)  # b, length, h, e
        mask = torch.ones(bucket.length, bucket.length, dtype=torch.bool, device=keys.device).tril()
    if opening[0].shape[0] == 1:
        return attend_shared(layer, queries, keys, values, opening, mask).flatten(0, 1)
    before = opening[0].shape[1]
    keys, values = (
        torch.cat([each[bucket.rows], own], dim=1) for each, own in zip(opening, (keys, values), strict=True)
    )  # b, s + p + length, h, e
    mask = None if mask is None else F.pad(mask, (before, 0), value=True)
    return attend(layer, queries, keys, values, mask).flatten(0, 1)
