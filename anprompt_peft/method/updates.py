"""Updates in the form of LoRA (arXiv 2106.09685) inside CLIP's attention: `W x + s B A x` for its four matrices.

Shapes: L positions, d the encoder's width, r the rank. The matrices stand in the order of `MATRICES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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

    def change(self, name: str, inputs: Tensor) -> Tensor:
        """Return what is added to what a matrix makes of inputs `[..., d]`."""
        down, up = self.of(name, inputs.dtype)
        return F.linear(F.linear(inputs, down), up)  # ..., r -> ..., d


Updates = tuple[Update, ...]
"""The updates of one layer, which add up; none leave the attention as it is."""


class Denoiser(NamedTuple):
    """Frozen updates of all l layers of a text encoder, learnt once for a CLIP to see through phrasing."""

    down: Tensor  # A [l, 4, r, d]
    up: Tensor  # s B [l, 4, d, r]

    def of_layer(self, number: int) -> Update:
        """Return the updates of the layer of a 1-based number."""
        return Update(self.down[number - 1], self.up[number - 1], 1.0)


@contextmanager
def denoised(text_encoder: Any, denoiser: Denoiser | None) -> Iterator[None]:
    """Let a text encoder whose layers hand no updates on answer with a denoiser, if there is one, within a block."""
    with ExitStack() as stack:
        for number, layer in enumerate(text_encoder.encoder.layers, 1):
            attention = getattr(layer, "base_layer", layer).self_attn
            for name in MATRICES:
                if denoiser is not None:
                    hook = partial(_add_change, denoiser.of_layer(number), name)
                    stack.callback(getattr(attention, name).register_forward_hook(hook).remove)
        yield


def _add_change(update: Update, name: str, module: nn.Module, inputs: tuple[Tensor], outputs: Tensor) -> Tensor:
    return outputs + update.change(name, inputs[0])


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


class UpdatedAttention:
    """Makes of an attention one with updates of its matrices where a call gives some, without weights of its own."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, updates: Updates = (), **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Run the attention's own forward on `[B, L, d]`."""
        attention: Any = _WithUpdates(self, updates) if updates else self
        own: Any = super(UpdatedAttention, type(self))
        return own.forward(attention, hidden_states, attention_mask, **kwargs)


class _WithUpdates:
    """Stands for an attention within its own forward, and answers as it does but for the four matrices."""

    def __init__(self, attention: Any, updates: Updates) -> None:
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
        outputs = outputs + update.change(name, inputs)
    return outputs
