"""Updates in the form of LoRA (arXiv 2106.09685) inside CLIP's attention: `W x + s B A x` for its four matrices.

Shapes: L positions, d the encoder's width, r the rank. The matrices stand in the order of `MATRICES`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.clip.modeling_clip import CLIPAttention

MATRICES = ("q_proj", "k_proj", "v_proj", "out_proj")


class Update(NamedTuple):
    """Low-rank updates of the four matrices of one layer's attention."""

    down: Tensor  # A [4, r, d]
    up: Tensor  # B [4, d, r]
    scale: float  # s

    def of(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return a matrix's update as factors in a dtype: s A `[r, d]` and B `[d, r]`."""
        at = MATRICES.index(name)
        return self.down[at].to(dtype) * self.scale, self.up[at].to(dtype)


Updates = tuple[Update, ...]
"""The updates of one layer, which add up; none leave the attention as it is."""


class TrainedUpdate(nn.Module):
    """The weights of an [`Update`] with s = 1/sqrt(r), which starts as nothing: A as PEFT's LoRA has it, B zero."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        bound = width**-0.5  # of kaiming_uniform_(a=sqrt(5))
        self.down = nn.Parameter(torch.empty(len(MATRICES), rank, width).uniform_(-bound, bound))
        self.up = nn.Parameter(torch.zeros(len(MATRICES), width, rank))

    def forward(self) -> Update:
        """Return the update with the current weights."""
        return Update(self.down, self.up, self.down.shape[1] ** -0.5)


class UpdatedAttention(CLIPAttention):
    """CLIP's attention, with updates of its matrices where a call gives some. It has no weights of its own."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, updates: Updates = (), **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Run CLIP's own forward on `[B, L, d]`."""
        attention: Any = _WithUpdates(self, updates) if updates else self
        return CLIPAttention.forward(attention, hidden_states, attention_mask, **kwargs)


class _WithUpdates:
    """Stands for an attention within its own forward, and answers as it does but for the four matrices."""

    def __init__(self, attention: CLIPAttention, updates: Updates) -> None:
        self._attention = attention
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            partial(project, attention, name, updates=updates) for name in MATRICES
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attention, name)


def recorded(hidden: Tensor, updates: Updates) -> Tensor:
    """Return hidden states that record gradients if updates are trained: checkpointing may ask its inputs alone."""
    trained = torch.is_grad_enabled() and any(each.up.requires_grad for each in updates)
    return hidden.detach().requires_grad_() if trained and not hidden.requires_grad else hidden


def project(attention: Any, name: str, inputs: Tensor, updates: Updates) -> Tensor:
    """Return what a matrix of an attention and its updates make of inputs `[..., d]`."""
    outputs = getattr(attention, name)(inputs)
    for update in updates:
        down, up = update.of(name, inputs.dtype)
        outputs = outputs + F.linear(F.linear(inputs, down), up)  # ..., r -> ..., d
    return outputs
