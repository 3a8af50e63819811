"""Classifiers on a frozen CLIP that `anprompt compare` saves: a probe, a cache, a projection, or LoRA."""

from .config import CLIPClassifierConfig
from .loading import load_classifier
from .model import CLIPClassifier, register
from .saving import save_classifier

__all__ = [
    "CLIPClassifier",
    "CLIPClassifierConfig",
    "load_classifier",
    "register",
    "save_classifier",
]
