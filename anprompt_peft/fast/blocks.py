"""The inside of a `CLIPEncoderLayer`, taken apart: which rows ask, which are asked, and which go on.

This is the one module that knows how transformers builds that layer; [`comes_apart`] checks it against the layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KeysValues = tuple[Tensor, Tensor]

NewPrompts = list[Tensor | None]
"""For each layer the prompts `[p, d]` that come in there, `None` where those before stay."""

PROBE_SHAPE = (2, 3)
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}


def keys_values(layer: Any, hidden: Tensor) -> KeysValues:
    """Return what positions offer to attention: keys and values, each `[..., L, heads, d / heads]`.

    Args:
        layer (`CLIPEncoderLayer`): the layer.
        hidden (`Tensor`): `[..., L, d]`, as it enters the layer.
    """
    normed = layer.layer_norm1(hidden)
    return _heads(layer, layer.self_attn.k_proj(normed)), _heads(layer, layer.self_attn.v_proj(normed))


def queries_keys_values(
    layer: Any, hidden: Tensor, asking: Tensor | slice | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values of positions `[..., L, d]`, the queries only of the positions `asking`."""
    normed = layer.layer_norm1(hidden)
    asked = normed if asking is None else normed[..., asking, :]
    attention = layer.self_attn
    return (
        _heads(layer, attention.q_proj(asked)),
        _heads(layer, attention.k_proj(normed)),
        _heads(layer, attention.v_proj(normed)),
    )


def attend(layer: Any, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return attention's mixture `[B, M, d]` of queries `[B, M, heads, d']` over keys and values `[B, L, heads, d']`.

    Args:
        layer (`CLIPEncoderLayer`): the layer.
        queries, keys, values (`Tensor`): as from [`queries_keys_values`].
        mask (`Tensor`, *optional*): bool `[M, L]`, `True` where a query may look.
    """
    mixed = F.scaled_dot_product_attention(
        queries.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=mask,
        scale=layer.self_attn.scale,
    )
    return mixed.transpose(1, 2).flatten(2)


def attend_shared(
    layer: Any, queries: Tensor, keys: Tensor, values: Tensor, shared: KeysValues, mask: Tensor | None
) -> Tensor:
    """Return the mixture `[B, M, d]` over keys that all rows share, in front, and keys of each row's own.

    The shared ones are multiplied once with the queries of all rows and never copied.

    Args:
        layer (`CLIPEncoderLayer`): the layer.
        queries (`Tensor`): `[B, M, heads, d']`.
        keys, values (`Tensor`): `[B, L, heads, d']`.
        shared (`tuple[Tensor, Tensor]`): keys and values `[1, P, heads, d']`, visible to every query.
        mask (`Tensor`, *optional*): bool `[M, L]` for the own ones.
    """
    batch, rows = queries.shape[:2]
    queries = queries.transpose(1, 2) * layer.self_attn.scale
    folded = queries.transpose(0, 1).flatten(1, 2)
    shared_keys, shared_values = (each[0].transpose(0, 1) for each in shared)
    scores_shared = (folded @ shared_keys.mT).unflatten(1, (batch, rows)).transpose(0, 1)
    scores_own = queries @ keys.permute(0, 2, 3, 1)
    if mask is not None:
        scores_own = scores_own.masked_fill(~mask, -torch.inf)
    weights = torch.cat([scores_shared, scores_own], dim=-1).softmax(dim=-1)
    weights = weights.to(values.dtype)
    weights_shared, weights_own = weights.split([scores_shared.shape[-1], scores_own.shape[-1]], dim=-1)
    mixed_shared = (weights_shared.transpose(0, 1).flatten(1, 2) @ shared_values).unflatten(1, (batch, rows))
    mixed = mixed_shared.transpose(0, 1) + weights_own @ values.transpose(1, 2)
    return mixed.transpose(1, 2).flatten(2)


def finish(layer: Any, hidden: Tensor, mixed: Tensor) -> Tensor:
    """Return what leaves the layer `[..., d]`: attention's mixture and the MLP added to what entered it."""
    hidden = hidden + layer.self_attn.out_proj(mixed)
    return hidden + layer.mlp(layer.layer_norm2(hidden))


@torch.no_grad()
def comes_apart(layer: nn.Module) -> bool:
    """Whether the parts above, put together, give what the layer itself gives for random input."""
    weight = next(layer.parameters())
    if weight.is_meta:
        return False
    generator = torch.Generator().manual_seed(0)
    probe: Any = layer
    try:
        hidden = torch.randn(*PROBE_SHAPE, probe.embed_dim, generator=generator).to(weight)
        mask = hidden.new_zeros(1, 1, PROBE_SHAPE[1], PROBE_SHAPE[1])
        expected = probe(hidden, mask)
        ours = finish(probe, hidden, attend(probe, *queries_keys_values(probe, hidden)))
    except (AttributeError, TypeError, RuntimeError, ValueError):
        return False
    tolerance = TOLERANCES.get(weight.dtype, 0.1)
    return ours.shape == expected.shape and torch.allclose(ours, expected, rtol=tolerance, atol=tolerance)


def _heads(layer: Any, projected: Tensor) -> Tensor:
    return projected.unflatten(-1, (layer.self_attn.num_heads, layer.self_attn.head_dim))
