"""How importing this package changes methods of PEFT and transformers: each is wrapped, once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any


def wrap(owner: type[Any], name: str, own: Callable[..., Any]) -> None:
    """Let a method, or class method, be `own(stock, *args, **kwargs)`; one that is wrapped already stays."""
    found: Any = inspect.getattr_static(owner, name)
    bound = isinstance(found, classmethod)
    stock = found.__func__ if bound else found
    if getattr(stock, "_anprompt_wrapped", False):
        return

    @wraps(stock)
    def method(*args: Any, **kwargs: Any) -> Any:
        return own(stock, *args, **kwargs)

    method._anprompt_wrapped = True  # type: ignore[attr-defined]
    setattr(owner, name, classmethod(method) if bound else method)
