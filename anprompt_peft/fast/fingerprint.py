"""Tells whether anything that a cached result was computed from has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..method.features import at_least_float32

_optimizer_steps = [0]


class Fingerprint:
    """Which tensors a result depends on, in which state, and what else it depends on.

    Two are equal if they name the very same tensors, none of which was written to or moved in between, and the others
    compare equal. The tensors are held, so that no new one can pass for an old one. Writing through `.data` leaves no
    trace, for which [`checksum`] tells on a CPU, nor do fused optimisers, for which [`optimizer_steps`] tells.
    """

    def __init__(self, tensors: Iterable[Tensor], *others: object) -> None:
        self.tensors = tuple(tensors)
        self.state = [(each.data_ptr(), each.dtype, each.device, _version(each)) for each in self.tensors]
        self.others = others

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Fingerprint)
            and len(self.tensors) == len(other.tensors)
            and all(ours is theirs for ours, theirs in zip(self.tensors, other.tensors, strict=True))
            and self.state == other.state
            and self.others == other.others
        )

    __hash__ = None  # type: ignore[assignment]


def checksum(tensor: Tensor) -> float | None:
    """Return a tensor's product with a fixed random vector, or `None` where reading it would synchronise."""
    if tensor.device.type != "cpu":
        return None
    flat = at_least_float32(tensor.detach().flatten())
    return float(flat @ _direction(len(flat), flat.dtype))


@cache
def _direction(size: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=dtype)


def hooks(module: nn.Module) -> list[Callable[..., Any]]:
    """Return what is called with or before the forwards within a module, and may change what comes out."""
    return [
        hook
        for each in module.modules()
        for hook in (*each._forward_pre_hooks.values(), *each._forward_hooks.values())
    ]


def optimizer_steps() -> int:
    """Return how many steps all optimisers of this process have made since this module was imported."""
    return _optimizer_steps[0]


def _count_step(*_: object) -> None:
    _optimizer_steps[0] += 1


register_optimizer_step_post_hook(_count_step)


def autocast_state(device_type: str) -> tuple[bool, torch.dtype]:
    """Return whether autocast is on for a type of device, and to which dtype."""
    return torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
