"""Checkpoints: which of them can be read, and those of Accelerate that hold the adapter and appear whole."""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

PREFIX, UNFINISHED = "step-", "unfinished"
PICKLED = {".bin", ".pkl", ".pt", ".pth"}

logger = logging.getLogger(__name__)


def is_readable(checkpoint: Path, *needed: str) -> bool:
    """Whether a checkpoint holds an adapter and the `needed` files, and each of its files can be read to its end.

    Nothing is unpickled: what `torch.save` wrote is an archive with checksums, and these are compared.

    Args:
        checkpoint (`Path`): its folder.
        needed (`str`): names of further files.
    """
    try:
        files = [path for path in checkpoint.rglob("*") if path.is_file()]
        for path in files:
            _read(path)
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile):
        return False
    names = {path.name for path in files}
    return names >= {CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, *needed}


def newest_readable(folder: Path, prefix: str, *needed: str) -> tuple[Path | None, list[Path]]:
    """Return the newest checkpoint that can be read, `None` if there is none, and those that cannot be read.

    Args:
        folder (`Path`): holds checkpoints whose names are the prefix and a number of steps.
        prefix (`str`): of their names.
        needed (`str`): files without which a checkpoint is not whole.
    """
    steps = {path: path.name.removeprefix(prefix) for path in folder.glob(f"{prefix}*") if path.is_dir()}
    ordered = sorted((path for path in steps if steps[path].isdecimal()), key=lambda path: int(steps[path]))
    readable = {path: is_readable(path, *needed) for path in ordered}
    return next((path for path in reversed(ordered) if readable[path]), None), [
        path for path in ordered if not readable[path]
    ]


def remove_broken(broken: list[Path], chosen: Path | None) -> None:
    """Remove what a crash left of checkpoints, and log a warning that says so."""
    for path in broken:
        where = f"Training goes on from {chosen}." if chosen else "Training begins anew."
        logger.warning("The checkpoint %s cannot be read, as after a crash; it is removed. %s", path, where)
        shutil.rmtree(path)


def to_disk(folder: Path) -> None:
    """Wait until all that a folder holds has reached the disk."""
    if os.name != "posix":
        return
    for path in (*folder.rglob("*"), folder, folder.parent):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _read(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="np") as tensors:
            tensors.keys()
    elif path.suffix in PICKLED:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"{path}: {damaged} is damaged.")


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

    It has reached the disk before they go. All processes call it, and see the same `folder`.

    Args:
        accelerator (`Accelerator`): whose state is saved.
        folder (`Path`): holds the checkpoints of one training.
        step (`int`): number of optimizer steps done, more than at any earlier checkpoint.
    """
    unfinished = folder / UNFINISHED
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        older = list(folder.glob(f"{PREFIX}*"))
        to_disk(unfinished)
        unfinished.rename(folder / f"{PREFIX}{step:08d}")
        for checkpoint in older:
            shutil.rmtree(checkpoint)
    accelerator.wait_for_everyone()


def newest(folder: Path) -> Path | None:
    """Return the checkpoint with the most steps that can be read, `None` if there is none."""
    return newest_readable(folder, PREFIX)[0]


def clear(folder: Path) -> None:
    """Remove from a folder of checkpoints what a crash left: unfinished ones, and, with a warning, unreadable ones."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    chosen, broken = newest_readable(folder, PREFIX)
    remove_broken(broken, chosen)
