"""The training loop that all baselines share: everything in it follows from a recipe and a seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.checkpoint import checkpoint

from ..backbone import Backbone
from ..task import ImageSet

OptimizerName = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "cosine", "cosine-per-epoch"]


@dataclass(frozen=True)
class Recipe:
    """How parameters are trained.

    The schedule is `constant`, a `cosine` that changes at every step and reaches the final rate after the last one, or
    a `cosine-per-epoch`, as in CoOp and its successors: the rate of epoch e of E, both without the W epochs of the
    warm-up, is the cosine at e / (E + W).

    Args:
        learning_rate (`float`): at the start of the cosine.
        epochs (`int`): passes over the shots.
        batch_size (`int`, *optional*): images per step, `None` for all. The last batch of an epoch may be smaller;
            none is left out.
        steps (`int`, *optional*): steps of the whole training, in place of the epochs.
        optimizer (`"sgd"`, `"adam"` or `"adamw"`): all else is torch's default.
        weight_decay (`float`): as the optimizer means it.
        momentum (`float`): of SGD.
        epsilon (`float`): of Adam and AdamW.
        schedule (`"constant"`, `"cosine"` or `"cosine-per-epoch"`): see above.
        final_learning_rate (`float`): where the cosine ends.
        warmup_epochs (`float`): epochs at a constant `warmup_learning_rate` before.
        warmup_learning_rate (`float`): their rate.
        clip_norm (`float`): norm to clip gradients to; 0 clips nothing.
        augment (`bool`): train on random crops of the shots, half of them mirrored; on the shots as they are where
            their [`ImageSet`] has no augmentation.

    Raises:
        ValueError: if a value lies outside its range.
    """

    learning_rate: float
    epochs: int = 1
    batch_size: int | None = 32
    steps: int | None = None
    optimizer: OptimizerName = "sgd"
    weight_decay: float = 0.0
    momentum: float = 0.9
    epsilon: float = 1e-8
    schedule: Schedule = "cosine"
    final_learning_rate: float = 0.0
    warmup_epochs: float = 0
    warmup_learning_rate: float = 1e-5
    clip_norm: float = 0.0
    augment: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("optimizer", get_args(OptimizerName)), ("schedule", get_args(Schedule))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {list(allowed)}.")
        for name in ("epochs", "batch_size", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        for name in ("learning_rate", "weight_decay", "warmup_epochs", "warmup_learning_rate", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative.")

    def steps_per_epoch(self, images: int) -> int:
        """Return the number of steps of an epoch over so many images."""
        return math.ceil(images / (self.batch_size or images))

    def steps_for(self, images: int) -> int:
        """Return the number of steps of a training on so many images."""
        return self.steps or self.epochs * self.steps_per_epoch(images)

    def rate(self, step: int, images: int) -> float:
        """Return the learning rate of a step, counted from 0, of a training on so many images."""
        per_epoch, total = self.steps_per_epoch(images), self.steps_for(images)
        warmup = round(self.warmup_epochs * per_epoch)
        if step < warmup:
            return self.warmup_learning_rate
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "cosine":
            progress = (step - warmup) / max(1, total - warmup)
        else:
            progress = ((step - warmup) // per_epoch) / math.ceil(total / per_epoch)
        span = self.learning_rate - self.final_learning_rate
        return self.final_learning_rate + span * (1 + math.cos(math.pi * progress)) / 2

    def optimizer_for(self, parameters: Iterable[Tensor]) -> Optimizer:
        """Return the optimizer of some parameters."""
        if self.optimizer == "sgd":
            return SGD(parameters, self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay)
        kind = AdamW if self.optimizer == "adamw" else Adam
        return kind(parameters, self.learning_rate, eps=self.epsilon, weight_decay=self.weight_decay)


@dataclass(frozen=True, eq=False)
class Batch:
    """m shots of one training step; pixels are read only if they are asked for.

    Args:
        shots (`ImageSet`): all n of them.
        rows (`Tensor`): int64 `[m]`, on the CPU, to index what was computed once per shot.
        like (`Tensor`): whose device and dtype the pixels take.
        augment (`bool`): whether the pixels are random crops, mirrored at random.
    """

    shots: ImageSet
    rows: Tensor
    like: Tensor
    augment: bool = False

    @property
    def labels(self) -> Tensor:
        """Int64 `[m]`."""
        return self.shots.labels[self.rows].to(self.like.device)

    @cached_property
    def pixels(self) -> Tensor:
        """`[m, 3, H, W]`."""
        return self.shots.pixels(self.rows, self.augment).to(self.like)

    def features(self, backbone: Backbone) -> Tensor:
        """Return their frozen, normalised features `[m, d]`, of new random views if they are augmented."""
        if self.augment:
            return backbone.encode_images(self.pixels)
        return backbone.image_features(self.shots)[self.rows.to(backbone.device)]


_KEPT: ContextVar[bool] = ContextVar("kept", default=True)

LossOfBatch = Callable[[Batch], Tensor]
"""Returns a batch's loss, a scalar with a gradient."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw torch's random numbers from a seed for a block; afterwards they go on as if nothing had been drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def thrown_away() -> Iterator[None]:
    """Train in a block what only serves to choose: it does not count among the parameters that a method learns."""
    before = _KEPT.set(False)
    try:
        yield
    finally:
        _KEPT.reset(before)


