"""Import paths of version 0.1.0, which stay valid: `anprompt_peft.names` is `anprompt_peft.data.names`, and so on."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    f"{__package__}.{old}": f"{__package__}.{new}"
    for old, new in {
        "card": "publish.card",
        "checkpoint": "training.checkpoint",
        "classes": "method.class_texts",
        "config": "method.config",
        "distributed": "fast.sharding",
        "export": "serve.onnx",
        "facts": "publish.facts",
        "features": "method.features",
        "fingerprint": "fast.fingerprint",
        "hub": "publish.hub",
        "images": "data.images",
        "layer": "method.layer",
        "losses": "method.losses",
        "model": "tuner",
        "names": "data.names",
        "noise": "method.noise",
        "perturb": "method.perturb",
        "prediction": "serve.classify",
        "registration": "method.registration",
        "repeatable": "training.repeatable",
        "report.tables": "evaluation.tables",
        "sampling": "data.splits",
        "transform": "data.transform",
    }.items()
}


class _MovedFinder(MetaPathFinder, Loader):
    """Answers an old path with the very module that took its place, imported when it is asked for."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(MOVED[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state  # the import system has put the old path's there


def keep_old_paths() -> None:
    """Let the import system find the old paths; a second call does nothing."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())
