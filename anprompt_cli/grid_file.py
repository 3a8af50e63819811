"""The configuration file of `anprompt benchmark`: defaults for its options, and settings of methods."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from .config_file import check_known, set_defaults

METHODS = "methods"


def use_grid(context: typer.Context, path: Path | None) -> Path | None:
    """Make a file's values the defaults of the options. It is the callback of `--config`.

    Raises:
        BadParameter: if the file cannot be understood, or says something unknown.
    """
    return set_defaults(context, path, _parse, aliases=True)


def choose_methods(
    wanted: Sequence[str] | None, settings: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return which methods to run: by the name in tables, what to make, and the settings that differ.

    Args:
        wanted (`Sequence[str]`, *optional*): of the option `--method`. Default: all that the file names.
        settings (`Mapping`): of the file, by name; `method` is what to make, where it is not the name.
    """
    chosen = {}
    for name in wanted or settings:
        values = dict(settings.get(name, {}))
        chosen[name] = (str(values.pop("method", name)), values)
    return chosen


def parse_seeds(texts: Sequence[str]) -> list[int]:
    """Return seeds given as numbers and ranges: `["1-3", "7"]` is 1, 2, 3, 7.

    Raises:
        ValueError: for another text.
    """
    seeds: list[int] = []
    for text in texts:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise ValueError(f"--seeds {text} must be a number, or a range such as 1-3.")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def _parse(record: Any, context: typer.Context) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    if not isinstance(record, dict):
        raise ValueError("it must hold keys with values, such as `shots: 16`.")
    values = {str(name).replace("-", "_"): value for name, value in record.items()}
    options = {option.name: option for option in context.command.params if option.name != "config"}
    for name in values:
        check_known("", name, {*options, METHODS})
    methods = values.pop(METHODS, None) or {}
    if not isinstance(methods, dict) or not all(isinstance(each or {}, dict) for each in methods.values()):
        raise ValueError(f"{METHODS} must hold names with settings, such as `coop: {{recipe: {{epochs: 50}}}}`.")
    listed = {
        name: value if isinstance(value, list) or not getattr(options[name], "multiple", False) else [value]
        for name, value in values.items()
    }
    return listed, {str(name): dict(each or {}) for name, each in methods.items()}
