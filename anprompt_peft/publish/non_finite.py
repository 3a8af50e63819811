"""Refuses to save an adapter with NaN or infinity."""

from __future__ import annotations

import re
from itertools import chain

from torch import nn


class NonFiniteError(FloatingPointError):
    """A loss, a weight or a logit is NaN or infinite."""


def own_tensors(adapter: str) -> re.Pattern[str]:
    """Return a pattern to search for in the names of a model's tensors: it is in those of that adapter."""
    return re.compile(rf"\.anprompt_\w+\.{re.escape(adapter)}(\.|$)")


def check_finite(model: nn.Module, adapter: str) -> None:
    """Raise unless all weights and buffers of an adapter of a CLIP, or of a `PeftModel` around one, are finite.

    Raises:
        NonFiniteError: names the first tensors that hold NaN or infinity.
    """
    own = own_tensors(adapter)
    tensors = chain(model.named_parameters(), model.named_buffers())
    broken = [name for name, each in tensors if own.search(name) and not each.is_meta and not each.isfinite().all()]
    if broken:
        raise NonFiniteError(
            f"The adapter {adapter!r} holds NaN or infinity in {len(broken)} tensors ({', '.join(broken[:3])}), so it "
            "is not saved. Train it with a smaller learning rate, or create it with init_noise_prompts=True."
        )
