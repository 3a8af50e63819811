"""The named training recipes: everything in which two trainings of the same adapter on the same images may differ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

LEARNING_RATE, EPOCHS, BATCH_SIZE = 1e-3, 10, 4
"""The peak learning rate, passes over the images and images per step of every recipe."""

WARMUP_LEARNING_RATE = 1e-5


@dataclass(frozen=True)
class Recipe:
    """Settings of AdamW and its schedule: a constant 1e-5 for the warm-up, then a cosine from the full rate.

    The learning rate is constant within an epoch. The cosine's half period is all epochs, so it does not reach 0.

    Attributes:
        weight_decay (`float`): of AdamW.
        decay_biases (`bool`): whether biases decay as well, as with `torch.optim.AdamW(model.parameters())`.
        max_grad_norm (`float`): norm to clip gradients to; 0 clips nothing.
        warmup_share (`float`, *optional*): the warm-up takes an epoch, and at most this share (0..1) of all steps.
            `None`: an epoch, and nothing if the whole run is not longer than one.
    """

    weight_decay: float
    decay_biases: bool
    max_grad_norm: float
    warmup_share: float | None

    def schedule(
        self, optimizer: Optimizer, epoch_steps: int, total_steps: int, warmup_epochs: float | None = None
    ) -> LambdaLR:
        """Return the schedule of a run.

        Args:
            optimizer (`Optimizer`): carries the full learning rate.
            epoch_steps (`int`): optimizer steps per epoch.
            total_steps (`int`): optimizer steps of the run.
            warmup_epochs (`float`, *optional*): length of the warm-up; by default the recipe's.

        Raises:
            ValueError: if `warmup_epochs` is negative.
        """
        if warmup_epochs is not None:
            warmup = min(total_steps, round(warmup_epochs * epoch_steps))
        elif self.warmup_share is None:
            warmup = epoch_steps if total_steps > epoch_steps else 0
        else:
            warmup = min(epoch_steps, round(self.warmup_share * total_steps))
        return warmup_cosine(optimizer, warmup, total_steps, epoch_steps)


RECIPES = {
    "default": Recipe(weight_decay=0.0, decay_biases=False, max_grad_norm=1.0, warmup_share=0.1),
    "paper": Recipe(weight_decay=5e-4, decay_biases=True, max_grad_norm=0.0, warmup_share=None),
}


def warmup_cosine(
    optimizer: Optimizer, warmup_steps: int, total_steps: int, epoch_steps: int | None = None
) -> LambdaLR:
    """Return a schedule: a constant 1e-5 for the warm-up, then a cosine from the full rate.

    Args:
        optimizer (`Optimizer`): carries the full learning rate.
        warmup_steps (`int`): optimizer steps of the warm-up.
        total_steps (`int`): optimizer steps of the whole training.
        epoch_steps (`int`, *optional*): optimizer steps per epoch. With them the rate changes once per epoch, and
            the cosine's half period is all epochs, warm-up included. Without, it changes at every step and ends at 0.

    Raises:
        ValueError: if the warm-up is negative or longer than the training.
    """
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps={warmup_steps} must lie between 0 and total_steps={total_steps}.")

    def factor(step: int, rate: float) -> float:
        if step < warmup_steps:
            return min(1.0, WARMUP_LEARNING_RATE / rate) if rate else 1.0
        if epoch_steps is None:
            progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        else:
            progress = (step - warmup_steps) // epoch_steps / math.ceil(total_steps / epoch_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    return LambdaLR(optimizer, [partial(factor, rate=rate) for rate in rates])
