"""What one call of a model runs with, held for the call's thread: other threads may choose otherwise meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..method.class_texts import ClassSet
from ..method.features import evaluating
from ..method.layer import ANPromptHead


class Choice(NamedTuple):
    """What one call of a model runs with.

    Attributes:
        head (`ChoosingHead`): of the model.
        adapter (`str`): the active adapter, empty if there is none.
        disabled (`bool`): whether adapters are off.
        classes (`ClassSet`, *optional*): the classes asked for; `None` means those of the adapter.
    """

    head: ChoosingHead
    adapter: str
    disabled: bool
    classes: ClassSet | None


_LOCK = Lock()
_HELD: WeakKeyDictionary[nn.Module, tuple[int, ExitStack]] = WeakKeyDictionary()
_CHOICE: ContextVar[Choice | None] = ContextVar("anprompt_choice", default=None)


class ChoosingHead(ANPromptHead):
    """The method's head, whose adapter is that of the call that is going on in this thread."""

    @property
    def choice(self) -> Choice | None:
        """What the call that is going on in this thread runs with; `None` outside of calls and where compiled."""
        choice = None if torch.compiler.is_compiling() else _CHOICE.get()
        return choice if choice is not None and choice.head is self else None

    @contextmanager
    def holding(self, choice: Choice) -> Iterator[None]:
        """Let this thread's calls within a block run with a choice."""
        token = _CHOICE.set(choice)
        try:
            yield
        finally:
            _CHOICE.reset(token)

    @property
    def adapter(self) -> str:
        """Name of the active adapter, empty if there is none."""
        choice = self.choice
        return ANPromptHead.adapter.fget(self) if choice is None else choice.adapter  # type: ignore[attr-defined]

    @property
    def disable_adapters(self) -> bool:
        """Whether adapters are off."""
        choice = self.choice
        return self._disable_adapters if choice is None else choice.disabled  # torch.compile misreads super() here


@contextmanager
def evaluating_together(model: nn.Module) -> Iterator[None]:
    """Do as [`evaluating`]; where blocks of several threads overlap, modes come back after the last one."""
    with _LOCK:
        count, stack = _HELD.pop(model, (0, ExitStack()))
        stack.enter_context(evaluating(model))
        _HELD[model] = count + 1, stack
    try:
        yield
    finally:
        with _LOCK:
            count, stack = _HELD.pop(model)
            if count > 1:
                _HELD[model] = count - 1, stack
            else:
                stack.close()
