"""`ANPromptTrainer`: transformers' Trainer, with the loss terms in its logs and the method's warm-up."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

WARMUP_LEARNING_RATE = 1e-5


class ANPromptTrainer(Trainer):
    """A [`~transformers.Trainer`] that logs every loss term by name, averaged since the last log.

    Terms seen while evaluating are logged with the prefix `eval_`. Anything else is Trainer's own.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._terms: dict[str, Tensor] = {}
        self._passes: dict[str, int] = {}

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        """Compute the loss as Trainer does and remember the loss terms, without waiting for the device."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        prefix = "" if model.training else "eval_"
        for name, term in (outputs.get("loss_terms") or {}).items():
            key = prefix + name
            self._terms[key] = self._terms.get(key, 0) + term
            self._passes[key] = self._passes.get(key, 0) + 1
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the loss terms of this phase to what is logged."""
        prefix = "eval_" if any(name.startswith("eval_") for name in logs) else ""
        for name in [name for name in self._terms if name.startswith("eval_") == bool(prefix)]:
            logs[name] = float(self._terms.pop(name)) / self._passes.pop(name)
        super().log(logs, *args, **kwargs)


def warmup_cosine(
    optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the method's schedule: a constant 1e-5 for the warm-up, then a cosine from the full rate to 0.

    Args:
        optimizer (`Optimizer`): carries the full learning rate.
        warmup_steps (`int`): optimiser steps of the warm-up, one epoch in the paper's settings.
        total_steps (`int`): optimiser steps of the whole training.

    Raises:
        ValueError: if the warm-up is negative or longer than the training.
    """
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps={warmup_steps} must lie between 0 and total_steps={total_steps}.")

    def factor(step: int, rate: float) -> float:
        if step < warmup_steps:
            return min(1.0, WARMUP_LEARNING_RATE / rate) if rate else 1.0
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, [partial(factor, rate=rate) for rate in rates])
