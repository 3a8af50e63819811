"""The prompted text encoder without the work that changes nothing, for the texts of a class list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer as Layer

from ..method.families import Family
from .blocks import (
    ALL,
    Changes,
    KeysValues,
    NewPrompts,
    attend,
    attend_shared,
    checkpointed,
    finish,
    keys_values,
    queries_keys_values,
    queries_of,
)

PADDED = 2
"""How many times as long as a text another may be whose attention is computed with it, padded."""


@dataclass(frozen=True)
class Bucket:
    """Neighbouring rows whose attention is computed together."""

    rows: slice  # b of the chunk's R rows
    tokens: slice  # t of the chunk's T packed tokens
    length: int  # tokens of the longest row
    padded: Tensor | None  # int64 [t], where the tokens lie among b * length, if rows differ in length
    visible: Tensor | None  # bool [b, 1, 1, length], what a row's end sees, if not all of its row


@dataclass(frozen=True)
class Chunk:
    """Rows that are computed together, as they enter the first layer with prompts."""

    hidden: Tensor  # [R, L, d], or without the prefix that all share, one row's tokens behind the other's, [T, d]
    ends: Tensor  # int64 [R], where each row's end-of-text token lies among the L or the T tokens
    buckets: list[Bucket]  # of all rows of T tokens; none for whole rows


@dataclass(frozen=True)
class TextPrefix:
    """Texts as they enter the first layer with prompts."""

    shared: Tensor | None  # [1, s, d], what all rows begin with, if it is computed once
    chunks: list[Chunk]  # the rest
    order: Tensor | None  # int64 [n], where the texts are among the rows of all chunks, if not in order


def packs(device: torch.device) -> bool:
    """Whether texts are cut and packed: accelerators take longer to launch so many small operations."""
    return device.type == "cpu"


def text_prefix(hidden: Tensor, input_ids: Tensor, ends: Tensor, size: int | None, causal: bool) -> TextPrefix:
    """Cut texts `[n, L, d]` into what all begin with and what each has of its own, or leave them whole.

    Their ids `[n, L]` and the positions of their ends `[n]` lie on the host; `size` is the most rows of a chunk. Only
    causal texts can be cut: in others, all that a text begins with sees what is behind.
    Packed chunks have the same mix of lengths: each then fits where the one before it was, and memory stays whole.
    """
    count, device = len(input_ids), hidden.device
    size = size or count
    if not (causal and packs(device)):
        cut = zip(hidden.split(size), ends.to(device, non_blocking=True).split(size), strict=True)
        return TextPrefix(None, [Chunk(texts, last, []) for texts, last in cut], None)
    shared = _shared_length(input_ids, ends)
    lengths = (ends + 1 - shared).tolist()
    by_length = sorted(range(count), key=lengths.__getitem__)
    turns = -(-count // size)
    parts = [by_length[turn::turns] for turn in range(turns)]
    chunks = [_chunk(rows, lengths, hidden[:, shared:]) for rows in parts]
    return TextPrefix(hidden[:1, :shared], chunks, torch.tensor([*chain(*parts)]).argsort())


def run_text(
    layers: list[Layer],
    family: Family,
    prefix: TextPrefix,
    prompts: NewPrompts,
    changes: list[Changes],
    recompute: bool,
) -> Tensor:
    """Return what leaves the last layer at the ends of texts, `[n, d]`; chunks may be computed again backwards."""
    if prefix.shared is None:
        run: Callable[[Chunk], Tensor] = partial(_run_whole_rows, layers, family, prompts, changes)
    else:
        shared = list(_shared_keys(layers, prefix.shared, prompts, changes))
        run = partial(_run_packed, layers, shared, changes)
    if recompute and torch.is_grad_enabled():
        outputs = [checkpoint(run, chunk, use_reentrant=False) for chunk in prefix.chunks]
    else:
        outputs = [run(chunk) for chunk in prefix.chunks]
    return torch.cat(outputs) if prefix.order is None else torch.cat(outputs)[prefix.order]


def _shared_length(input_ids: Tensor, ends: Tensor) -> int:
    same = (input_ids == input_ids[:1]).all(dim=0).long().cumprod(dim=0).sum()
    return max(1, min(int(same), int(ends.min())))


def _chunk(rows: list[int], lengths: list[int], hidden: Tensor) -> Chunk:
    buckets, packed, packed_ends = [], [], []
    start = token = 0
    for members in _groups(rows, lengths):
        own = torch.tensor([lengths[row] for row in members])  # b
        size, length, count = len(members), int(own.max()), int(own.sum())
        there = torch.arange(length) < own[:, None]  # b, length
        padded, visible = (None, None) if there.all() else (there.flatten().nonzero().flatten(), there[:, None, None])
        buckets.append(Bucket(slice(start, start + size), slice(token, token + count), length, padded, visible))
        packed.append(hidden[torch.tensor(members), :length][there])  # t, d
        packed_ends.append(token + own.cumsum(0) - 1)
        start, token = start + size, token + count
    return Chunk(torch.cat(packed), torch.cat(packed_ends), buckets)


def _groups(rows: list[int], lengths: list[int]) -> Iterator[list[int]]:
    """Yield rows, which are sorted by length, in groups in which the longest is at most twice as long as the first."""
    group: list[int] = []
    for row in rows:
        if group and lengths[row] > PADDED * lengths[group[0]]:
            yield group
            group = []
        group.append(row)
    yield group


def _shared_keys(
    layers: list[Layer], prefix: Tensor, prompts: NewPrompts, changes: list[Changes]
) -> Iterator[KeysValues]:
    """Yield for each layer the keys and values `[1, s + p, h, e]` of all that precedes own tokens."""
    inserted = prefix[:, :0]
    for at, layer in enumerate(layers):
        new = prompts[at]
        inserted = inserted if new is None else new[None]
        count = inserted.shape[1]
        entering, updates = changes[at]
        hidden = entering(torch.cat([prefix[:, :1], inserted, prefix[:, 1:]], dim=1))  # 1, s + p, d
        if at == len(layers) - 1:
            yield keys_values(layer, hidden, updates)
            return
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        unread = prompts[at + 1] is not None
        queried = torch.cat([positions[:1], positions[1 + count :]]) if unread else positions
        queries, keys, values = queries_keys_values(layer, hidden, updates, queried)
        yield keys, values
        mixed = attend(layer, queries, keys, values, queried[:, None] >= positions)  # 1, M, d
        hidden = finish(layer, hidden[:, queried], mixed, updates)
        skipped = 0 if unread else count
        prefix = torch.cat([hidden[:, :1], hidden[:, 1 + skipped :]], dim=1)
        inserted = hidden[:, 1 : 1 + skipped]


def _run_whole_rows(
    layers: list[Layer], family: Family, prompts: NewPrompts, changes: list[Changes], chunk: Chunk
) -> Tensor:
    hidden, count, start = chunk.hidden, 0, family.start
    for at, layer in enumerate(layers):
        new, is_last = prompts[at], at == len(layers) - 1
        if new is not None:
            inserted = new.expand(hidden.shape[0], -1, -1)
            hidden = torch.cat([hidden[:, :start], inserted, hidden[:, start + count :]], dim=1)  # R, L + p, d
            count = new.shape[0]
        step = partial(_run_rows, layer, changes[at], chunk.ends + count if is_last else None, family.causal)
        hidden = checkpointed(layer, changes[at].updates, step, hidden)
    return hidden


def _run_rows(layer: Layer, changes: Changes, ends: Tensor | None, causal: bool, hidden: Tensor) -> Tensor:
    """Return what leaves a layer, `[R, L, d]`, or `[R, d]` at the rows' ends."""
    entering, updates = changes
    hidden = entering(hidden)
    if ends is None:
        mixed = attend(layer, *queries_keys_values(layer, hidden, updates), causal=causal)
        return finish(layer, hidden, mixed, updates)
    queried = hidden[torch.arange(len(hidden), device=hidden.device), ends][:, None]  # R, 1, d
    visible = None
    if causal:
        visible = (torch.arange(hidden.shape[1], device=hidden.device) <= ends[:, None])[:, None, None]  # R, 1, 1, L
    queries = queries_of(layer, queried, updates)
    mixed = attend(layer, queries, *keys_values(layer, hidden, updates), visible)
    return finish(layer, queried, mixed, updates)[:, 0]