@contextmanager
def optimized_tensors() -> Iterator[dict[int, Tensor]]:
    """Give all tensors that torch's optimizers change in a block and that are not [`thrown_away`], by their ids."""
    tensors: dict[int, Tensor] = {}

    def collect(optimizer: Optimizer, *_: Any) -> None:
        if _KEPT.get():
            tensors.update((id(each), each) for group in optimizer.param_groups for each in group["params"])

    handle = register_optimizer_step_pre_hook(collect)
    try:
        yield tensors
    finally:
        handle.remove()


def train(
    parameters: Iterable[Tensor],
    loss_of_batch: LossOfBatch,
    shots: ImageSet,
    recipe: Recipe,
    seed: int,
    after_epoch: Callable[[], None] | None = None,
) -> list[float]:
    """Train parameters in place.

    The seed decides the order of the shots, shuffled again in every epoch, their augmentation, and what
    `loss_of_batch` draws from torch's random numbers. Whether modules are in training mode is the caller's matter.

    Args:
        parameters (`Iterable[Tensor]`): at least one; all on one device.
        loss_of_batch (`Callable`): the loss of a [`Batch`].
        shots (`ImageSet`): the images to learn from.
        recipe (`Recipe`): how.
        seed (`int`): of all random numbers.
        after_epoch (`Callable`, *optional*): called when an epoch has ended.

    Returns:
        `list[float]`: the mean loss of each epoch.

    Raises:
        ValueError: if there are no shots or no parameters.
        FloatingPointError: if an epoch's loss is not a finite number.
    """
    parameters = list(parameters)
    if not parameters or not len(shots):
        raise ValueError(f"nothing to train: {len(parameters)} parameters and {len(shots)} shots.")
    optimizer, total = recipe.optimizer_for(parameters), recipe.steps_for(len(shots))
    augment = recipe.augment and shots.augmentation is not None
    order = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    step = 0
    with seeded(seed):
        while step < total:
            batches = torch.randperm(len(shots), generator=order).split(recipe.batch_size or len(shots))
            epoch: list[Tensor] = []
            for rows in batches[: total - step]:
                loss = loss_of_batch(Batch(shots, rows, parameters[0], augment))
                _step(optimizer, parameters, loss, recipe.rate(step, len(shots)), recipe.clip_norm)
                epoch.append(loss.detach())
                step += 1
            losses.append(float(torch.stack(epoch).mean()))
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(
                    f"the loss of epoch {len(losses)} is {losses[-1]}: lower learning_rate={recipe.learning_rate}."
                )
            if after_epoch is not None:
                after_epoch()
    return losses


def _step(optimizer: Optimizer, parameters: list[Tensor], loss: Tensor, rate: float, clip_norm: float) -> None:
    """Change parameters along the gradient of a loss, at a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    if clip_norm:
        clip_grad_norm_(parameters, clip_norm)
    optimizer.step()


def in_chunks(encode: Callable[[Tensor], Tensor], rows: Tensor, size: int) -> Tensor:
    """Return `encode(rows)`, for an `encode` that treats every row by itself, one chunk's activations held at a time.

    Gradients are exact: each chunk is computed again on the way back, with the same random numbers. Up to `size` rows
    are one plain call.
    """
    if len(rows) <= size:
        return encode(rows)
    return torch.cat([checkpoint(encode, chunk, use_reentrant=False) for chunk in rows.split(size)])
