"""What an `adapter_config.json` may hold: known fields, of their types."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from peft.config import MIN_EXPECTED_CONFIG_KEYS
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from ..files import check_plain, short
from ..method.config import FORMAT_VERSION, TYPES, ANPromptConfig, mismatch
from ..method.registration import NAME
from ..publish.facts import TrainingFacts

SHOWN = 10
FIELDS = {each.name: each for each in fields(ANPromptConfig)}
KNOWN = {*FIELDS, "format_version"}
CHOSEN = {"alpha", "prompt_mixing", "inference_logits", "frozen_share", "classifier_weight"}
ANSWERS = (
    "class_names", "templates", "num_virtual_tokens", "num_noise_tokens", "latent_dim", "text_layers", "vision_layers",
    "noise_integration", "noise_map", "projection_rank", "prototype_rank", "text_update_rank",
    "vision_lora_rank", "text_lora_rank", "denoiser_rank", "classifier_strength", *sorted(CHOSEN),
)  # fmt: skip
"""Fields that an adapter's answers depend on; those of `CHOSEN` leave its tensors as they are."""

logger = logging.getLogger(__name__)


def check_attributes(path: str, attributes: Any, config_class: type[Any]) -> dict[str, Any]:
    """Return what a configuration file holds, checked if it is of this method.

    Raises:
        TypeError: if it has no `peft_type`.
        ValueError: if it is of no method, was saved in a newer format, or a field has a wrong value.
    """
    if not isinstance(attributes, dict):
        raise ValueError(f"{path} must hold an object, not {type(attributes).__name__}.")
    if not attributes.keys() >= MIN_EXPECTED_CONFIG_KEYS:
        raise TypeError(
            f"The {config_class.__name__} config that is trying to be loaded is missing required keys: "
            f"{MIN_EXPECTED_CONFIG_KEYS}. {path} is not the configuration of an adapter."
        )
    method = attributes["peft_type"]
    if not isinstance(method, str) or method not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise ValueError(f"{path}: peft_type={short(method)} is not a method of the installed PEFT.")
    if method != NAME:
        return attributes
    _check_format(attributes.get("format_version", 1))
    for name, value in attributes.items():
        if name in FIELDS:
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
    version = attributes.get("format_version", 1)
    former = {name: each.metadata.get("formerly", {}) for name, each in FIELDS.items()}
    meant = {name: values[version] for name, values in former.items() if version in values}
    return meant | {name: value for name, value in attributes.items() if name in KNOWN}


def check_same_adapter(own: ANPromptConfig, saved: ANPromptConfig, adapter: str, source: str) -> None:
    """Raise `ValueError` if an adapter's tensors differ from those saved; warn if only its own choices differ."""
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
    """Raise `ValueError` for a value of a wrong type, or one that would need very much memory or time."""
    check_plain(name, value)
    checks = FIELDS[name].metadata
    if isinstance(value, int) and value > checks.get("cap", value):
        raise ValueError(f"{name}={value!r} is more than this package handles, which is {checks['cap']}.")
    if wrong := mismatch(value, checks.get("saved", TYPES[name])):
        raise ValueError(f"{name}={short(value)} in an adapter's configuration {wrong}.")


def _check_format(version: Any) -> None:
    """Raise `ValueError` unless this version of the package reads configurations of that `format_version`."""
    if wrong := mismatch(version, int, 1):
        raise ValueError(f"format_version={short(version)} {wrong}.")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"format_version={short(version)}: a newer version of this package saved the adapter, and this one reads "
            f"up to {FORMAT_VERSION}. Upgrade it: pip install --upgrade anprompt-peft."
        )