def _run_packed(layers: list[Layer], shared: list[KeysValues], changes: list[Changes], chunk: Chunk) -> Tensor:
    hidden = chunk.hidden
    for at, (layer, keys_and_values) in enumerate(zip(layers, shared, strict=True)):
        step = partial(_run_layer, layer, chunk, changes[at], at == len(layers) - 1)
        hidden = checkpointed(layer, changes[at].updates, step, hidden, *keys_and_values)
    return hidden


def _run_layer(
    layer: Layer,
    chunk: Chunk,
    changes: Changes,
    ends_only: bool,
    hidden: Tensor,
    shared_keys: Tensor,
    shared_values: Tensor,
) -> Tensor:
    entering, updates = changes
    hidden, queried = entering(hidden), chunk.ends if ends_only else ALL
    queries, keys, values = queries_keys_values(layer, hidden, updates, queried)  # T, h, e; R, h, e at the ends
    shared = shared_keys, shared_values
    mixed = [_attend_bucket(layer, queries, keys, values, shared, bucket, ends_only) for bucket in chunk.buckets]
    return finish(layer, hidden[queried], torch.cat(mixed), updates)


def _attend_bucket(
    layer: Layer,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    shared: KeysValues,
    bucket: Bucket,
    at_ends: bool,
) -> Tensor:
    keys, values = _in_rows(keys, bucket), _in_rows(values, bucket)  # b, length, h, e
    if at_ends:
        return attend_shared(layer, queries[bucket.rows][:, None], keys, values, shared, bucket.visible).flatten(0, 1)
    mask = torch.ones(bucket.length, bucket.length, dtype=torch.bool, device=keys.device).tril()  # hides padding, too
    mixed = attend_shared(layer, _in_rows(queries, bucket), keys, values, shared, mask).flatten(0, 1)
    return mixed if bucket.padded is None else mixed.index_select(0, bucket.padded)


def _in_rows(tokens: Tensor, bucket: Bucket) -> Tensor:
    """Return a bucket's of all packed tokens `[T, h, e]` in rows `[b, length, h, e]`, shorter ones padded."""
    tokens = tokens[bucket.tokens]
    if bucket.padded is not None:
        size = bucket.rows.stop - bucket.rows.start
        padded = tokens.new_zeros(size * bucket.length, *tokens.shape[1:])
        tokens = padded.index_copy(0, bucket.padded, tokens)
    return tokens.unflatten(0, (-1, bucket.length))
