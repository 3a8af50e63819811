"""The vision encoder without the work that changes nothing, with and without prompts."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .blocks import ALL, NewPrompts, attend, checkpointed, finish, queries_keys_values
from .savings import Savings


def run_vision(
    layers: list[Any], hidden: Tensor, prompts: NewPrompts, mixing: float, savings: Savings
) -> tuple[Tensor, Tensor]:
    """Return what leaves the last layer at the class token, `[B, d]`, and at the prompts, `[B, p, d]`.

    Args:
        layers (`list[CLIPEncoderLayer]`): from the first with prompts to the last.
        hidden (`Tensor`): `[B, L, d]`, images as they enter the first of them.
        prompts (`NewPrompts`): for each of the layers; all `None` for CLIP without prompts.
        mixing (`float`): share of new prompts where they take the place of others.
        savings (`Savings`): which work to leave out.
    """
    kept = hidden[:, :0]
    for at, layer in enumerate(layers):
        is_last = at == len(layers) - 1
        kept = _come_in(prompts[at], kept, mixing)
        unread = savings.prompt_keys and not is_last and prompts[at + 1] is not None and mixing == 1
        asking = slice(0, 1) if is_last and savings.last_layer else ALL
        step = partial(_run_layer, layer, asking=asking, unread=unread, fused_activation=savings.activation)
        hidden, kept = checkpointed(layer, step, hidden, kept)
    return hidden[:, 0], kept


def _run_layer(
    layer: Any, hidden: Tensor, kept: Tensor, asking: slice, unread: bool, fused_activation: bool
) -> tuple[Tensor, Tensor]:
    """Return what leaves a layer at the positions `asking` of `hidden`, and at the prompts unless they are unread."""
    queries, keys, values = queries_keys_values(layer, hidden, asking)
    asked = hidden[:, asking]
    tokens = asked.shape[1]
    if kept.shape[1]:
        of_prompts = queries_keys_values(layer, kept, slice(0, 0) if unread else ALL)
        queries, keys, values = (
            torch.cat([each, more.expand(hidden.shape[0], -1, -1, -1)], dim=1)
            for each, more in zip((queries, keys, values), of_prompts, strict=True)
        )
    if not unread:
        asked = torch.cat([asked, kept.expand(hidden.shape[0], -1, -1)], dim=1)
    hidden = finish(layer, asked, attend(layer, queries, keys, values), fused_activation)
    return hidden[:, :tokens], hidden[:, tokens:]


def _come_in(new: Tensor | None, kept: Tensor, mixing: float) -> Tensor:
    """Return the prompts of a layer, `[1 or B, p, d]`."""
    if new is None:
        return kept
    if mixing == 1 or not kept.shape[1]:
        return new[None]
    return mixing * new + (1 - mixing) * kept
