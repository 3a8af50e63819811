"""Labelled images: loading, few-shot draws, splits, class names, checks and CLIP's preprocessing."""

from .checks import check_images
from .columns import class_names_of
from .images import CorruptImageError, RGBImage, open_image
from .loading import load_image_data
from .names import ClassHalves, halves, readable, readable_names
from .splits import ShotsError, few_shot, sample_shots, select_classes, split_data
from .transform import ClipTransform

__all__ = [
    "ClassHalves",
    "ClipTransform",
    "CorruptImageError",
    "RGBImage",
    "ShotsError",
    "check_images",
    "class_names_of",
    "few_shot",
    "halves",
    "load_image_data",
    "open_image",
    "readable",
    "readable_names",
    "sample_shots",
    "select_classes",
    "split_data",
]
