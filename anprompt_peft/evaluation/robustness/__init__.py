"""How accuracy falls with graded perturbations of class texts and images that training never saw."""

from ..adapter import FittedAdapter
from .curves import Curve, Family, Level, Record, Robustness, measure_robustness, summarise
from .images import IMAGE_FAMILIES, ImageFamily
from .phrasing import FORMS, HELD_OUT, PHRASING, UNDECIDED, UNDECIDED_FORMS, phrasing_families
from .texts import TextFamily, description_family, synonym_family, text_families

__all__ = [
    "FORMS",
    "HELD_OUT",
    "IMAGE_FAMILIES",
    "PHRASING",
    "UNDECIDED",
    "UNDECIDED_FORMS",
    "Curve",
    "Family",
    "FittedAdapter",
    "ImageFamily",
    "Level",
    "Record",
    "Robustness",
    "TextFamily",
    "description_family",
    "measure_robustness",
    "phrasing_families",
    "summarise",
    "synonym_family",
    "text_families",
]
