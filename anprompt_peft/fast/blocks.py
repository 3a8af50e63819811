"""The inside of a `CLIPEncoderLayer`, taken apart: which rows ask, which are asked, and which go on.

This is the one module that knows how transformers builds that layer; [`comes_apart`] checks it against the layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import QuickGELUActivation

KeysValues = tuple[Tensor, Tensor]

NewPrompts = list[Tensor | None]
"""For each layer the prompts `[p, d]` that come in there, `None` where those before stay."""

QUICK_GELU_SLOPE = 1.702
ALL = slice(None)
PROBE_SHAPE = (2, 3)
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4}


def keys_values(layer: Any, hidden: Tensor) -> KeysValues:
    """Return what positions offer to attention: keys and values, each `[..., L, heads, d / heads]`.

    Args:
        layer (`CLIPEncoderLayer`): the layer.
        hidden (`Tensor`): `[..., L, d]`, as it enters the layer.
    """
    normed = layer.layer_norm1(hidden)
    return _heads(layer, layer.self_attn.k_proj(normed)), _heads(layer, layer.self_attn.v_proj(normed))


def queries_keys_values(layer: Any, hidden: Tensor, asking: Tensor | slice = ALL) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values of positions `[..., L, d]`, the queries only of the positions `asking`."""
    normed = layer.layer_norm1(hidden)
    attention = layer.self_attn
    return (
        _heads(layer, attention.q_proj(normed[..., asking, :])),
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
    weights = torch.cat([scores_shared, scores_own], dim=-1).softmax(dim=-1).to(values.dtype)
    count = shared_keys.shape[1]
    weights_shared, weights_own = weights[..., :count], weights[..., count:]  # torch.compile gets split() wrong here
    mixed_shared = (weights_shared.transpose(0, 1).flatten(1, 2) @ shared_values).unflatten(1, (batch, rows))
    mixed = mixed_shared.transpose(0, 1) + weights_own @ values.transpose(1, 2)
    return mixed.transpose(1, 2).flatten(2)


def finish(layer: Any, hidden: Tensor, mixed: Tensor, fused_activation: bool) -> Tensor:
    """Return what leaves the layer `[..., d]`: attention's mixture and the MLP added to what entered it.

    Args:
        layer (`CLIPEncoderLayer`): the layer.
        hidden (`Tensor`): `[..., d]`, what entered it.
        mixed (`Tensor`): `[..., d]`, as from [`attend`].
        fused_activation (`bool`): QuickGELU `x * sigmoid(1.702 x)` as the equal `silu(1.702 x) / 1.702`, which is one
            operation between two scalings and keeps one tensor for the backward pass instead of two.
    """
    hidden = hidden + layer.self_attn.out_proj(mixed)
    normed, mlp = layer.layer_norm2(hidden), layer.mlp
    apart = fused_activation and type(mlp.activation_fn) is QuickGELUActivation
    if not apart or is_hooked(mlp, mlp.activation_fn):
        return hidden + mlp(normed)
    inner = mlp.fc1(normed)
    is_mine = type(mlp.fc1) is nn.Linear and not is_hooked(mlp.fc1)
    scaled = inner.mul_(QUICK_GELU_SLOPE) if is_mine else inner * QUICK_GELU_SLOPE
    activated = F.silu(scaled, inplace=not scaled.requires_grad)
    return hidden + mlp.fc2(activated.mul_(1 / QUICK_GELU_SLOPE))


def run_unmasked(layer: Any, hidden: Tensor, fused_activation: bool) -> Tensor:
    """Return what leaves a layer without prompts or mask, `[B, L, d]`; one with hooks is called as a whole."""
    if is_hooked(layer, layer.self_attn):
        return layer(hidden, None)
    mixed = attend(layer, *queries_keys_values(layer, hidden))
    return finish(layer, hidden, mixed, fused_activation)


def is_hooked(*modules: nn.Module) -> bool:
    """Whether somebody waits for calls of one of these modules, FSDP's `fully_shard` for example."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def checkpointed(layer: Any, run: Callable[..., Any], *tensors: Tensor) -> Any:
    """Return `run(*tensors)`, which is computed again in the backward pass if the layer is to be checkpointed."""
    if layer.gradient_checkpointing and layer.training and torch.is_grad_enabled():
        return layer._gradient_checkpointing_func(run, *tensors)
    return run(*tensors)


@torch.no_grad()
def comes_apart(layer: nn.Module) -> bool:
    """Whether the parts above, put together, give what the layer itself gives for random input.

    Up to rounding: with `attn_implementation="eager"` transformers takes the softmax in float32 in any case.
    """
    weight = next(layer.parameters())
    if weight.is_meta:
        return False
    generator = torch.Generator().manual_seed(0)
    probe: Any = layer
    try:
        hidden = torch.randn(*PROBE_SHAPE, probe.embed_dim, generator=generator).to(weight)
        mask = hidden.new_zeros(1, 1, PROBE_SHAPE[1], PROBE_SHAPE[1])
        expected = probe(hidden, mask)
        mixed = checkpointed(probe, lambda: attend(probe, *queries_keys_values(probe, hidden)))
        ours = finish(probe, hidden, mixed, fused_activation=True)
    except (AttributeError, TypeError, RuntimeError, ValueError):
        return False
    tolerance = TOLERANCES.get(weight.dtype, 0.1)
    return ours.shape == expected.shape and torch.allclose(ours, expected, rtol=tolerance, atol=tolerance)


def _heads(layer: Any, projected: Tensor) -> Tensor:
    return projected.unflatten(-1, (layer.self_attn.num_heads, layer.self_attn.head_dim))
