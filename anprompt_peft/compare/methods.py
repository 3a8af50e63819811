"""The methods that are compared on a user's photos, the cheapest first, and what they are trained with.

Shots are not augmented, so that the frozen CLIP encodes each image once for all methods that learn on its features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..evaluation.peers.protocol import Method
from ..evaluation.peers.registry import make_method
from ..evaluation.peers.searched import Searched

ZERO_SHOT, ENSEMBLE, PROBE = "zero-shot", "zero-shot-ensemble", "linear-probe"


@dataclass(frozen=True)
class Compared:
    """A method of the comparison.

    Args:
        title (`str`): what sentences call it.
        settings (`Mapping`): in place of those of its preset.
        candidates (`Sequence[Mapping]`): settings that folds over the shots choose among, if there are any.
        tunes (`bool`): whether it trains through the encoders, which takes by far the longest.
    """

    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    candidates: Sequence[Mapping[str, Any]] = ()
    tunes: bool = False


COMPARED: Mapping[str, Compared] = {
    ZERO_SHOT: Compared("zero-shot CLIP"),
    ENSEMBLE: Compared("zero-shot CLIP with an ensemble of templates"),
    PROBE: Compared("the linear probe", candidates=[{"C": C} for C in (1.0, 10.0, 100.0, 1000.0)]),
    "tip-adapter-f": Compared(
        "Tip-Adapter-F",
        candidates=[{"views": 0, "recipe": {"learning_rate": rate, "augment": False}} for rate in (0.001, 0.01, 0.03)],
    ),
    "prolip": Compared("ProLIP", {"recipe": {"learning_rate": 0.001, "augment": False}}),
    "lora": Compared(
        "LoRA",
        {
            "templates": [],
            "steps_per_shot": None,
            "recipe": {"learning_rate": 0.001, "epochs": 10, "batch_size": 8, "augment": False},
        },
        tunes=True,
    ),
    "anprompt": Compared("ANPrompt", {"recipe": {"augment": False}}, tunes=True),
}
"""By the names of their presets, the cheapest first."""


def compared_method(name: str) -> Method:
    """Return a method of [`COMPARED`] with its settings."""
    each = COMPARED[name]
    if each.candidates:
        return Searched(name, tuple(each.candidates))
    return make_method(name, **each.settings)


def with_steps(method: Any, steps: int) -> Method:
    """Return a method that trains so many steps."""
    return replace(method, recipe=replace(method.recipe, steps=steps))
