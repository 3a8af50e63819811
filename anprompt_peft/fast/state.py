"""What an adapted model has besides its weights: what it was asked for, and cached results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from transformers import CLIPModel

from ..method.class_texts import ClassSet
from .fingerprint import Fingerprint
from .image_cache import ImageCache
from .plan import ASKED
from .savings import Savings

T = TypeVar("T")


@dataclass
class State:
    """Set when the first adapter is injected, deleted by `unload()`.

    Attributes:
        decomposes (`bool`): whether CLIP's layers are built as `blocks` takes them to be.
        savings (`Savings`): how a step runs.
        image_cache (`ImageCache`, *optional*): where the frozen work on images is cached.
        base_labels (`tuple`): `id2label` and `label2id` of the model's configuration before the first adapter.
        classes (`ClassSet`, *optional*): the classes asked for; `None` means those of the active adapter.
        class_weights (`dict[str, Tensor]`): `[C]` each, of the cross entropies over an adapter's classes by the
            adapter's name, and over the classes asked for by `ASKED`.
        label_smoothing (`float`): of the cross entropies.
        shards (`bool`): whether processes share the encoding of class texts.
        cards (`dict[Path, str]`): model cards as last written.
        pushed (`set[Path]`): folders that Trainer pushes to the Hub.
        evaluations (`int`): how often `eval()` was called. Cached results end with each.
    """

    decomposes: bool
    base_labels: tuple[dict[int, str] | None, dict[str, int] | None]
    savings: Savings = field(default_factory=Savings)
    image_cache: ImageCache | None = None
    classes: ClassSet | None = None
    class_weights: dict[str, Tensor] = field(default_factory=dict)
    label_smoothing: float = 0.0
    shards: bool = False
    cards: dict[Path, str] = field(default_factory=dict)
    pushed: set[Path] = field(default_factory=set)
    evaluations: int = 0
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


def state_of(clip: CLIPModel) -> State:
    """Return the state of an adapted model."""
    return clip.anprompt_state
