"""Ways to adapt CLIP that are measured beside each other, by name."""

from ..task import Fitted
from .protocol import Method
from .registry import METHODS, Preset, make_method
from .training import Batch, Recipe, seeded, train

__all__ = ["METHODS", "Batch", "Fitted", "Method", "Preset", "Recipe", "make_method", "seeded", "train"]
