"""What an `adapter_config.json` may say: known fields, of their types, without anything that only a file can hold."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from huggingface_hub.dataclasses import type_validator
from peft.config import MIN_EXPECTED_CONFIG_KEYS
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from ..files import check_plain, short
from ..method.config import FORMAT_VERSION, ANPromptConfig
from ..method.registration import NAME
from ..publish.facts import TrainingFacts

SHOWN = 10
FORMAT_2 = {"text_update_rank": None, "rephrased_weight": 0.0}
MEANT = {1: {"frozen_share": 0.0, **FORMAT_2}, 2: FORMAT_2}  # what configurations of a format say without naming it
TYPES: dict[str, Any] = {
    **{field.name: get_type_hints(ANPromptConfig)[field.name] for field in fields(ANPromptConfig)},
    "tokenizer_name_or_path": str | None,
    "descriptions": dict[str, list[str] | str] | None,
}
KNOWN = {*TYPES, "format_version"}
CAPS = {
    "num_virtual_tokens": 1024,
    "num_noise_tokens": 1024,
    "latent_dim": 65536,
    "noise_draws": 1000,
    "rephrased_texts": 1000,
}
"""Far beyond any use; without them a small file could ask for much memory or time."""
CHOSEN = {"alpha", "prompt_mixing", "inference_logits", "frozen_share"}
ANSWERS = (
    "class_names", "templates", "num_virtual_tokens", "num_noise_tokens", "latent_dim", "text_layers", "vision_layers",
    "noise_integration", "noise_map", "projection_rank", "prototype_rank", "text_update_rank", *sorted(CHOSEN),
)  # fmt: skip
"""Fields that an adapter's answers depend on; those of `CHOSEN` leave its tensors as they are."""

logger = logging.getLogger(__name__)


def check_attributes(path: str, attributes: Any, config_class: type[Any]) -> dict[str, Any]:
    """Return what a configuration file holds, for use.

    Only that of this method's adapters is looked into.

    Args:
        path (`str`): the file, for messages.
        attributes: its JSON value.
        config_class (`type`): the class that reads it, for messages.

    Raises:
        TypeError: if it has no `peft_type`.
        ValueError: if it is of no method, was saved in a newer format, or a field has a wrong value.
    """
    if not isinstance(attributes, dict):
        raise ValueError(f"{path} must hold an object, not {type(attributes).__name__}.")
    if not attributes.keys() >= MIN_EXPECTED_CONFIG_KEYS:
        raise TypeError(
            f"The {config_class.__name__} config that is trying to be loaded is missing required keys: "
            f"{MIN_EXPECTED_CONFIG_KEYS}. {path} is no adapter's configuration."
        )
    method = attributes["peft_type"]
    if not isinstance(method, str) or method not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise ValueError(f"{path}: peft_type={short(method)} is no method of the installed PEFT.")
    if method != NAME:
        return attributes
    _check_format(attributes.get("format_version", 1))
    for name, value in attributes.items():
        if name in TYPES:
            _check_field(name, value)
    try:
        TrainingFacts.from_dict(attributes.get("training_facts"))
    except ValueError as error:
        raise ValueError(f"training_facts in an adapter's configuration: {error}") from error
    return attributes


def known_fields(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that this version knows; one warning, in PEFT's words, names the others."""
    if unknown := sorted(name for name in attributes if name not in KNOWN):
        names = ", ".join(map(short, unknown[:SHOWN])) + (", ..." if len(unknown) > SHOWN else "")
        warnings.warn(
            f"Unexpected keyword arguments [{names}] for class {ANPromptConfig.__name__}, these are ignored. This "
            "probably means that you're loading a configuration file that was saved using a higher version of the "
            "library. It is highly recommended to upgrade it before continuing: `pip install -U anprompt-peft`.",
            stacklevel=2,
        )
    meant: dict[str, Any] = MEANT.get(attributes.get("format_version", 1), {})
    return meant | {name: value for name, value in attributes.items() if name in KNOWN}


def check_same_adapter(own: ANPromptConfig, saved: ANPromptConfig, adapter: str, source: str) -> None:
    """Raise `ValueError` unless weights saved with a configuration can become those of an adapter that is there.

    What changes answers and no tensor is the user's choice: a difference is logged as a warning.
    """
    changed = [name for name in ANSWERS if getattr(own, name) != getattr(saved, name)]
    if not changed:
        return
    differences = "; ".join(f"{name}={getattr(own, name)!r} and {getattr(saved, name)!r}" for name in changed)
    if set(changed) <= CHOSEN:
        logger.warning(
            "The adapter %r keeps its own settings, which differ from those of %s: %s.", adapter, source, differences
        )
        return
    raise ValueError(
        f"The weights of {source} cannot become those of the adapter {adapter!r}, which is configured otherwise: "
        f"{differences}. Load them under another adapter_name, or delete_adapter({adapter!r}) first."
    )


def _check_field(name: str, value: Any) -> None:
    check_plain(name, value)
    kind = TYPES[name]
    if isinstance(value, int) and value > CAPS.get(name, value):
        raise ValueError(f"{name}={value!r} is more than this package handles, which is {CAPS[name]}.")
    try:
        type_validator(name, value, int | float if kind is float else kind)
    except TypeError:
        wanted = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
        raise ValueError(f"{name}={short(value)} in an adapter's configuration must be of type {wanted}.") from None


def _check_format(version: Any) -> None:
    """Raise `ValueError` unless this version of the package reads configurations of that `format_version`."""
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"format_version={short(version)} must be an integer, at least 1.")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"format_version={short(version)}: a newer version of this package saved the adapter, and this one reads "
            f"up to {FORMAT_VERSION}. Upgrade it: pip install --upgrade anprompt-peft."
        )
