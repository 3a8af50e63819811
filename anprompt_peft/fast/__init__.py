"""Both encoders with prompts in, without the work that changes no result; `Savings` switches it on and off."""

from .image_cache import ImageCache
from .precision import PRECISIONS, choose_precision, multiplies_bfloat16, set_precision
from .savings import Savings

__all__ = ["PRECISIONS", "ImageCache", "Savings", "choose_precision", "multiplies_bfloat16", "set_precision"]
