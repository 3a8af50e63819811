"""The inside of a `CLIPEncoderLayer` and its like, decomposed into keys, queries, attention and what follows.

This is the one module that knows how transformers builds that layer; [`decomposes`] checks it against the layer.
Shapes: B rows (images or texts), L positions, M query positions, P shared ones, h heads of width e, d = h * e.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import QuickGELUActivation
from transformers.modeling_layers import GradientCheckpointingLayer as Layer

from ..method.updates import Updates, project, recorded

T = TypeVar("T")
KeysValues = tuple[Tensor, Tensor]
QueriesKeysValues = tuple[Tensor, Tensor, Tensor]

NewPrompts = list[Tensor | None]
"""For each layer the prompts `[p, d]` that come in there, `None` where those before stay."""


class Changes(NamedTuple):
    """What an adapter changes within a layer, besides prompts."""

    entering: Callable[[Tensor], Tensor]  # makes of the hidden states that enter, `[..., d]`, those that take part
    updates: Updates  # of the attention's matrices


QUICK_GELU_SLOPE = 1.702
ALL = slice(None)
PROBE_SHAPE = (2, 3)
PROBE_STD = 0.1
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4}


def keys_values(layer: Layer, hidden: Tensor, updates: Updates) -> KeysValues:
    """Return keys and values, each `[..., L, h, e]`, of what enters the layer, `[..., L, d]`."""
    normed = layer.layer_norm1(hidden)
    return _in_heads(layer, "k_proj", normed, updates), _in_heads(layer, "v_proj", normed, updates)


def queries_keys_values(
    layer: Layer, hidden: Tensor, updates: Updates, queried: Tensor | slice = ALL
) -> QueriesKeysValues:
    """Return queries, keys and values of positions `[..., L, d]`, the queries only of the query positions."""
    normed = layer.layer_norm1(hidden)
    return (
        _in_heads(layer, "q_proj", normed[..., queried, :], updates),
        _in_heads(layer, "k_proj", normed, updates),
        _in_heads(layer, "v_proj", normed, updates),
    )


def queries_of(layer: Layer, hidden: Tensor, updates: Updates) -> Tensor:
    """Return the queries `[..., L, h, e]` of positions `[..., L, d]`."""
    return _in_heads(layer, "q_proj", layer.layer_norm1(hidden), updates)


def attend(
    layer: Layer,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Return attention's mixture `[B, M, d]` of queries `[B, M, h, e]` over keys and values `[B, L, h, e]`.

    The mask is bool `[M, L]`, `True` where a query may look; without one, `causal` hides what is behind a query.
    """
    mixed = F.scaled_dot_product_attention(
        queries.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
        scale=layer.self_attn.scale,
    )  # B, h, M, e
    return mixed.transpose(1, 2).flatten(2)  # B, M, d


def attend_shared(
    layer: Layer,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    shared: KeysValues,
    mask: Tensor | None,
) -> Tensor:
    """Return the mixture `[B, M, d]` over shared keys `[1, P, h, e]`, in front, and each row's own `[B, L, h, e]`.

    The shared ones, visible to every query, are multiplied once with the queries of all rows and never copied. The
    mask, bool `[M, L]`, is that of the own ones.
    """
    batch, rows = queries.shape[:2]
    queries = queries.transpose(1, 2) * layer.self_attn.scale  # B, h, M, e
    folded = queries.transpose(0, 1).flatten(1, 2)  # h, B * M, e
    shared_keys, shared_values = (each[0].transpose(0, 1) for each in shared)  # h, P, e
    scores_shared = (folded @ shared_keys.mT).unflatten(1, (batch, rows)).transpose(0, 1)  # B, h, M, P
    scores_own = queries @ keys.permute(0, 2, 3, 1)  # B, h, M, L
    if mask is not None:
        scores_own = scores_own.masked_fill(~mask, -torch.inf)
    weights = torch.cat([scores_shared, scores_own], dim=-1).softmax(dim=-1).to(values.dtype)  # B, h, M, P + L
    count = shared_keys.shape[1]
    weights_shared, weights_own = weights[..., :count], weights[..., count:]  # torch.compile gets split() wrong here
    folded = weights_shared.transpose(0, 1).flatten(1, 2)  # h, B * M, P
    mixed_shared = (folded @ shared_values).unflatten(1, (batch, rows)).transpose(0, 1)  # B, h, M, e
    mixed = mixed_shared + weights_own @ values.transpose(1, 2)
    return mixed.transpose(1, 2).flatten(2)  # B, M, d


def attend_first(layer: Layer, hidden: Tensor, count: int, updates: Updates) -> Tensor:
    """Return attention's mixture `[B, count, d]` of the first `count` rows over all rows.

    Keys and values of all rows are not formed where queries are so few that this takes fewer operations:
    `q (W_k x + b_k)` is `(q W_k) x` and a number that softmax takes away again, and the mixture of `W_v x + b_v` is
    `W_v` of the mixture of `x`, and `b_v`; updates of both matrices alike.
    """
    attention, length = layer.self_attn, hidden.shape[1]
    heads, width = attention.num_heads, attention.head_dim
    fewer = count * (length + width) < length * width
    if not fewer or not _are_plain(attention.k_proj, attention.v_proj):
        return attend(layer, *queries_keys_values(layer, hidden, updates, slice(0, count)))
    rows = layer.layer_norm1(hidden)
    queries = _in_heads(layer, "q_proj", rows[:, :count], updates) * attention.scale  # B, M, h, e
    key_weight, value_weight = attention.k_proj.weight, attention.v_proj.weight
    by_head = partial(torch.unflatten, dim=0, sizes=(heads, width))  # h * e, ... -> h, e, ...
    folded = torch.einsum("bmhe,hed->bhmd", queries, by_head(key_weight))
    for each in updates:
        down, up = each.of("k_proj", rows.dtype)
        folded = folded + torch.einsum("bmhe,her->bhmr", queries, by_head(up)) @ down
    weights = (folded.flatten(1, 2) @ rows.mT).softmax(dim=-1).to(rows.dtype)  # B, h * M, L
    mixed = (weights @ rows).unflatten(1, (heads, count))  # B, h, M, d
    values = torch.einsum("bhmd,hed->bmhe", mixed, by_head(value_weight))
    for each in updates:
        down, up = each.of("v_proj", rows.dtype)
        values = values + torch.einsum("bhmr,her->bmhe", mixed @ down.t(), by_head(up))
    return values.flatten(2) + attention.v_proj.bias  # B, M, d


