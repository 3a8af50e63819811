"""Checkpoints: which of them are complete, and Accelerate's with the adapter alone, written atomically."""

from __future__ import annotations

import io
import json
import logging
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import deserialize
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files import set_aside, sync, sync_folder

PREFIX, UNFINISHED = "step-", "unfinished"
PICKLED = re.compile(
    # what Trainer pickles, and then what Accelerate does
    r"(optimizer|scheduler|scaler)\.pt|rng_state(_\d+)?\.pth|training_args\.bin"
    r"|(optimizer|scheduler|sampler|dl_state_dict)(_\d+)?\.bin|(random_states|custom_checkpoint)_\d+\.pkl"
)
NEEDED = {f"{PREFIX_CHECKPOINT_DIR}-": TRAINER_STATE_NAME, PREFIX: "random_states_0.pkl"}
"""By the beginning of a checkpoint's name, the file that is always written besides the adapter's."""

logger = logging.getLogger(__name__)


class DamagedError(ValueError):
    """A file of a checkpoint is missing, cut off or otherwise not what was written."""


def check(checkpoint: Path, prefix: str) -> None:
    """Raise unless the files that PEFT and Trainer, or Accelerate, wrote to a checkpoint are complete.

    Nothing is unpickled: what `torch.save` wrote is an archive with checksums, and these are compared.

    Raises:
        DamagedError: if one is missing or damaged.
        OSError: if one cannot be read, which says nothing about what it holds.
    """
    names = {path.name for path in checkpoint.iterdir() if PICKLED.fullmatch(path.name)}
    if names & {OPTIMIZER_NAME, SCHEDULER_NAME}:  # without one of these Trainer goes on without a warning
        names |= {OPTIMIZER_NAME, SCHEDULER_NAME}
        names |= set() if any(name.startswith("rng_state") for name in names) else {"rng_state.pth"}
    for path in (*_adapter_files(checkpoint), checkpoint / NEEDED[prefix], *(checkpoint / name for name in names)):
        name = path.relative_to(checkpoint)
        if not path.is_file():
            raise DamagedError(f"{name} is missing")
        content = path.read_bytes()
        try:
            _parse(path.name, content)
        except Exception as error:  # whatever the parsers raise: the operating system has no part in it
            raise DamagedError(f"{name}: {error}") from error


def _adapter_files(checkpoint: Path) -> Iterator[Path]:
    """Give the files of all adapters: PEFT writes each into a folder of its name, but the default one."""
    folders = [path.parent for path in checkpoint.glob(f"*/{SAFETENSORS_WEIGHTS_NAME}")]
    for folder in folders if folders and not (checkpoint / CONFIG_NAME).exists() else [checkpoint, *folders]:
        yield from (folder / CONFIG_NAME, folder / SAFETENSORS_WEIGHTS_NAME)


def _parse(name: str, content: bytes) -> None:
    if name.endswith(".json"):
        record = json.loads(content)
        field = "peft_type" if name == CONFIG_NAME else "global_step"
        if not isinstance(record, dict) or field not in record:
            raise ValueError(f"it has no {field}")
    elif name == SAFETENSORS_WEIGHTS_NAME:
        deserialize(content)
    elif damaged := zipfile.ZipFile(io.BytesIO(content)).testzip():
        raise ValueError(f"{damaged} in it is damaged")


def newest_complete(folder: Path, prefix: str) -> tuple[Path | None, dict[Path, str]]:
    """Return the newest complete checkpoint, `None` if there is none, and what is wrong with others."""
    complete, damaged = [], {}
    for path in numbered(folder, prefix):
        try:
            check(path, prefix)
            complete.append(path)
        except (DamagedError, FileNotFoundError) as error:  # the latter where another process sets it aside now
            damaged[path] = str(error)
    return (complete[-1] if complete else None), damaged


def numbered(folder: Path, prefix: str) -> list[Path]:
    """Return the folders whose names are a prefix and a number, in the order of the numbers."""
    numbers = {path: path.name.removeprefix(prefix) for path in folder.glob(f"{prefix}*") if path.is_dir()}
    return sorted((path for path in numbers if numbers[path].isdecimal()), key=lambda path: int(numbers[path]))


def resume_point(folder: Path, prefix: str = f"{PREFIX_CHECKPOINT_DIR}-") -> Path | None:
    """Return the newest complete checkpoint, and rename those that a crash damaged, with a warning."""
    newest, damaged = newest_complete(folder, prefix)
    rename_damaged(damaged, newest)
    return newest


def rename_damaged(damaged: dict[Path, str], newest: Path | None) -> None:
    """Rename damaged checkpoints, so that nothing takes them for checkpoints, and warn of what is wrong with each."""
    where = f"Training goes on from {newest}." if newest else "Training restarts."
    for path, reason in damaged.items():
        aside = set_aside(path)
        logger.warning(
            "The checkpoint %s cannot be read: %s. It is now called %s. %s", path, reason, aside.name, where
        )


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
    """Save the state as `folder/step-<step>`, atomically and durably, and then remove the checkpoints before it.

    All processes call it, and see the same `folder`.

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
        older = numbered(folder, PREFIX)
        sync(unfinished)
        unfinished.rename(folder / f"{PREFIX}{step:08d}")
        sync_folder(folder)
        for checkpoint in older:
            shutil.rmtree(checkpoint)
    accelerator.wait_for_everyone()


def newest(folder: Path) -> Path | None:
    """Return the complete checkpoint with the most steps, `None` if there is none."""
    return newest_complete(folder, PREFIX)[0]


def clear(folder: Path) -> None:
    """Remove an unfinished checkpoint from a folder, and rename damaged ones, with a warning."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    resume_point(folder, PREFIX)
