"""The tensors of an adapter: which there must be, and that a file holds exactly these, sound ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..method.class_texts import end_of_text_positions
from ..method.config import ANPromptConfig
from ..method.families import family_of, joint_width, reads_highest
from ..method.layer import ANPromptHead, ANPromptLayer
from ..tuner import check_shape

PREFIX = "base_model.model."
ADAPTER = "default"
CLASS_IDS = "anprompt_class_ids"
FLOATS, INTEGERS = ("F16", "BF16", "F32", "F64"), ("I64",)
DTYPES = {
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64",
}  # fmt: skip
SHOWN = 5


class Entry(NamedTuple):
    """What the header of a safetensors file says about a tensor."""

    shape: tuple[int, ...]
    dtype: str


def expected_tensors(config: ANPromptConfig, clip_config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of an adapter, by name in the CLIP, from its layers on the meta device."""
    text, vision, family = clip_config.text_config, clip_config.vision_config, family_of(clip_config)
    with torch.device("meta"):
        head = ANPromptHead(nn.Linear(vision.hidden_size, joint_width(clip_config), bias=False))
        head.update_layer(ADAPTER, config, text)
        modules: dict[str, nn.Module] = {f"{family.image_head}.": head}
        for tower, own in (("text", text), ("vision", vision)):
            for at in range(own.num_hidden_layers):
                layer = ANPromptLayer(nn.Linear(1, 1), family, tower, at + 1, own.hidden_size, is_last=False)
                layer.update_layer(ADAPTER, config)
                modules[f"{tower}_model.encoder.layers.{at}."] = layer
    return {
        prefix + name.replace(f".{ADAPTER}", ""): tuple(tensor.shape)
        for prefix, module in modules.items()
        for name, tensor in module.state_dict().items()
        if f".{ADAPTER}" in name
    }


def check_file(path: Path, config: ANPromptConfig, clip: PreTrainedModel) -> None:
    """Raise `ValueError` unless a safetensors file holds exactly the tensors of an adapter; its header comes first."""
    try:
        with safe_open(path, framework="np") as file:  # which maps no memory, whatever size the header claims
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            entries = {name: Entry(tuple(each.get_shape()), each.get_dtype()) for name, each in slices.items()}
        names, resolved = _check_header(entries, config, clip.config)
        with safe_open(path, framework="pt") as file:
            _check_values(names, file.get_tensor, resolved, clip)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def check_tensors(tensors: Mapping[str, Tensor], config: ANPromptConfig, clip: PreTrainedModel) -> None:
    """Raise as [`check_file`] does unless these are exactly the tensors of an adapter, by their names in a file."""
    dtypes = {name: DTYPES.get(each.dtype, str(each.dtype)) for name, each in tensors.items()}
    entries = {name: Entry(tuple(each.shape), dtypes[name]) for name, each in tensors.items()}
    names, resolved = _check_header(entries, config, clip.config)
    _check_values(names, tensors.__getitem__, resolved, clip)


def _check_header(
    entries: Mapping[str, Entry], config: ANPromptConfig, clip_config: PreTrainedConfig
) -> tuple[dict[str, str], ANPromptConfig]:
    """Return the names in the file by those in the CLIP, and the resolved configuration."""
    resolved = config.resolved(clip_config)
    expected = expected_tensors(resolved, clip_config)
    names = {name.removeprefix(PREFIX): name for name in entries}
    extra = [name for name in entries if name.removeprefix(PREFIX) not in expected or name not in names.values()]
    _check_names(sorted(extra), sorted(expected.keys() - names.keys()))
    _check_class_count(entries[names[_class_ids(clip_config)]].shape, resolved)
    for name, shape in expected.items():
        _check_entry(name, entries[names[name]], shape)
    return names, resolved


def _check_values(
    names: Mapping[str, str], read: Callable[[str], Tensor], config: ANPromptConfig, clip: PreTrainedModel
) -> None:
    for name in names:
        if not name.endswith(CLASS_IDS) and not bool(read(names[name]).to(clip.dtype).isfinite().all()):
            raise ValueError(f"The adapter's tensor {name} is not finite in {clip.dtype}. Training has failed there.")
    _check_class_ids(read(names[_class_ids(clip.config)]), config, clip.config)


def _class_ids(clip_config: PreTrainedConfig) -> str:
    return f"{family_of(clip_config).image_head}.{CLASS_IDS}"


def _check_names(extra: list[str], missing: list[str]) -> None:
    for names, what in ((extra, "that no adapter of its configuration has"), (missing, "missing")):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise ValueError(
                f"The adapter's weights do not fit its configuration. Tensors {what}: {names[:SHOWN]!a}{more}. "
                "Do not use it, or ask its author for a whole one."
            )


def _check_entry(name: str, entry: Entry, shape: tuple[int, ...]) -> None:
    check_shape(name, entry.shape, shape)
    allowed = INTEGERS if name.endswith(CLASS_IDS) else FLOATS
    if entry.dtype not in allowed:
        raise ValueError(f"The adapter's tensor {name} has the type {entry.dtype}, and not one of {list(allowed)}.")


def _check_class_count(shape: tuple[int, ...], config: ANPromptConfig) -> None:
    """Raise `ValueError` unless there are token ids for as many texts as the configuration has."""
    texts = len(config.class_names) * len(config.templates)
    if shape and shape[0] != texts:
        raise ValueError(
            f"The adapter's weights hold {shape[0]} class texts, and its configuration has {texts}: for class_names "
            f"{config.class_names[:SHOWN]!a}{', ...' if len(config.class_names) > SHOWN else ''} in "
            f"{len(config.templates)} template(s). Weights and adapter_config.json are of different adapters."
        )


def _check_class_ids(ids: Tensor, config: ANPromptConfig, clip_config: PreTrainedConfig) -> None:
    """Raise `ValueError` unless the class texts `[C * T, L]` are texts of this CLIP, different ones by class."""
    vocabulary, templates = clip_config.text_config.vocab_size, len(config.templates)

    def owners(rows: Tensor) -> list[str]:
        return [config.class_names[row // templates] for row in rows.nonzero()[:SHOWN, 0].tolist()]

    if bad := owners(((ids < 0) | (ids >= vocabulary)).any(dim=1)):
        raise ValueError(f"The token ids of the class texts of {bad} lie outside the vocabulary of {vocabulary}.")
    ends = ids == (ids.max() if reads_highest(clip_config) else clip_config.text_config.eos_token_id)
    if family_of(clip_config).text_end != "last" and (bad := owners(~ends.any(dim=1))):
        raise ValueError(f"The class texts of {bad} have no end-of-text token.")
    behind = torch.arange(ids.shape[1]) > end_of_text_positions(ids, clip_config)[:, None]
    alike = defaultdict(list)
    for name, row in zip(
        config.class_names, ids.masked_fill(behind, 0).view(len(config.class_names), -1), strict=True
    ):
        alike[row.numpy().tobytes()].append(name)
    if clashes := [same for same in alike.values() if len(same) > 1]:
        raise ValueError(f"The class texts of {clashes[:SHOWN]} are the same tokens, so no image could be told apart.")
