"""Saved classifiers of others: both files are checked before a CLIP is loaded, and pickles are never read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from peft.utils import SAFETENSORS_WEIGHTS_NAME as ADAPTER_WEIGHTS
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_NAME

from ..files import short
from ..method.families import FAMILIES, family_of
from .config import LORA, CLIPClassifierConfig, read_config
from .model import CLIPClassifier
from .specs import FLOATS, FREE, TensorSpec


def weights_name(method: str) -> str:
    """Return the name of the file that holds a method's tensors."""
    return ADAPTER_WEIGHTS if method == LORA else SAFE_WEIGHTS_NAME


def load_classifier(folder: str | Path, model: str | None = None) -> CLIPClassifier:
    """Load what [`save_classifier`][anprompt_peft.classifier.save_classifier] wrote, on the CPU, in evaluation mode.

    Args:
        folder (`str` or `Path`): a folder.
        model (`str`, *optional*): the CLIP that it was made on: its id on the Hub, or a folder. Default: the one that
            the classifier names.

    Raises:
        FileNotFoundError: if there is no such folder, or no such CLIP.
        ValueError: if a file is missing, the configuration has a wrong value, or the safetensors file does not hold
            exactly the tensors of the method for these classes and this CLIP, of numbers that are finite.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder} with a classifier.")
    from .kinds import KINDS

    config = read_config(folder)
    if missing := [name for name in KINDS[config.method].settings if name not in config.settings]:
        raise ValueError(f"{folder}: the field 'settings' has no {', '.join(missing)}, which {config.method} needs.")
    path = folder / weights_name(config.method)
    if not path.is_file():
        raise ValueError(f"{folder} holds no {path.name}. Weights in a pickle, which can run code, are not loaded.")
    base, revision = model or config.base_model_name_or_path, None if model else config.base_model_revision
    try:
        clip_config = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=False)
    except OSError as error:
        raise FileNotFoundError(f"{base!r}, the CLIP that {folder} names, cannot be loaded: {error}") from error
    if clip_config.model_type not in FAMILIES:
        raise ValueError(
            f"{folder} names {base!r}, which is a model of type {clip_config.model_type!r}, not "
            f"{' or '.join(map(repr, FAMILIES))}."
        )
    family = family_of(clip_config)
    tensors = _read_tensors(path, config, clip_config)
    clip: Any = family.model.from_pretrained(base, revision=revision, dtype=torch.float32)
    if config.method == LORA:
        clip, tensors = PeftModel.from_pretrained(clip, str(folder)).merge_and_unload(), {}
    processor = family.processor.from_pretrained(base, revision=revision, trust_remote_code=False)
    return CLIPClassifier(config, clip.eval().requires_grad_(False), processor, tensors).eval()


def _read_tensors(path: Path, config: CLIPClassifierConfig, clip: PreTrainedConfig) -> dict[str, Tensor]:
    """Return a method's tensors once names, shapes and types in the header fit, and the numbers are sound."""
    from .kinds import KINDS

    specs = KINDS[config.method].tensors(config, clip)
    if config.method == LORA:
        shapes = _lora_shapes(path.parent, clip)
        specs = {name: TensorSpec(shape, FLOATS) for name, shape in shapes.items()}
    try:
        with safe_open(path, framework="np") as file:  # which maps no memory, whatever size the header claims
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            found = {name: TensorSpec(tuple(each.get_shape()), (each.get_dtype(),)) for name, each in slices.items()}
        for name in sorted({*found, *specs}):
            _check_tensor(path, name, found.get(name), specs.get(name))
        if len({each.shape[0] for name, each in found.items() if specs[name].shape[0] == FREE}) > 1:
            raise ValueError(f"{path}: keys and labels are of different numbers of images.")
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in specs}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: {name} is not finite. Training has failed there; save it again.")
    labels = tensors.get("labels")
    if labels is not None and not bool(((labels >= 0) & (labels < len(config.class_names))).all()):
        raise ValueError(f"{path}: labels lie outside the {len(config.class_names)} classes of the configuration.")
    return tensors


def _check_tensor(path: Path, name: str, found: TensorSpec | None, wanted: TensorSpec | None) -> None:
    """Raise `ValueError` unless the header has a tensor as it must be."""
    if found is None or wanted is None:
        what = "is missing" if found is None else "must not be there"
        raise ValueError(f"{path} does not fit its configuration: the tensor {short(name)} {what}.")
    fits = len(found.shape) == len(wanted.shape) and all(
        size in (one, FREE) and one > 0 for one, size in zip(found.shape, wanted.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"{path}: {short(name)} has the shape {list(found.shape)}, and this CLIP and these classes need "
            f"{['any' if size == FREE else size for size in wanted.shape]}."
        )
    if found.dtypes[0] not in wanted.dtypes:
        raise ValueError(
            f"{path}: {short(name)} has the type {found.dtypes[0]}, and not one of {list(wanted.dtypes)}."
        )


def _lora_shapes(folder: Path, clip: PreTrainedConfig) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of all tensors of a LoRA adapter by name, from its layers on the meta device."""
    from peft import get_peft_model, get_peft_model_state_dict

    if not (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{folder} holds no {ADAPTER_CONFIG}, which the method lora needs.")
    config: Any = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{folder / ADAPTER_CONFIG} is not the configuration of a LoRA adapter.")
    with torch.device("meta"):
        model: Any = get_peft_model(family_of(clip).model(clip), config)
    return {name: tuple(each.shape) for name, each in get_peft_model_state_dict(model).items()}
