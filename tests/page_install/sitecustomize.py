"""Run by Python itself at its start: what the variable HIDDEN_MODULES names is as good as not installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

PATH = list(sys.path)
HIDDEN = set(filter(None, os.environ.get("HIDDEN_MODULES", "").split(",")))


class Finder(PathFinder):
    """Finds modules as ever, but for the hidden ones."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if fullname.partition(".")[0] in HIDDEN else super().find_spec(fullname, path, target)


finders: list[Any] = sys.meta_path
finders[:] = [Finder if finder is PathFinder else finder for finder in finders]
