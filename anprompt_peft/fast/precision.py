"""The arithmetic that a device is fast in, and CLIP's frozen weights in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..method.registration import PREFIX

AUTO = "auto"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PRECISIONS = (AUTO, *DTYPES)


def multiplies_bfloat16(device: torch.device | str) -> bool:
    """Whether a device multiplies matrices of bfloat16 by instructions of its own, faster than those of float32.

    The processor is asked for AVX512-BF16 and AMX, a GPU of NVIDIA's or AMD's for bfloat16 that is not emulated. Other
    devices are not known here, and give `False`.

    Args:
        device (`torch.device` or `str`): the device that computes.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def choose_precision(precision: str, device: torch.device | str) -> str:
    """Return the precision; for `"auto"` that is `"bf16"` where the device multiplies it natively, else `"fp32"`.

    Raises:
        ValueError: if it is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is unknown. Choose one of: {', '.join(PRECISIONS)}.")
    if precision != AUTO:
        return precision
    return "bf16" if multiplies_bfloat16(device) else "fp32"


def set_precision(model: nn.Module, precision: str = AUTO) -> str:
    """Cast CLIP's frozen weights once, in place, so that the encoders compute in that precision.

    Adapters, trained weights and scale and bias of logits stay as they are, and logits and losses are computed in
    float32. Sums inside products, layer norms and softmaxes accumulate in float32. Call it after the noise prompts
    were computed or the adapter was loaded. Going back to `"fp32"` does not bring back the digits that `"bf16"` took.

    Args:
        model (`PeftModel` or `CLIPModel`): on the device that computes.
        precision (`str`): `"fp32"`, `"bf16"`, or `"auto"`, as [`choose_precision`] takes it.

    Returns:
        `str`: `"fp32"` or `"bf16"`.

    Raises:
        ValueError: if the precision is unknown.
    """
    chosen = choose_precision(precision, next(model.parameters()).device)
    for name, weight in model.named_parameters():
        if not (PREFIX in name or weight.requires_grad or name.endswith(("logit_scale", "logit_bias"))):
            weight.data = weight.data.to(DTYPES[chosen])
    return chosen


@contextmanager
def restored_precision(model: nn.Module) -> Iterator[None]:
    """Give a model its weights and buffers back as they were, whatever a block casts them to."""
    weights = [(weight, weight.data) for weight in model.parameters()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for weight, data in weights:
            weight.data = data
        for module, former in buffers:
            module._buffers.update(former)
