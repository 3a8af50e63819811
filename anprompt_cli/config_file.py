"""Configuration files: defaults for the options of a command, and sections with fields of the adapter and Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

import typer

from .records import read_record
from .text import short

RECORD, RESULTS = "run.yaml", "results.json"
HUB_FIELDS = (
    "push_to_hub",
    "hub_token",
    "hub_model_id",
    "hub_private_repo",
    "hub_revision",
    "hub_strategy",
    "hub_always_push",
)
OWNED = {
    "adapter": {
        "class_names": "they come from the data; rename them with class_names or classes_file",
        "base_model_name_or_path": "use model",
        "inference_mode": "training sets it",
        "init_noise_prompts": "training sets it",
        "training_facts": "training sets it",
        "classifier_strength": "training finds it",
        "denoiser_rank": "the denoiser has it",
        "peft_type": "it is always ANPROMPT",
        "task_type": "no task class of PEFT fits CLIP",
        "auto_mapping": "training sets it",
        "peft_version": "training sets it",
    },
    "training": {
        "output_dir": "use output",
        "seed": "use seed",
        "use_cpu": "use device",
        "bf16": "use precision",
        "fp16": "use precision",
        "precision": "use precision",
        "resume_from_checkpoint": "use --resume",
        "remove_unused_columns": "training sets it",
        "label_names": "training sets it",
        **dict.fromkeys(HUB_FIELDS, "use --push-to-hub, or `anprompt push` afterwards"),
    },
}
"""The sections of a file, with their fields that it cannot set, and why."""
NOT_IN_FILE = ("config", "resume")

Values = dict[str, Any]
Parse = Callable[[Values], tuple[Values, dict[str, Values]]]
"""Makes of a file's values defaults of the options, by name, and sections."""


@dataclass
class State:
    """What one call of the command line carries from its options to its end: `--debug`, and a file's sections."""

    debug: bool = False
    sections: dict[str, Values] = field(default_factory=dict)


def set_defaults(
    context: typer.Context, path: Path | None, sections: Iterable[str], parse: Parse, aliases: bool = False
) -> Path | None:
    """Make what `parse` finds in a file the defaults of the options and the command's sections; return the path."""
    if path is not None:
        try:
            record = read_record(path, aliases)
            if not isinstance(record, dict):
                raise ValueError("it must hold keys with values, such as `shots: 16`.")
            values = {str(name).replace("-", "_"): value for name, value in record.items()}
            known: dict[str, Any] = {each.name: each for each in context.command.params}
            for name in values:
                check_known("", name, {*known.keys() - NOT_IN_FILE, *sections})
            defaults, context.obj.sections = parse(values)
            repeated = [name for name in defaults if getattr(known[name], "multiple", False)]
            context.default_map = {**defaults, **{name: _listed(defaults[name]) for name in repeated}}
        except (OSError, ValueError) as error:
            raise typer.BadParameter(f"{path}: {error}") from None
    return path


def filled(options: Any) -> dict[str, tuple[str, str]]:
    """Return, by option, the section and field of a configuration file that it stands for."""
    found = {each.name: each.metadata.get("fills") for each in fields(options)}
    return {name: tuple(place.split(".")) for name, place in found.items() if place}


def take_sections(values: Values, options: type[Any]) -> tuple[Values, dict[str, Values]]:
    """Return what a file says of the options, and its sections, in which no option may stand a second time."""
    sections = {section: values.pop(section, None) or {} for section in OWNED}
    for section, given in sections.items():
        if not isinstance(given, dict):
            raise ValueError(f"{section} must hold fields with values, not {short(given)}.")
    for option, (section, name) in filled(options).items():
        if values.get(option) is not None and name in sections[section]:
            raise ValueError(f"{option} and {section}.{name} are the same setting. Keep one.")
    return values, sections


def check_fields(section: str, values: Mapping[str, Any], record: type[Any]) -> None:
    """Raise `ValueError` for fields of a section that its dataclass lacks or a run sets, and values of other types."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    exact = ConfigDict(arbitrary_types_allowed=True, strict=True)
    hints, owned = get_type_hints(record), OWNED[section]
    allowed = [each.name for each in fields(record) if each.name not in owned]
    for name, value in values.items():
        if name in owned:
            raise ValueError(f"{section}.{name} cannot be set here: {owned[name]}.")
        check_known(f"{section}.", name, allowed)
        try:
            TypeAdapter(hints[name], config=exact).validate_python(value)
        except ValidationError as error:
            wanted = dict.fromkeys(detail["msg"] for detail in error.errors())
            raise ValueError(f"{section}.{name}={short(value)}: {' or '.join(wanted)}.") from None


def check_known(prefix: str, name: str, allowed: Iterable[str]) -> None:
    """Raise `ValueError`, with the closest and all allowed names, unless `name` is one of them."""
    allowed = sorted(allowed)
    if name not in allowed:
        close = get_close_matches(name, allowed, n=1)
        meant = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown key {short(prefix + name)}.{meant} Allowed: {', '.join(allowed)}.")


def _listed(value: Any) -> Any:
    """Return a single value of an option that may be repeated as a list."""
    return [value] if isinstance(value, (str, int, float)) else value
