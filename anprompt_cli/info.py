"""`anprompt info`: what is in an adapter, from its JSON configuration and the header of its safetensors file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .adapters import (
    CLASSIFIER,
    CONFIG,
    DENOISER,
    METHOD,
    MODEL_CONFIG,
    WEIGHTS,
    is_classifier,
    locate,
    read_config,
)
from .options import AdapterOptions, command, flag
from .text import aligned, as_json

FROZEN = (
    "anprompt_noise_prompts", "anprompt_class_ids", "anprompt_clean_features", "anprompt_perturbed_features",
    "anprompt_denoiser_down", "anprompt_denoiser_up", "anprompt_classifier",
)  # fmt: skip
SHOWN = 10
OTHERS_CHOICES = {
    "base model": "base_model_name_or_path",
    "revision of it": "revision",
    "tokenizer": "tokenizer_name_or_path",
    "init_noise_prompts": "init_noise_prompts",
}
"""What an adapter asks for. Its tokenizer is taken only where the base model has no name, the last one never."""


@dataclass(frozen=True, kw_only=True)
class InfoOptions(AdapterOptions):
    """Options of `anprompt info`."""

    as_json: bool = flag("--json", "Print JSON.")


@command
def info(options: InfoOptions) -> None:
    """Show what is in an adapter or a text denoiser, without running or loading anything of it.

    * `anprompt info adapter`
    * `anprompt info my-name/my-adapter --revision v1 --json`

    Only the JSON configuration and the header of the safetensors file are read. Weights in a pickle are refused.
    """
    folder = locate(options.adapter, options.revision, (METHOD, DENOISER, CLASSIFIER))
    if is_classifier(folder):
        config = read_config(folder, MODEL_CONFIG)
        known = {name: config.get(name) for name in ("method", "base_model_name_or_path", "class_names", "templates")}
        print(as_json(known) if options.as_json else aligned(list(known.items()), left=True))
        return
    record = describe(folder)
    rows = _of_denoiser(record) if record["config"].get("peft_type") == DENOISER else _of_adapter(record)
    sizes = [(name, f"{size:,} bytes") for name, size in record["files"].items()]
    print(as_json(record) if options.as_json else aligned([*rows, *sizes, *_facts(record)], left=True))


def describe(folder: Path) -> dict[str, Any]:
    """Return what the folder of an adapter holds, as JSON values."""
    config = read_config(folder)
    classes = config.get("class_names", [] if config.get("peft_type") == DENOISER else None)
    if not isinstance(classes, list):
        raise ValueError(f"class_names in {folder / CONFIG} must be a list.")
    return {
        "base_model": config.get("base_model_name_or_path"),
        "classes": classes,
        **_tensors(folder / WEIGHTS),
        "files": {name: (folder / name).stat().st_size for name in (WEIGHTS, CONFIG)},
        "config": config,
    }


def _tensors(path: Path) -> dict[str, Any]:
    """Return sizes and types from the header of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    sizes: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    try:
        with safe_open(path, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dict
                tensor = tensors.get_slice(name)
                count = math.prod(tensor.get_shape())
                sizes["frozen" if name.endswith(FROZEN) else "trained"] += count
                dtypes[tensor.get_dtype()] += count
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    return {"parameters": sizes["trained"], "frozen_values": sizes["frozen"], "dtypes": dict(dtypes)}


def _of_adapter(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    config, classes = record["config"], record["classes"]
    names = ", ".join(map(str, classes[:SHOWN])) + (", ..." if len(classes) > SHOWN else "")
    prompts = f"{config.get('num_virtual_tokens')} learnable, {config.get('num_noise_tokens')} noise"
    return [
        *((label, config[name]) for label, name in OTHERS_CHOICES.items() if config.get(name)),
        (f"classes ({len(classes)})", names),
        ("template", config.get("template")),
        ("prompts per layer", f"{prompts}, {config.get('noise_integration')}"),
        ("text layers", config.get("text_layers")),
        ("vision layers", config.get("vision_layers")),
        *_denoiser_within(config),
        ("parameters", _parameters(record)),
    ]


def _denoiser_within(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rank, source = config.get("denoiser_rank"), config.get("denoiser")
    return [] if rank is None else [("text denoiser", f"rank {rank}{f', from {source}' if source else ''}")]


def _of_denoiser(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    config = record["config"]
    return [
        ("method", "LoRA, as a text denoiser is"),
        *((label, config[name]) for label, name in OTHERS_CHOICES.items() if config.get(name)),
        ("rank", config.get("r")),
        ("matrices", config.get("target_modules")),
        ("parameters", _parameters(record)),
    ]


def _parameters(record: Mapping[str, Any]) -> str:
    return f"{record['parameters']:,} trained, {record['frozen_values']:,} frozen ({', '.join(record['dtypes'])})"


def _facts(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return what the adapter says about its training, where strangers may have written anything."""
    facts = record["config"].get("training_facts")
    if not isinstance(facts, dict):
        return []
    arguments, metrics = facts.get("arguments"), facts.get("metrics")
    rows = [(label, facts.get(key)) for label, key in (("trained on", "training_data"), ("licence", "license"))]
    if isinstance(arguments, dict):
        rows.append(("trained with", ", ".join(f"{name}={value}" for name, value in arguments.items())))
    for metric in metrics if isinstance(metrics, list) else ():
        if isinstance(metric, dict):
            where = ", ".join(str(metric[key]) for key in ("dataset", "split") if metric.get(key))
            label = str(metric.get("name") or metric.get("type"))
            interval = metric.get("interval")
            between = f" [{', '.join(map(_short, interval))}]" if isinstance(interval, list) else ""
            rows.append((label, f"{_short(metric.get('value'))}{between} on {where}"))
    return [(label, value) for label, value in rows if value]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
