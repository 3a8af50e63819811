"""What an adapted model has besides its weights: what it was asked for, and cached results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from transformers import PreTrainedModel

from ..method.class_texts import ClassSet
from .fingerprint import Fingerprint
from .image_cache import ImageCache
from .plan import ASKED
from .savings import Savings

T = TypeVar("T")


@dataclass
class State:
    """Set when the first adapter is injected, deleted by `unload()`."""

    decomposes: bool  # whether CLIP's layers are built as `blocks` takes them to be
    base_labels: tuple[dict[int, str] | None, dict[str, int] | None]  # of the configuration before the first adapter
    savings: Savings = field(default_factory=Savings)
    image_cache: ImageCache | None = None
    classes: ClassSet | None = None  # asked for; `None` means those of the active adapter
    class_weights: dict[str, Tensor] = field(default_factory=dict)  # [C] each, by adapter, or `ASKED`
    label_smoothing: float = 0.0
    shards: bool = False  # whether processes share the encoding of class texts
    cards: dict[Path, str] = field(default_factory=dict)  # as last written
    pushed: set[Path] = field(default_factory=set)  # folders that Trainer pushes to the Hub
    evaluations: int = 0  # calls of `eval()`, with each of which cached results end
    _memos: dict[str, tuple[Fingerprint, int, Any]] = field(default_factory=dict)

    def ask_for(self, classes: ClassSet | None) -> None:
        """Set the classes asked for, and forget what belonged to those before."""
        self.classes = classes
        self.class_weights.pop(ASKED, None)

    def forget(self, adapter: str) -> None:
        """Forget what belongs to an adapter that is deleted or replaced."""
        self.class_weights.pop(adapter, None)
        self._memos.clear()

    def cached(
        self,
        name: str,
        fingerprint: Fingerprint,
        compute: Callable[[], T],
        keep_if: Callable[[T], bool] = lambda _: True,
    ) -> T:
        """Return `compute()`, called again only after `eval()` or when the fingerprint of this name differs."""
        memo = self._memos.get(name)
        if memo is not None and memo[0] == fingerprint and memo[1] == self.evaluations:
            return memo[2]
        evaluations, result = self.evaluations, compute()
        if keep_if(result):
            self._memos[name] = (fingerprint, evaluations, result)
        return result


def state_of(clip: PreTrainedModel) -> State:
    """Return the state of an adapted model."""
    return clip.anprompt_state
