"""What is measured: images with labels, classes as they are written, and tasks made of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Protocol

import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor

from ..data import class_names_of
from ..data.columns import labels_of
from ..data.images import IMAGE
from ..data.transform import ClipTransform

CACHED_BYTES = 4 * 10**9
BATCH = 100

ImageChange = Callable[[Image.Image], Image.Image]
"""Makes another image of an image, a blurred one, say."""


@dataclass(frozen=True)
class ClassTexts:
    """C classes that compete, and how they are written."""

    names: tuple[str, ...]  # in the order of the labels
    templates: tuple[str, ...] = ("a photo of a {}.",)  # T texts with {} for the name
    written: tuple[str, ...] = ()  # C names as the texts spell them, misspelt ones, say; default: the names
    ensemble: tuple[str, ...] = ()  # the data set's, for methods that average them in place of the templates
    other_data: bool = False  # whether they belong to another data set than the shots, a target of cross-data

    def __post_init__(self) -> None:
        object.__setattr__(self, "written", self.written or self.names)
        if len(self.written) != len(self.names):
            raise ValueError(f"{len(self.written)} written names do not fit {len(self.names)} classes.")
        if not self.templates:
            raise ValueError("templates is empty: give at least one text with {} for the class name.")

    @property
    def texts(self) -> list[str]:
        """The `C * T` texts, those of one class after the other."""
        return [template.replace("{}", name) for name in self.written for template in self.templates]

    def in_ensemble(self, wanted: bool = True) -> ClassTexts:
        """Return the classes with the ensemble as their templates, if it is wanted and there is one."""
        return replace(self, templates=self.ensemble) if wanted and self.ensemble else self


@dataclass(frozen=True, eq=False)
class ImageSet:
    """n labelled images, decoded and transformed once."""

    dataset: Dataset  # with columns image and label, a ClassLabel
    transform: ClipTransform  # without augmentation
    augmentation: ClipTransform | None = None  # with it, for training
    change: ImageChange | None = None  # applied to every image before the transform
    keep: bool = True  # whether pixel values stay in memory, if all of them take less than 4 GB
    within: tuple[ImageSet, Tensor] | None = None  # images of which these are some rows: features are theirs

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return tuple(class_names_of(self.dataset))

    @cached_property
    def labels(self) -> Tensor:
        """Positions in [`class_names`], int64 `[n]`."""
        return torch.from_numpy(labels_of(self.dataset)).long()

    def select(self, rows: Tensor) -> ImageSet:
        """Return some of the images, int64 `[m]`; their features are rows of those of all, which are computed once."""
        return replace(self, dataset=self.dataset.select(rows.tolist()), within=(self, rows))

    def changed(self, change: ImageChange) -> ImageSet:
        """Return the same images, each with a change made to it before it is transformed."""
        return replace(self, change=change, within=None)

    def pixels(self, rows: Tensor | None = None, augment: bool = False) -> Tensor:
        """Return the pixel values of some images, or of all: float32 `[m, 3, H, W]`, on the CPU.

        Augmentation draws random crops and mirroring from torch's random numbers.
        """
        if augment and self.augmentation is None:
            raise ValueError("these images have no augmentation: give ImageSet a ClipTransform with augment=True.")
        if self._cached is not None and not augment:
            return self._cached if rows is None else self._cached[rows]
        return self._transformed(torch.arange(len(self)) if rows is None else rows, augment)

    def batches(self, size: int = BATCH) -> Iterator[Tensor]:
        """Yield the pixel values of all images in order, `[<= size, 3, H, W]` at a time."""
        for rows in torch.arange(len(self)).split(size):
            yield self.pixels(rows)

    @cached_property
    def _cached(self) -> Tensor | None:
        if self.within is not None:
            whole, rows = self.within
            return None if whole._cached is None else whole._cached[rows]
        width, height = self.transform.crop
        if not self.keep or len(self) * 3 * width * height * 4 > CACHED_BYTES:
            return None
        return torch.cat([self._transformed(rows, False) for rows in torch.arange(len(self)).split(BATCH)])

    def _transformed(self, rows: Tensor, augment: bool) -> Tensor:
        images = self.dataset.with_format(None)[rows.tolist()][IMAGE]
        if self.change is not None:
            images = [self.change(image) for image in images]
        transform = self.augmentation if augment and self.augmentation else self.transform
        return transform({IMAGE: images})["pixel_values"]


@dataclass(frozen=True)
class Part:
    """Images to measure on, whose labels are positions in the classes that compete for them."""

    name: str  # base, new, test, or the name of a target
    images: ImageSet
    classes: ClassTexts
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=lambda: MappingProxyType({}))  # for robustness


@dataclass(frozen=True)
class Task:
    """A few images to learn from, whose labels are positions in the classes, and parts to measure on."""

    shots: ImageSet
    classes: ClassTexts
    parts: tuple[Part, ...]  # at least one


class Fitted(Protocol):
    """A method after it has learned from the shots.

    If the data chose some of its settings, `chosen` holds them as JSON values by name, for the record of a cell. If it
    can be saved, `saved` holds the tensors of its file by name, on any device.
    """

    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        """Return the logits of n images for any C classes, learned or not: at least float32 `[n, C]`, on the CPU.

        A softmax over them gives the method's probabilities.
        """
