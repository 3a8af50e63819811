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
    """n texts as their encoder takes them."""

    input_ids: Tensor | None  # int64 [n, L] on the model's device, for CLIP's own forward
    prefixes: tuple[TextPrefix, ...] = ()  # for decomposed layers, of each template, whose texts take turns
    chunked: bool = False  # whether chunks are computed again in the backward pass
    shared: int | None = None  # number of all texts where other processes encode the rest


@dataclass(frozen=True)
class Plan:
    """All that a call decides; what is left is arithmetic on images and trained weights.

    It holds for a mode (training or evaluation), a state of gradients and autocast, and for one call where texts are
    drawn. C classes, m drawn texts, d the joint width.
    """

    adapter: str
    config: ANPromptConfig
    enabled: bool  # whether the adapter's prompts take part
    classes: ClassSet
    kind: LogitsKind  # of the logits that are returned
    decomposed: bool  # whether layers run decomposed, or CLIP's own forward
    training: bool
    with_labels: bool = False
    text_features: Tensor | None = None  # [C, d], normalised, cached: prompted features of the classes
    texts: Texts | None = None  # the class texts, where their features are not cached
    clean_text: Tensor | None = None  # [C, d], the frozen CLIP's features of the classes, for the ensemble
    text_targets: tuple[Tensor, Tensor] | None = None  # w and u, each [C, d], for the losses
    rephrased: Texts | None = None  # drawn for this call
    rephrased_targets: Tensor | None = None  # [m, d], the features to give them
    image_work: tuple[Tensor, Tensor] | None = None  # cached: images before the first prompts, frozen features [B, d]
    classifier: tuple[Tensor, Tensor] | None = None  # where in the classes its K are, int64 [K], and its rows [K, d]
    class_weights: Tensor | None = None  # [C], of the cross entropies
    label_smoothing: float = 0.0

    @property
    def with_frozen(self) -> bool:
        """Whether the frozen CLIP's image features are needed."""
        asked = self.with_labels or self.kind == "ensemble" or self.classifier is not None
        return self.enabled and asked

    def options(self) -> Pass:
        """Return the options of a pass with the adapter in, if it takes part."""
        return Pass(self.adapter, self.config) if self.enabled else Pass()
