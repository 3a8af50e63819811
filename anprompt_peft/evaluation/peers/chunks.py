"""Rows encoded a chunk at a time, so that 1,000 classes fit into memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 128


def in_chunks(encode: Callable[..., Tensor], *rows: Tensor, size: int = CHUNK) -> Tensor:
    """Return `encode(*rows)`, for an `encode` that treats every row by itself.

    With gradients, a chunk's activations are computed a second time on the way back, the same random numbers drawn, so
    that only one chunk's are held. Up to `size` rows are one plain call.

    Args:
        encode (`Callable`): tensors `[m, ...]` to a tensor `[m, d]`.
        rows (`Tensor`): one or more, `[n, ...]` each.
        size (`int`): most rows in a chunk.
    """
    if len(rows[0]) <= size:
        return encode(*rows)
    chunks = zip(*(each.split(size) for each in rows), strict=True)
    return torch.cat([checkpoint(encode, *chunk, use_reentrant=False) for chunk in chunks])
