"""Both encoders with prompts in, without the work that changes no result; `Savings` switches it on and off."""

from .image_cache import ImageCache
from .savings import Savings

__all__ = ["ImageCache", "Savings"]
