"""Methods by name. A preset is a file in `presets/`: the class, its published settings and where they come from."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_origin, get_type_hints

from .protocol import Method
from .training import Recipe

PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class Preset:
    """A method with settings.

    Args:
        method (`str`): where its class is, as `module:Class`.
        settings (`Mapping`): values of the class's fields.
        source (`str`): where the settings come from.
        differs (`str`): how the method differs from what was published.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    differs: str = ""


def _presets() -> Mapping[str, Preset]:
    files = sorted(PRESETS.glob("*.json"), key=lambda file: file.stem)
    return MappingProxyType({file.stem: Preset(**json.loads(file.read_text(encoding="utf-8"))) for file in files})


METHODS: Mapping[str, Preset] = _presets()
"""The presets by name. Their modules are imported when a method is made."""


def make_method(name: str, /, **settings: Any) -> Method:
    """Return a method with its preset's settings, and others in their place.

    Args:
        name (`str`): one of [`METHODS`], or `module:Class` for a method of one's own: a dataclass with `fit`. Modules
            of the current folder are found.
        settings: values of its fields. A mapping (`recipe={"epochs": 5}`) replaces only the values that it names.

    Raises:
        ValueError: if the method or a setting is unknown, or the module cannot be found.
    """
    if name not in METHODS and ":" not in name:
        raise ValueError(f"method {name!r} is unknown. Choose one of {list(METHODS)}, or module:Class for your own.")
    preset = METHODS.get(name) or Preset(name)
    kind = _class_of(preset.method)
    defaults = {each.name: _default(each) for each in dataclasses.fields(kind)}
    if unknown := sorted({*preset.settings, *settings} - set(defaults)):
        raise ValueError(f"method {name!r} has no settings {unknown}. It has {list(defaults)}.")
    values = dict(defaults)
    for layer in (preset.settings, settings):
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(values[key], Mapping)
            values[key] = {**values[key], **value} if both else value
    hints = get_type_hints(kind)
    given = preset.settings.keys() | settings.keys()
    return kind(**{key: _typed(value, hints[key]) for key, value in values.items() if key in given})


def _typed(value: Any, hint: Any) -> Any:
    """Return what JSON can only state as an object or an array as the recipe or tuple that the hint asks for."""
    if isinstance(value, Mapping) and Recipe in (hint, *get_args(hint)):
        return Recipe(**value)
    return tuple(value) if isinstance(value, list) and get_origin(hint) is tuple else value


def _default(setting: dataclasses.Field) -> Any:
    """Return a field's default value, a recipe as the mapping of its items; `None` if there is none."""
    value = setting.default
    if setting.default_factory is not dataclasses.MISSING:
        value = setting.default_factory()
    if isinstance(value, Recipe):
        return dataclasses.asdict(value)
    return None if value is dataclasses.MISSING else value


@cache
def _class_of(path: str) -> Any:
    module, _, name = path.partition(":")
    if not path.startswith(f"{__package__}.") and "" not in sys.path:
        sys.path.insert(0, "")
    try:
        kind = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"method {path!r}: there is no module {error.name!r} in this folder or installed.") from error
    if not dataclasses.is_dataclass(kind) or not hasattr(kind, "fit"):
        raise ValueError(f"method {path!r}: {module} must have a dataclass {name!r} with a method fit.")
    return kind
