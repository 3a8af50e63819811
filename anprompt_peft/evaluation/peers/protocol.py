"""What a method must implement to be measured beside the others."""

from __future__ import annotations

from dataclasses import asdict, field, fields
from typing import Any, Protocol

from ..backbone import Backbone
from ..task import ClassTexts, Fitted, ImageSet


class Method(Protocol):
    """A way to adapt CLIP. An implementation is a frozen dataclass whose fields are its settings.

    One that computes something else from the same settings than before has a `revision`, a number that is part of a
    cell's key unless it is 0. One that is made of another method has `for_data(name)`, which returns it with that
    method's settings for a data set filled in. One that not every model has a place for has `check(model)`, which
    takes the configuration alone as well, and raises `ValueError`.
    """

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> Fitted:
        """Learn from labelled images.

        Args:
            backbone (`Backbone`): must be left as it is; `backbone.copy()` gives a CLIP to change.
            shots (`ImageSet`): labels are positions in the classes.
            classes (`ClassTexts`): the classes to learn.
            seed (`int`): of all random numbers; the same seed gives the same result on the same machine.
        """


ADDED = "added"


def added(default: Any) -> Any:
    """Return a setting that a method did not have at first: at its default it is not part of a cell's key."""
    return field(default=default, metadata={ADDED: True})


def settings_of(method: Any) -> dict[str, Any]:
    """Return a method's settings, without those that were added to it later and stand at their defaults."""
    added = [each for each in fields(method) if ADDED in each.metadata]
    unused = {each.name for each in added if getattr(method, each.name) == each.default}
    return {name: value for name, value in asdict(method).items() if name not in unused}
