"""Loading as a whole or not at all: after an error the model is as before."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def restored_on_error(model: nn.Module) -> Iterator[None]:
    """Restore a model's modules, classes, attributes, hooks and trainability, but no tensor's values, on an error."""
    config: Any = model.config
    before = [(each, type(each), _contents(each)) for each in (*model.modules(), config)]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        for each, kind, contents in before:
            each.__class__ = kind
            _restore(vars(each), contents)
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
        raise


def _contents(owner: Any) -> dict[str, tuple[Any, Any]]:
    return {
        name: (value, copy.copy(value) if isinstance(value, (dict, list, set)) else None)
        for name, value in vars(owner).items()
    }


def _restore(attributes: dict[str, Any], contents: dict[str, tuple[Any, Any]]) -> None:
    attributes.clear()
    for name, (value, inner) in contents.items():
        attributes[name] = value
        if isinstance(value, list):
            value[:] = inner
        elif inner is not None:
            value.clear()
            value.update(inner)
