"""The configuration file of `anprompt train`: defaults for its options, and fields of the adapter and the Trainer."""

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
SECTIONS = ("adapter", "training")
Parse = Callable[[Any, typer.Context], tuple[dict[str, Any], dict[str, dict[str, Any]]]]
"""Makes of a file's value defaults of the options, by name, and further sections."""
SHORTCUTS = {
    "template": ("adapter", "template"),
    "recipe": ("training", "recipe"),
    "epochs": ("training", "num_train_epochs"),
    "warmup_epochs": ("training", "warmup_epochs"),
    "batch_size": ("training", "per_device_train_batch_size"),
    "learning_rate": ("training", "learning_rate"),
    "class_weights": ("training", "class_weights"),
    "workers": ("training", "dataloader_num_workers"),
    "report_to": ("training", "report_to"),
}
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
NOT_IN_FILE = ("config", "resume")


@dataclass
class State:
    """What one call of the command line carries from its options to its end.

    Attributes:
        debug (`bool`): show where errors came from.
        sections (`dict[str, dict[str, Any]]`): what a configuration file says under `adapter` and `training`.
    """

    debug: bool = False
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)


def use_file(context: typer.Context, path: Path | None) -> Path | None:
    """Make a file's values the defaults of the options; without one, those of the run to resume.

    It is the callback of `--config`, which is read before all options but `--output` and `--resume`.

    Raises:
        BadParameter: if the file cannot be understood, or says something unknown.
        ValueError: if there is no run to resume.
    """
    output = context.params.get("output")
    if context.params.get("resume") and output is not None:
        if not (output / RECORD).is_file():
            raise ValueError(f"--resume: no run was begun in {output}, as there is no {RECORD} in it.")
        path = path or output / RECORD
    return set_defaults(context, path, _parse)


def set_defaults(context: typer.Context, path: Path | None, parse: Parse, aliases: bool = False) -> Path | None:
    """Make what `parse` finds in a file the defaults of the options, and the command's sections; return the path.

    Raises:
        BadParameter: if the file cannot be understood, or says something unknown.
    """
    if path is not None:
        try:
            context.default_map, context.obj.sections = parse(read_record(path, aliases), context)
        except (OSError, ValueError) as error:
            raise typer.BadParameter(f"{path}: {error}") from None
    return path


def effective(options: Mapping[str, Any], sections: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return options and sections as one record, with the options that stand for a field put into its section."""
    merged = {section: dict(sections.get(section, {})) for section in SECTIONS}
    for option, (section, name) in SHORTCUTS.items():
        if options.get(option) is not None:
            merged[section][name] = _alone(options[option]) if option == "template" else options[option]
    return {**{name: value for name, value in options.items() if name not in SHORTCUTS}, **merged}


def check_fields(section: str, values: Mapping[str, Any], record: type[Any]) -> None:
    """Check a section against the dataclass that it fills.

    Args:
        section (`str`): for messages.
        values (`Mapping`): what the section says.
        record (`type`): `ANPromptConfig` or `ANPromptTrainingArguments`.

    Raises:
        ValueError: for an unknown field, one that an option or training itself sets, or a value of another type.
    """
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


def _parse(record: Any, context: typer.Context) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    if not isinstance(record, dict):
        raise ValueError("it must hold keys with values, such as `shots: 16`.")
    values = {str(name).replace("-", "_"): value for name, value in record.items()}
    options = {option.name: option for option in context.command.params if option.name not in NOT_IN_FILE}
    for name in values:
        check_known("", name, {*options, *SECTIONS})
    sections = {section: values.pop(section, None) or {} for section in SECTIONS}
    for section, given in sections.items():
        if not isinstance(given, dict):
            raise ValueError(f"{section} must hold fields with values, not {short(given)}.")
    for option, (section, name) in SHORTCUTS.items():
        if values.get(option) is not None and name in sections[section]:
            raise ValueError(f"{option} and {section}.{name} are the same setting. Keep one.")
    return {name: _as_given(value, options[name]) for name, value in values.items()}, sections


def _alone(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _as_given(value: Any, option: Any) -> Any:
    """Return one value as a list where an option may be repeated."""
    return [value] if getattr(option, "multiple", False) and isinstance(value, str) else value
