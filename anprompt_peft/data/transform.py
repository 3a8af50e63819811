"""CLIP's image preprocessing as a transform of a data set, with the augmentation of training."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from PIL import Image
from torch.utils.data import Subset
from transformers.image_transforms import get_size_with_aspect_ratio

from .images import IMAGE, LABEL, MAX_PIXELS, STREAM_BATCH, to_rgb
from .processor import check_processor, crop_of

LEAST_AREA = 0.5
ASPECT_RATIOS = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
FILTER_REACH = 5
"""Pixels on either side that the widest of Pillow's filters needs, rounded up."""


class ClipTransform:
    """What CLIP's or SigLIP's processor does to a batch of a data set, for `dataset.with_transform(...)` or [`apply`].

    Without augmentation the pixels equal those of the processor's Pillow backend bit for bit. Only of images so
    elongated that they would be resized to more than 40 million pixels (800 to 1 for a side of 224), no more is
    resized than the crop shows, and a level of the 256 may differ by one. With augmentation, a random crop of 50 to
    100 % of the area takes the place of resizing and centre crop, and half of the images are mirrored. The random
    numbers are torch's, so `torch.manual_seed` or Trainer's `seed` fixes them, and every `DataLoader` worker and epoch
    has its own.

    Args:
        processor (`CLIPProcessor` or `CLIPImageProcessor`): gives size, crop, resampling, mean and std.
        augment (`bool`): random crop and mirroring, for training.

    Raises:
        ValueError: if the processor does not resize and crop, as CLIP's do, or squeeze to a height and a width, as
            SigLIP's do, or has values that cannot be computed with, such as sides of more than 4,096 pixels; the
            message names the field.
    """

    def __init__(self, processor: Any, augment: bool = False) -> None:
        processor = getattr(processor, "image_processor", processor)
        size, crop = dict(processor.size or {}), crop_of(processor)
        known = set(size) in ({"shortest_edge"}, {"height", "width"}) and set(crop) == {"height", "width"}
        if not (processor.do_resize and known):
            raise ValueError(
                f"{type(processor).__name__} has do_resize={processor.do_resize}, size={size}, "
                f"do_center_crop={processor.do_center_crop}, crop_size={dict(processor.crop_size or {})}; needed are "
                "both steps, with a size of shortest_edge or of height and width, and a crop of height and width, or "
                "resizing alone, to height and width."
            )
        check_processor(processor)
        self.augment = augment
        self.size, self.crop = size, (crop["width"], crop["height"])
        self.resample = Image.Resampling(int(processor.resample))
        self._values = _pixel_values_by_level(processor)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Turn images into pixel values.

        Args:
            batch (`dict`): `image`, n PIL images, and, unless they are unknown, `label`, n integers.

        Returns:
            `dict`: `pixel_values`, float32 `[n, 3, H, W]`, and, with labels, `labels`, n integers.
        """
        width, height = self.crop
        pixels = torch.empty(len(batch[IMAGE]), 3, height, width)
        prepare = self._crop_at_random if self.augment else self._crop_centre
        for image, planes in zip(batch[IMAGE], pixels.numpy(), strict=True):
            levels = np.asarray(prepare(to_rgb(image)))
            for channel, values in enumerate(self._values):
                np.take(values, levels[..., channel], out=planes[channel], mode="clip")
        return {"pixel_values": pixels, **({"labels": batch[LABEL]} if LABEL in batch else {})}

    def apply(self, dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
        """Return the data set with this transform on access; a stream, which has no `with_transform`, is mapped."""
        if isinstance(dataset, IterableDataset):
            columns = list(dataset.features)
            return dataset.map(self, batched=True, batch_size=STREAM_BATCH, remove_columns=columns)
        return dataset.with_transform(self)

    def plain(self) -> ClipTransform:
        """Return the same transform without augmentation."""
        same = copy.copy(self)
        same.augment = False
        return same

    def _crop_centre(self, image: Image.Image) -> Image.Image:
        if "shortest_edge" in self.size:
            height, width = get_size_with_aspect_ratio((image.height, image.width), self.size["shortest_edge"])
        else:
            height, width = self.size["height"], self.size["width"]
        left, top = (width - self.crop[0]) // 2, (height - self.crop[1]) // 2
        window = left, top, left + self.crop[0], top + self.crop[1]
        if width * height > MAX_PIXELS:
            return _resized_window(image, (width, height), window, self.resample)
        return image.resize((width, height), self.resample).crop(window)

    def _crop_at_random(self, image: Image.Image) -> Image.Image:
        cropped = image.resize(self.crop, self.resample, box=random_box(*image.size))
        mirrored = torch.rand(()) < 0.5
        return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else cropped


def without_augmentation(dataset: Any) -> Any:
    """Return a data set without the augmentation of its [`ClipTransform`], if it has one; others as they are."""
    if isinstance(dataset, Subset):
        return Subset(without_augmentation(dataset.dataset), dataset.indices)
    transform = dataset.format["format_kwargs"].get("transform") if isinstance(dataset, Dataset) else None
    return dataset.with_transform(transform.plain()) if isinstance(transform, ClipTransform) else dataset


def random_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Draw a box (left, top, right, bottom) of 50 to 100 % of an image's area and an aspect ratio of 3/4 to 4/3."""
    least, most = map(math.log, ASPECT_RATIOS)
    for _ in range(CROP_ATTEMPTS):
        area, ratio, across, down = torch.rand(4).tolist()
        pixels = width * height * (LEAST_AREA + (1 - LEAST_AREA) * area)
        aspect = math.exp(least + (most - least) * ratio)
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int((width - w + 1) * across), int((height - h + 1) * down)
            return left, top, left + w, top + h
    # too elongated: the middle, as large as the ratios allow
    w, h = min(width, round(height * ASPECT_RATIOS[1])), min(height, round(width / ASPECT_RATIOS[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _resized_window(
    image: Image.Image, size: tuple[int, int], window: tuple[int, int, int, int], resample: Image.Resampling
) -> Image.Image:
    """Return `image.resize(size, resample).crop(window)`, up to rounding, without resizing the rest."""
    left, top, right, bottom = max(window[0], 0), max(window[1], 0), min(window[2], size[0]), min(window[3], size[1])
    first, last, x0, x1 = _source_of(left, right, image.width, size[0])
    upper, lower, y0, y1 = _source_of(top, bottom, image.height, size[1])
    part = image.crop((first, upper, last, lower))
    resized = part.resize((right - left, bottom - top), resample, box=(x0, y0, x1, y1))
    return resized.crop((window[0] - left, window[1] - top, window[2] - left, window[3] - top))


def _source_of(start: int, end: int, length: int, resized: int) -> tuple[int, int, float, float]:
    """Return first and last pixel of a side that a part of the resized side needs, and the part's ends from there."""
    scale = length / resized
    reach = math.ceil(FILTER_REACH * max(scale, 1)) + 1
    first, last = max(math.floor(start * scale) - reach, 0), min(math.ceil(end * scale) + reach, length)
    return first, last, start * scale - first, end * scale - first  # small: Pillow rounds them to float32


def _pixel_values_by_level(processor: Any) -> np.ndarray:
    """Let the processor itself say which value each of a channel's 256 levels becomes: float32 `[3, 256]`."""
    levels = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (1, 1, 3)))
    values = processor(levels, do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"]
    return values[0, :, 0].float().numpy()
