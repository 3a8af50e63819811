"""`ANPromptTrainer`: transformers' Trainer with the paper's settings, accuracy, and the loss terms in its logs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sized
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import EvalPrediction, Trainer, TrainingArguments

from ..fast.sharding import refuse_weight_sharding
from ..publish.hub import CardCallback
from .repeatable import RepeatableRows, TellEpoch

WARMUP_LEARNING_RATE = 1e-5


@dataclass
class ANPromptTrainingArguments(TrainingArguments):
    """[`~transformers.TrainingArguments`] whose defaults are the paper's base-to-new settings.

    They are AdamW at 1e-3, 10 epochs of batches of 4, and a cosine after one epoch at a constant 1e-5. For few-shot
    classification the paper's relatives take 50 epochs of batches of 32, for cross-dataset transfer 1 epoch of 32.

    Args:
        warmup_epochs (`float`, *optional*):
            Epochs at a constant 1e-5 before the cosine. `None` leaves the schedule to `lr_scheduler_type` and
            `warmup_steps`, as in any Trainer. Default 1.

    Raises:
        ValueError: if `warmup_epochs` is negative, or joined with `warmup_steps`.
    """

    learning_rate: float = field(default=1e-3, metadata={"help": "The peak learning rate of AdamW."})
    num_train_epochs: float = field(default=10.0, metadata={"help": "Passes over the training images."})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Images per step and device."})
    per_device_eval_batch_size: int = field(default=100, metadata={"help": "Images per evaluation step and device."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log the loss and its terms."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Off, so that transforms set with `with_transform` see the image column."}
    )
    warmup_epochs: float | None = field(
        default=1.0, metadata={"help": "Epochs at a constant 1e-5 before the cosine; None: lr_scheduler_type decides."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_epochs is not None and self.warmup_epochs < 0:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} must be at least 0, or None.")
        if self.warmup_epochs is not None and self.warmup_steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} and warmup_epochs={self.warmup_epochs} both set the warm-up. Set "
                "warmup_epochs=None to use Trainer's schedules."
            )


class ANPromptTrainer(Trainer):
    """A [`~transformers.Trainer`] that reports accuracy and logs every loss term by name.

    Terms are averaged over the images since the last log, over all processes; those of an evaluation have the prefix
    `eval_`. With [`ANPromptTrainingArguments`] it follows the paper's schedule. What it pushes to the Hub has the
    adapter's card, and random transforms draw by seed, epoch and row, so that a resumed run repeats them (unless
    `remove_unused_columns` is on). Anything else is Trainer's own.

    Raises:
        NotImplementedError: under FSDP, DeepSpeed or Megatron-LM.
    """

    lr_scheduler: Any
    train_dataset: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse_weight_sharding()
        kwargs.setdefault("compute_metrics", accuracy)
        super().__init__(*args, **kwargs)
        self.add_callback(CardCallback)
        if self.train_dataset is not None and not self.args.remove_unused_columns and _has_rows(self.train_dataset):
            self.train_dataset = RepeatableRows(self.train_dataset, self.args.seed)
            self.add_callback(TellEpoch(self.train_dataset))
        self._sums: dict[str, dict[str, Tensor]] = {"": {}, "eval_": {}}
        self._images: dict[str, int] = defaultdict(int)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Create the method's schedule, or Trainer's if the arguments have no `warmup_epochs`."""
        warmup_epochs = getattr(self.args, "warmup_epochs", None)
        if warmup_epochs is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup_steps = min(num_training_steps, round(warmup_epochs * self._steps_per_epoch()))
        schedule = warmup_cosine(optimizer or self.optimizer, warmup_steps, num_training_steps)
        self.lr_scheduler = schedule
        self._created_lr_scheduler = True
        return schedule

    def _steps_per_epoch(self) -> int:
        if not _has_rows(self.train_dataset):
            raise ValueError(
                "warmup_epochs needs training data of known length, and a stream has none. Set warmup_epochs=None and "
                "warmup_steps to a number of steps."
            )
        args = self.args
        images = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return math.ceil(len(self.train_dataset) / images)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        """Compute the loss as Trainer does and remember the loss terms, without waiting for the device."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        phase, images = "" if model.training else "eval_", len(outputs["logits"])
        sums = self._sums[phase]
        for name, term in (outputs.get("loss_terms") or {}).items():
            sums[name] = sums.get(name, 0) + images * term.mean()
        self._images[phase] += images
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Evaluate a batch; of the outputs only `logits` are kept, unless `ignore_keys` says otherwise."""
        if ignore_keys is None:
            ignore_keys = ["loss_terms", "logits_class", "logits_prototype", "logits_fused"]
            ignore_keys += ["image_embeds", "prototype_embeds"]
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the loss terms of this phase to what is logged."""
        phase = "eval_" if any(name.startswith("eval_") for name in logs) else ""
        if sums := self._sums[phase]:
            local = torch.stack([*sums.values(), torch.full_like(next(iter(sums.values())), self._images[phase])])
            *totals, images = self.accelerator.reduce(local, "sum").tolist()
            logs.update({phase + name: total / images for name, total in zip(sums, totals, strict=True)})
        self._sums[phase], self._images[phase] = {}, 0
        super().log(logs, *args, **kwargs)


def _has_rows(dataset: Any) -> bool:
    return isinstance(dataset, Sized) and not isinstance(dataset, IterableDataset)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Return the share of images whose most likely class is the right one, for Trainer's `compute_metrics`."""
    logits = prediction.predictions
    logits = logits[0] if isinstance(logits, tuple) else logits
    return {"accuracy": float(np.mean(logits.argmax(axis=-1) == prediction.label_ids))}


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
