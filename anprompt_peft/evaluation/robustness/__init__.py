"""How accuracy falls with graded perturbations of class texts and images that training never saw."""

from .adapter import FittedAdapter
from .curves import Curve, Level, Record, measure_curves, summarise
from .images import IMAGE_FAMILIES, ImageFamily
from .texts import TextFamily, description_family, synonym_family, text_families

__all__ = [
    "IMAGE_FAMILIES",
    "Curve",
    "FittedAdapter",
    "ImageFamily",
    "Level",
    "Record",
    "TextFamily",
    "description_family",
    "measure_curves",
    "summarise",
    "synonym_family",
    "text_families",
]
