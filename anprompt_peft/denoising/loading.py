"""Denoisers on disk and on the Hub: saved as stock LoRA adapters, and checked before they are loaded."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError
from peft import LoraConfig, PeftConfig, PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import PreTrainedConfig, PreTrainedModel

from ..files import atomic_file, hub_id, read_json, short, to_json
from ..method.config import mismatch
from ..method.families import FAMILIES, family_of
from ..method.updates import MATRICES, Denoiser
from .card import write_card
from .train import TARGETS, Denoising, check_clip

FREE = {
    "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "inference_mode", "base_model_name_or_path",
    "revision", "task_type", "auto_mapping", "peft_version",
}  # fmt: skip
"""Fields of `LoraConfig` that any LoRA of these matrices may have of its own; the others keep their defaults."""


def save_denoiser(model: PeftModel, folder: str | Path, how: Denoising) -> None:
    """Save a denoiser as a stock LoRA adapter with a model card.

    A base model that is not on the Hub is not named, since nobody else has it.

    Args:
        model (`PeftModel`): what [`train_denoiser`] returned.
        folder (`str` or `Path`): created if it does not exist.
        how (`Denoising`): what it was trained with, for the card.
    """
    model.save_pretrained(str(folder))
    path = Path(folder) / CONFIG_NAME
    record = read_json(path)
    record["base_model_name_or_path"] = base_model = hub_id(record["base_model_name_or_path"])
    with atomic_file(path) as fresh:
        fresh.write_text(to_json(record), encoding="utf-8")
    write_card(Path(folder), base_model, how, family_of(model))


def load_denoised(clip: PreTrainedModel, denoiser: str | Path, revision: str | None = None) -> PreTrainedModel:
    """Merge a denoiser into a CLIP, and return the CLIP: a plain one, whose text encoder sees through phrasing.

    Args:
        clip (`PreTrainedModel`): the CLIP that the denoiser was made for, without adapters; it is changed in place.
        denoiser (`str` or `Path`): a folder, or an id on the Hub.
        revision (`str`, *optional*): branch, tag or commit on the Hub.

    Raises:
        TypeError: if `clip` is a model of no family that ANPrompt serves, or one with adapters.
        FileNotFoundError: if there is no such folder or repository.
        ValueError: if it holds no LoRA adapter of exactly the attention matrices of a text encoder of this size, in
            safetensors, with finite values, or if it was made for a model of another family.
    """
    check_clip(clip)
    folder = check_denoiser(clip.config, denoiser, revision)
    model: Any = PeftModel.from_pretrained(clip, str(folder))
    merged: PreTrainedModel = model.merge_and_unload()
    return merged


def check_denoiser(config: PreTrainedConfig, denoiser: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a denoiser, in the Hub's cache if it comes from there, or raise as [`load_denoised`]."""
    folder = _folder(str(denoiser), revision)
    lora, width, family = _lora(folder), config.text_config.hidden_size, family_of(config)
    made_for = lora.auto_mapping.get("base_model_class") if isinstance(lora.auto_mapping, dict) else None
    if made_for in [each.model.__name__ for each in FAMILIES.values() if each is not family]:
        raise ValueError(
            f"{folder} is a denoiser of a {made_for}, and this is a {family.model.__name__}. Make one for it with "
            "`anprompt denoise`."
        )
    rank = lora.r
    shapes = {"A": [rank, width], "B": [width, rank]}
    expected = {name: shape for matrix, shape in shapes.items() for name in _names(config, matrix)}
    _check_weights(folder / SAFETENSORS_WEIGHTS_NAME, expected)
    return folder


def read_denoiser(config: PreTrainedConfig, denoiser: str | Path, revision: str | None = None) -> Denoiser:
    """Return a denoiser's tensors, float64, for a text encoder of l layers, or raise as [`load_denoised`]."""
    folder = check_denoiser(config, denoiser, revision)
    lora, tensors = _lora(folder), load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    down, up = (
        torch.stack([tensors[name].double() for name in _names(config, matrix)]).unflatten(0, (-1, len(MATRICES)))
        for matrix in "AB"
    )  # l, 4, r, d; l, 4, d, r
    return Denoiser(down, up * (lora.lora_alpha / (lora.r**0.5 if lora.use_rslora else lora.r)))


def _names(config: PreTrainedConfig, matrix: str) -> list[str]:
    """Return the names of all tensors A or B of a denoiser in its file, by layer and by matrix of the attention."""
    return [
        f"base_model.model.text_model.encoder.layers.{layer}.self_attn.{name}.lora_{matrix}.weight"
        for layer in range(config.text_config.num_hidden_layers)
        for name in MATRICES
    ]


def _folder(name: str, revision: str | None) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for denoisers on the Hub, and {name} is a folder.")
        missing = [each for each in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME) if not (folder / each).is_file()]
        if missing:
            raise ValueError(f"{name} holds no denoiser: there is no {missing[0]} in it.")
        return folder
    try:
        paths = [hf_hub_download(name, each, revision=revision) for each in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME)]
    except EntryNotFoundError as error:
        raise ValueError(f"{name} on the Hub holds no denoiser with weights in safetensors: {error}") from error
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise FileNotFoundError(f"There is neither a folder {name} nor such a repository on the Hub.") from error
    return Path(paths[0]).parent


def _lora(folder: Path) -> LoraConfig:
    """Return the configuration of a plain LoRA adapter of the text encoder's attention; `ValueError` for others."""
    path = folder / CONFIG_NAME
    if not isinstance(record := read_json(path), dict) or record.get("peft_type") != "LORA":
        raise ValueError(f"{path} is not the configuration of a LoRA adapter, which a denoiser is.")
    config: Any = PeftConfig.from_pretrained(str(folder))
    stock = LoraConfig(target_modules=TARGETS)
    names = [each.name for each in fields(LoraConfig) if each.name not in FREE]
    if other := [name for name in names if getattr(config, name) != getattr(stock, name)]:
        values = ", ".join(f"{name}={short(getattr(config, name))}" for name in other)
        raise ValueError(f"{path}: a denoiser has no {values}. Make one with `anprompt denoise`.")
    if type(config.r) is not int or config.r < 1:
        raise ValueError(f"{path}: r={short(config.r)} must be an integer of at least 1.")
    if mismatch(config.lora_alpha, float, 0) or mismatch(config.use_rslora, bool):
        values = f"lora_alpha={short(config.lora_alpha)} and use_rslora={short(config.use_rslora)}"
        raise ValueError(f"{path}: {values} must be a finite number of at least 0, and true or false.")
    lora: LoraConfig = config
    return lora


def _check_weights(path: Path, expected: dict[str, list[int]]) -> None:
    """Raise `ValueError` unless a file holds exactly these tensors, finite ones; its header comes first."""
    try:
        with safe_open(path, framework="np") as file:
            found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if wrong := sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name)):
            shapes = f"{found.get(wrong[0], 'missing')}, and must be {expected.get(wrong[0], 'absent')}"
            raise ValueError(
                f"{path} is not a denoiser of this CLIP's text encoder: {short(wrong[0])} is {shapes}. Make one for "
                "it with `anprompt denoise`."
            )
        with safe_open(path, framework="pt") as file:
            broken = [name for name in expected if not torch.isfinite(file.get_tensor(name)).all()]
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if broken:
        raise ValueError(f"{path}: {broken[0]} is not finite. Training has failed there; make the denoiser again.")
