"""Image processors: whether their values can be computed with, and whether a stranger's file describes a model's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, cached_file

from ..files import read_json, short
from ..method.config import mismatch

MAX_SIDE = 4096
"""Far beyond any CLIP; without it a small file could ask for much memory."""
MAX_PIXEL = 1e6  # value of a pixel, far beyond any CLIP
CHANNELS = 3
STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
FIELDS: dict[str, Any] = {
    **dict.fromkeys(STEPS, bool),
    "do_convert_rgb": bool | None,
    "size": int | dict[str, int],
    "crop_size": int | dict[str, int],
    "default_to_square": bool | None,
    "resample": int,
    "rescale_factor": float,
    "image_mean": float | list[int | float],
    "image_std": float | list[int | float],
}
"""What transformers reads for a CLIP, with the types that a file may give it."""
KINDS = {
    "CLIPImageProcessor": CLIPImageProcessorPil,
    "CLIPFeatureExtractor": CLIPImageProcessorPil,
    "SiglipImageProcessor": SiglipImageProcessorPil,
}
UNUSED = {
    "do_pad": (None, False),
    "pad_size": (None,),
    "use_square_size": (None, False),
    "data_format": (None, "channels_first"),
    "input_data_format": (None,),
    "device": (None,),
    "return_tensors": (None,),
}
"""What transformers reads as well, with the values that change nothing."""


def load_image_processor(
    name: str | Path, image_size: int, revision: str | None = None
) -> CLIPImageProcessorPil | SiglipImageProcessorPil:
    """Load an image processor from a folder or the Hub, once its file describes CLIP's or SigLIP's of this size."""
    place, settings = _read(name, revision)
    try:
        kind, values = _checked(settings)
        processor = kind(**values)
        check_processor(processor)
        _check_sides(dict(processor.size), crop_of(processor), image_size)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from error
    return processor


def crop_of(processor: Any) -> dict[str, int]:
    """Return height and width of the centre crop, or where there is none, of images squeezed to a size."""
    return dict((processor.crop_size if processor.do_center_crop else processor.size) or {})


def check_processor(processor: Any) -> None:
    """Raise `ValueError`, which names the field, if a step that is switched on cannot be computed."""
    for field, used in {"size": processor.do_resize, "crop_size": processor.do_center_crop}.items():
        sides = dict((used and getattr(processor, field)) or {})
        if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides.values()):
            raise ValueError(f"{field}={short(sides)} must have whole numbers from 1 to {MAX_SIDE}.")
    if processor.do_resize and (processor.resample is True or processor.resample not in list(Image.Resampling)):
        named = ", ".join(f"{each.value} ({each.name.lower()})" for each in sorted(Image.Resampling))
        raise ValueError(f"resample={short(processor.resample)} must be one of Pillow's filters: {named}.")
    factor = _numbers(processor, "rescale_factor", 1, above=0) if processor.do_rescale else [1.0]
    means = _numbers(processor, "image_mean", CHANNELS) if processor.do_normalize else [0.0]
    deviations = _numbers(processor, "image_std", CHANNELS, above=0) if processor.do_normalize else [1.0]
    brightest = max((255 * factor[0] + abs(mean)) / std for mean, std in zip(means, deviations, strict=True))
    if not brightest < MAX_PIXEL:
        raise ValueError(
            f"rescale_factor={processor.rescale_factor}, image_mean={short(processor.image_mean)} and "
            f"image_std={short(processor.image_std)} make pixel values of {brightest:g}, which are too large."
        )


def _read(name: str | Path, revision: str | None) -> tuple[str, Any]:
    """Return the settings, and the file where they stand; transformers looks for them in the same order."""
    for file in (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME):
        try:
            path = cached_file(str(name), file, revision=revision)
        except OSError as error:
            missing = error
            continue
        record = read_json(str(path))
        if not isinstance(record, dict):
            raise ValueError(f"{path} must hold an object, not {short(record)}.")
        if file == IMAGE_PROCESSOR_NAME:
            return str(path), record
        if "image_processor" in record:
            return f"{path}: image_processor", record["image_processor"]
        missing = OSError(f"{path} has no image_processor.")
    raise missing


def _checked(settings: Any) -> tuple[type[Any], dict[str, Any]]:
    """Return the class, and the fields that say something; others, as in transformers, are ignored."""
    if not isinstance(settings, dict):
        raise ValueError(f"it must be an object, not {short(settings)}.")
    kind = settings.get("image_processor_type", settings.get("feature_extractor_type", "CLIPImageProcessor"))
    known = KINDS.get(kind.removesuffix("Fast").removesuffix("Pil")) if isinstance(kind, str) else None
    if known is None:
        raise ValueError(f"image_processor_type={short(kind)} must be {' or '.join(KINDS)}.")
    if known is SiglipImageProcessorPil:  # whose files say null of the crop that there is not
        settings = {name: value for name, value in settings.items() if value is not None}
    for name, value in settings.items():
        if name in FIELDS:
            if wrong := mismatch(value, FIELDS[name]):
                raise ValueError(f"{name}={short(value)} {wrong}.")
        elif name in UNUSED and value not in UNUSED[name]:
            raise ValueError(f"{name}={short(value)} is nothing that CLIP's preprocessing does. Remove it.")
        elif name not in UNUSED and hasattr(CLIPImageProcessorPil, name):
            raise ValueError(f"{short(name)} is not a setting of an image processor. Remove it.")
    for step in STEPS:
        if not settings.get(step, True) and not (step == "do_center_crop" and known is SiglipImageProcessorPil):
            raise ValueError(f"{step}=False: a CLIP needs this step. Set it to true.")
    return known, {name: value for name, value in settings.items() if name in FIELDS}


def _check_sides(size: dict[str, int], crop: dict[str, int], image_size: int) -> None:
    if crop != {"height": image_size, "width": image_size}:
        raise ValueError(
            f"crop_size={short(crop)} does not fit the vision model, whose image_size is {image_size} "
            f"({image_size} x {image_size} pixels)."
        )
    if set(size) not in ({"shortest_edge"}, {"height", "width"}):
        raise ValueError(f"size={short(size)} must have a shortest_edge, or a height and a width.")
    if min(size.values()) < image_size:
        raise ValueError(f"size={short(size)} is smaller than the crop of {image_size} pixels.")


def _numbers(processor: Any, field: str, count: int, above: float = -math.inf) -> list[float]:
    """Return finite numbers, of which one stands for all channels."""
    value = getattr(processor, field)
    numbers = np.ravel(value).tolist()
    numbers = numbers * (count if len(numbers) == 1 else 1)
    if len(numbers) != count or not all(type(each) in (int, float) and above < each < math.inf for each in numbers):
        wanted = ("a finite number" if count == 1 else f"{count} finite numbers") + (" above 0" if above == 0 else "")
        raise ValueError(f"{field}={short(value)} must be {wanted}.")
    return numbers
