"""`Plan`: what one call of a model runs with, decided on the host before any arithmetic on images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..method.class_texts import ClassSet
from ..method.config import ANPromptConfig, LogitsKind
from ..method.features import Pass
from .text import TextPrefix

ASKED = ""
"""Stands for the classes asked for, where an adapter's name stands for its own."""


class Choice(NamedTuple):
    """Which adapter answers, whether it is on, and the classes asked for (`None`: its own); threads may differ."""

    adapter: str
    enabled: bool
    classes: ClassSet | None

    @property
    def owner_of_classes(self) -> str:
        """The adapter that has the classes, or `ASKED`."""
        return self.adapter if self.classes is None else ASKED


@dataclass(frozen=True)
class Texts:
    """n texts as their encoder takes them.

    Attributes:
        input_ids (`Tensor`, *optional*): int64 `[n, L]` on the model's device, for CLIP's own forward.
        prefixes (`tuple[TextPrefix, ...]`): for decomposed layers, of each template, whose texts take turns.
        chunked (`bool`): whether chunks are computed again in the backward pass.
        shared (`int`, *optional*): number of all texts where processes share them and other ones encode the rest.
    """

    input_ids: Tensor | None
    prefixes: tuple[TextPrefix, ...] = ()
    chunked: bool = False
    shared: int | None = None


@dataclass(frozen=True)
class Plan:
    """All that a call decides; what is left is arithmetic on images and trained weights.

    It holds for a mode (training or evaluation), a state of gradients and autocast, and for one call where texts are
    drawn. C classes, m drawn texts, d the joint width.

    Attributes:
        adapter (`str`): the adapter that answers.
        config (`ANPromptConfig`): its configuration.
        enabled (`bool`): whether its prompts take part.
        classes (`ClassSet`): the classes to tell apart.
        kind (`LogitsKind`): the logits that are returned.
        decomposed (`bool`): whether layers run decomposed, or CLIP's own forward.
        with_labels (`bool`): whether there will be losses.
        text_features (`Tensor`, *optional*): cached prompted features of the classes `[C, d]`, normalised.
        texts (`Texts`, *optional*): the class texts, where their features are not cached.
        clean_text (`Tensor`, *optional*): the frozen CLIP's features of the classes `[C, d]`, for the ensemble.
        text_targets (`tuple[Tensor, Tensor]`, *optional*): w and u `[C, d]`, for the losses.
        rephrased (`Texts`, *optional*): drawn texts, and in `rephrased_targets` the features `[m, d]` to give them.
        image_work (`tuple[Tensor, Tensor]`, *optional*): cached frozen work on the images of the call.
        class_weights (`Tensor`, *optional*): `[C]`, of the cross entropies, as their `label_smoothing`.
    """

    adapter: str
    config: ANPromptConfig
    enabled: bool
    classes: ClassSet
    kind: LogitsKind
    decomposed: bool
    with_labels: bool = False
    text_features: Tensor | None = None
    texts: Texts | None = None
    clean_text: Tensor | None = None
    text_targets: tuple[Tensor, Tensor] | None = None
    rephrased: Texts | None = None
    rephrased_targets: Tensor | None = None
    image_work: tuple[Tensor, Tensor] | None = None
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0

    @property
    def with_frozen(self) -> bool:
        """Whether the frozen CLIP's image features are needed."""
        return self.enabled and (self.with_labels or self.kind == "ensemble")

    def options(self) -> Pass:
        """Return the options of a pass with the prompts in, if they take part."""
        return Pass(self.adapter, self.config if self.enabled else None)