def finish(layer: Layer, hidden: Tensor, mixed: Tensor, updates: Updates) -> Tensor:
    """Return what leaves the layer `[..., d]`: attention's mixture and the MLP added to what entered it.

    QuickGELU `x * sigmoid(1.702 x)` is the equal `silu(1.702 x) / 1.702`, whose scalings the products before and after
    it do, and which keeps one tensor for the backward pass, not two.
    """
    hidden = hidden + project(layer.self_attn, "out_proj", mixed, updates)
    normed, mlp = layer.layer_norm2(hidden), layer.mlp
    apart = type(mlp.activation_fn) is QuickGELUActivation
    if not apart or is_hooked(mlp, mlp.activation_fn) or not _are_plain(mlp.fc1, mlp.fc2):
        return hidden + mlp(normed)
    rows = normed.flatten(0, -2)  # B * L, d
    inner = _scaled_linear(mlp.fc1, rows, QUICK_GELU_SLOPE, mlp.fc1.bias * QUICK_GELU_SLOPE)  # B * L, 4 d
    activated = F.silu(inner, inplace=not inner.requires_grad)
    return hidden + _scaled_linear(mlp.fc2, activated, 1 / QUICK_GELU_SLOPE, mlp.fc2.bias).view_as(hidden)


def run_whole(layer: Layer, hidden: Tensor, causal: bool, updates: Updates = ()) -> Tensor:
    """Return what leaves a layer without prompts, `[B, L, d]`; a layer with hooks is called as it is."""
    if is_hooked(layer, layer.self_attn):
        return _call(layer, hidden, causal, updates)
    return _run_parts(layer, hidden, causal, updates)


def is_hooked(*modules: nn.Module) -> bool:
    """Whether somebody waits for calls of one of these modules, FSDP's `fully_shard` for example."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def checkpointed(layer: Layer, updates: Updates, run: Callable[..., T], hidden: Tensor, *tensors: Tensor) -> T:
    """Return `run(hidden, *tensors)`, computed again in the backward pass if the layer is to be checkpointed."""
    if layer.gradient_checkpointing and layer.training and torch.is_grad_enabled():
        return layer._gradient_checkpointing_func(run, recorded(hidden, updates), *tensors)
    return run(hidden, *tensors)


@torch.no_grad()
def decomposes(layer: Layer, ways: Iterable[bool] = (False, True)) -> bool:
    """Whether the parts above, put together, give what the layer itself gives for random input, up to rounding.

    The ways of calling it are those of the family's encoders: causal or not.
    """
    generator = torch.Generator().manual_seed(0)
    if next(layer.parameters()).is_meta:
        layer = deepcopy(layer).to_empty(device="cpu")
        for weight in layer.parameters():
            weight.normal_(std=PROBE_STD, generator=generator)
    weight = next(layer.parameters())
    with torch.device("cpu"):
        hidden = torch.randn(*PROBE_SHAPE, layer.embed_dim, generator=generator).to(weight)
    tolerance = TOLERANCES.get(weight.dtype, 0.1)
    with torch.device(weight.device):
        for causal in ways:
            try:
                expected = _call(layer, hidden, causal)
                ours = checkpointed(layer, (), partial(_run_parts, layer, causal=causal), hidden)
            except (AttributeError, TypeError, RuntimeError, ValueError):
                return False
            if ours.shape != expected.shape or not torch.allclose(ours, expected, rtol=tolerance, atol=tolerance):
                return False
    return True


def _call(layer: Layer, hidden: Tensor, causal: bool, updates: Updates = ()) -> Tensor:
    """Call a layer as CLIP's text encoder (causal) or an encoder without a causal mask does."""
    given: Any = {"updates": updates} if updates else {}
    if not causal:
        return layer(hidden, None, **given)
    mask = None
    if layer.self_attn.config._attn_implementation == "eager":
        length = hidden.shape[1]
        mask = hidden.new_full((length, length), torch.finfo(hidden.dtype).min).triu(1)[None, None]
    return layer(hidden, mask, is_causal=True, **given)


def _run_parts(layer: Layer, hidden: Tensor, causal: bool, updates: Updates = ()) -> Tensor:
    mixed = attend(layer, *queries_keys_values(layer, hidden, updates), causal=causal)
    return finish(layer, hidden, mixed, updates)


def _in_heads(layer: Layer, name: str, normed: Tensor, updates: Updates) -> Tensor:
    projected = project(layer.self_attn, name, normed, updates)
    return projected.unflatten(-1, (layer.self_attn.num_heads, layer.self_attn.head_dim))


def _are_plain(*linears: nn.Module) -> bool:
    """Whether these do nothing but multiply by their weight and add their bias."""
    return all(type(each) is nn.Linear for each in linears) and not is_hooked(*linears)


def _scaled_linear(linear: nn.Linear, rows: Tensor, scale: float, bias: Tensor) -> Tensor:
    return torch.addmm(bias, rows, linear.weight.t(), alpha=scale)
