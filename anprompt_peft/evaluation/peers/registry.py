"""Methods by name. A preset is a file in `presets/`: the class, its published settings and where they come from."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_origin, get_type_hints

from ..benchmarks.catalog import find_entry
from .protocol import Method
from .training import Recipe

PRESETS = Path(__file__).parent / "presets"
WARMUPS: Mapping[str, Callable[[int], float]] = {
    "default": lambda epochs: min(1, epochs / 10),
    "paper": lambda epochs: 1 if epochs > 1 else 0,
}
"""Epochs of the warm-up of `anprompt_peft.training`'s recipes, for a number of epochs."""
CLASSES = {
    "anprompt_peft.evaluation.peers.coop:CoOp": f"{__package__}.prompts:CoOp",
    "anprompt_peft.evaluation.peers.ivlp:IVLP": f"{__package__}.prompts:IVLP",
    "anprompt_peft.evaluation.peers.vpt:VPT": f"{__package__}.prompts:VPT",
}
"""Classes that have moved: what presets and keys of grid cells go on calling each, and where it is now."""


@dataclass(frozen=True)
class Preset:
    """A method with settings.

    Args:
        method (`str`): its class, as `module:Class` or as [`CLASSES`] calls it.
        settings (`Mapping`): values of the class's fields.
        source (`str`): where the settings come from.
        differs (`str`): how the method differs from what was published.
        exceptions (`Mapping`): by the catalog's names of data sets, the settings that are published for these alone.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    differs: str = ""
    exceptions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def exceptions_for(self, data: str) -> Mapping[str, Any]:
        """Return the settings for a data set alone, by a name that the catalog knows it by."""
        entry = find_entry(data)
        return self.exceptions.get(entry.name, {}) if entry else {}


def _presets() -> Mapping[str, Preset]:
    files = sorted(PRESETS.glob("*.json"), key=lambda file: file.stem)
    return MappingProxyType({file.stem: Preset(**json.loads(file.read_text(encoding="utf-8"))) for file in files})


METHODS: Mapping[str, Preset] = _presets()
"""The presets by name. Their modules are imported when a method is made."""


def make_method(name: str, data: str = "", /, **settings: Any) -> Method:
    """Return a method with its preset's settings, and others in their place.

    Args:
        name (`str`): one of [`METHODS`], or `module:Class` for a custom method: a dataclass with `fit`. Modules
            of the current folder are found.
        data (`str`): the data set, for the preset's exceptions; those of the catalog have some.
        settings: values of its fields. A mapping (`recipe={"epochs": 5}`) replaces only the values that it names.

    Raises:
        ValueError: if the method or a setting is unknown, or the module cannot be found.
    """
    if name not in METHODS and ":" not in name:
        raise ValueError(f"method {name!r} is unknown. Choose one of {list(METHODS)}, or module:Class for your own.")
    preset = METHODS.get(name) or Preset(name)
    kind = _class_of(preset.method)
    defaults = {each.name: _default(each) for each in dataclasses.fields(kind)}
    layers = (preset.settings, preset.exceptions_for(data), settings)
    given = set().union(*layers)
    if unknown := sorted(given - set(defaults)):
        raise ValueError(f"method {name!r} has no settings {unknown}. It has {list(defaults)}.")
    values = dict(defaults)
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(values[key], Mapping)
            values[key] = {**values[key], **value} if both else value
    hints = get_type_hints(kind)
    made = kind(**{key: _typed(value, hints[key]) for key, value in values.items() if key in given})
    return made.for_data(data) if hasattr(made, "for_data") else made


def _typed(value: Any, hint: Any) -> Any:
    """Return what JSON can only state as an object or an array as the recipe or tuple that the hint asks for."""
    if isinstance(value, Mapping) and Recipe in (hint, *get_args(hint)):
        return _recipe(value)
    return tuple(value) if isinstance(value, list) and get_origin(hint) is tuple else value


def _recipe(values: Mapping[str, Any]) -> Recipe:
    """Return a recipe. `warmup` names the trainer's recipe whose warm-up it has, unless it states `warmup_epochs`."""
    stated = {name: value for name, value in values.items() if name != "warmup"}
    if "warmup" in values and not stated.get("steps"):
        stated = {"warmup_epochs": WARMUPS[values["warmup"]](stated["epochs"]), **stated}
    elif "warmup" in values:
        stated = {"warmup_epochs": 1, **stated}
    return Recipe(**stated)


def _default(setting: dataclasses.Field) -> Any:
    """Return a field's default value, a recipe as the mapping of its items; `None` if there is none."""
    value = setting.default
    if setting.default_factory is not dataclasses.MISSING:
        value = setting.default_factory()
    if isinstance(value, Recipe):
        return dataclasses.asdict(value)
    return None if value is dataclasses.MISSING else value


def class_name(method: Method) -> str:
    """Return what the key of a cell calls a method's class: where it is, unless [`CLASSES`] says otherwise."""
    place = f"{type(method).__module__}:{type(method).__qualname__}"
    return next((name for name, each in CLASSES.items() if each == place), place)


@cache
def _class_of(path: str) -> Any:
    module, _, name = CLASSES.get(path, path).partition(":")
    if not module.startswith(f"{__package__}.") and "" not in sys.path:
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
