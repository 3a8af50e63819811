"""What the header of a safetensors file must say about a tensor."""

from __future__ import annotations

from typing import NamedTuple

FREE = -1
"""A size that a file may choose: the number of cached shots."""
FLOATS, INTEGERS = ("F16", "BF16", "F32", "F64"), ("I64",)


class TensorSpec(NamedTuple):
    """The shape of a tensor, and the types that it may have in a file."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...] = FLOATS
