"""The vision encoder without the work that changes nothing, with and without prompts."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer as Layer

from ..method.updates import Updates
from .blocks import (
    ALL,
    NewPrompts,
    QueriesKeysValues,
    attend,
    attend_first,
    checkpointed,
    finish,
    queries_keys_values,
)


def run_vision(
    layers: list[Layer],
    hidden: Tensor,  # [B, L, d], images as they enter the first of the layers
    pooled: int,  # how many of the L positions, from the first on, are read behind the last layer
    prompts: NewPrompts,  # all None for CLIP without prompts
    updates: list[Updates],  # of each layer's attention
    mixing: float,  # share of new prompts where they replace others
    of_hidden: QueriesKeysValues | None = None,  # of the first of two or more layers
) -> tuple[Tensor, Tensor]:
    """Return what leaves the last layer at the m pooled positions, `[B, m, d]`, and at the prompts, `[B, p, d]`."""
    inserted = hidden[:, :0]
    for at, layer in enumerate(layers):
        inserted = _insert(prompts[at], inserted, mixing)
        if at == len(layers) - 1:
            step = partial(_run_last, layer, updates[at], pooled)
        else:
            unread = prompts[at + 1] is not None and mixing == 1
            step = partial(_run_layer, layer, updates[at], None if at else of_hidden, unread=unread)
        hidden, inserted = checkpointed(layer, updates[at], step, hidden, inserted)
    return hidden, inserted


def _run_layer(
    layer: Layer,
    updates: Updates,
    of_hidden: QueriesKeysValues | None,
    hidden: Tensor,
    inserted: Tensor,
    unread: bool,
) -> tuple[Tensor, Tensor]:
    """Return what leaves a layer at `hidden`, and at the prompts unless they are unread."""
    queries, keys, values = of_hidden or queries_keys_values(layer, hidden, updates)
    if inserted.shape[1]:
        of_prompts = queries_keys_values(layer, inserted, updates, slice(0, 0) if unread else ALL)
        queries, keys, values = (
            _with_prompts(each, more) for each, more in zip((queries, keys, values), of_prompts, strict=True)
        )  # B, L + p, h, e; queries B, L, h, e if the prompts are unread
    tokens = hidden.shape[1]
    queried = hidden if unread else _with_prompts(hidden, inserted)  # B, L or L + p, d
    hidden = finish(layer, queried, attend(layer, queries, keys, values), updates)
    return hidden[:, :tokens], hidden[:, tokens:]


def _run_last(layer: Layer, updates: Updates, pooled: int, hidden: Tensor, inserted: Tensor) -> tuple[Tensor, Tensor]:
    """Return what leaves a layer at the pooled positions, `[B, m, d]`, and at the prompts."""
    queried = _with_prompts(hidden[:, :pooled], inserted)  # B, m + p, d
    mixed = attend_first(layer, torch.cat([queried, hidden[:, pooled:]], dim=1), queried.shape[1], updates)
    hidden = finish(layer, queried, mixed, updates)
    return hidden[:, :pooled], hidden[:, pooled:]


def _with_prompts(images: Tensor, prompts: Tensor) -> Tensor:
    """Return rows `[B, L, ...]` of images and, behind them, `[1 or B, p, ...]` of prompts."""
    if not prompts.shape[1]:
        return images
    return torch.cat([images, prompts.expand(images.shape[0], *prompts.shape[1:])], dim=1)


def _insert(new: Tensor | None, inserted: Tensor, mixing: float) -> Tensor:
    """Return the prompts of a layer, `[1 or B, p, d]`."""
    if new is None:
        return inserted
    if mixing == 1 or not inserted.shape[1]:
        return new[None]
    return mixing * new + (1 - mixing) * inserted
