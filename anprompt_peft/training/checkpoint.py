"""Checkpoints of a training with Accelerate that hold the adapter instead of the whole model, and appear whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

PREFIX = "step-"


def keep_adapter_only(accelerator: Accelerator, model: PeftModel) -> None:
    """Let `accelerator.save_state` write the active adapter in place of the whole model, and `load_state` read it.

    The rest of a checkpoint is as always: optimizers, schedules, random number generators and registered objects. Its
    folder can also be loaded as an adapter, with `PeftModel.from_pretrained`.

    Args:
        accelerator (`Accelerator`): with this model, prepared or yet to be, and no other.
        model (`PeftModel`): the adapted model as it was before `accelerator.prepare`.
    """
    adapter = model.active_adapter

    def save(models: list[Any], weights: list[Any], folder: str) -> None:
        weights.clear()
        if accelerator.is_main_process:
            model.save_pretrained(folder, selected_adapters=[adapter])

    def load(models: list[Any], folder: str) -> None:
        models.clear()
        saved = Path(folder) if adapter == "default" else Path(folder, adapter)
        set_peft_model_state_dict(model, load_peft_weights(str(saved), device="cpu"), adapter_name=adapter)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def save_newest(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Save the state as `folder/step-<step>`, complete or not at all, and then remove the checkpoints before it.

    All processes call it, and see the same `folder`.

    Args:
        accelerator (`Accelerator`): whose state is saved.
        folder (`Path`): holds the checkpoints of one training.
        step (`int`): number of optimizer steps done, more than at any earlier checkpoint.
    """
    unfinished = folder / "unfinished"
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        older = list(folder.glob(f"{PREFIX}*"))
        unfinished.rename(folder / f"{PREFIX}{step:08d}")
        for checkpoint in older:
            shutil.rmtree(checkpoint)
    accelerator.wait_for_everyone()


def newest(folder: Path) -> Path | None:
    """Return the checkpoint with the most steps, `None` if there is none."""
    return max(folder.glob(f"{PREFIX}*"), default=None)
