"""The protocols of few-shot learning on CLIP, as CoOp's and CoCoOp's public code defines them.

* `base-to-new` (Zhou et al., CVPR 2022, arXiv 2203.05557): learn the first half of the classes, measure both halves,
  each among its own classes.
* `all-classes` ("generalised"): the same shots, but base and new classes compete.
* `few-shot` (Zhou et al., 2022, arXiv 2109.01134): learn and measure all classes.
* `cross-data`: learn all classes of a source, measure other data sets, each among its own classes. With ImageNet's
  variants as targets this is domain generalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ..data import ClassHalves, ClipTransform, ShotsError, class_names_of, halves
from ..data.columns import UNLABELLED, labels_of, with_labels
from .benchmarks.data import BenchmarkData
from .benchmarks.shots import COOP, Shots, draw_shots
from .task import ImageSet, Part, Task

BASE_TO_NEW, FEW_SHOT, ALL_CLASSES, CROSS_DATA = "base-to-new", "few-shot", "all-classes", "cross-data"
PROTOCOLS = (BASE_TO_NEW, FEW_SHOT, ALL_CLASSES, CROSS_DATA)
IN_ORDER, AT_RANDOM = "order", "random"
HALVES = (IN_ORDER, AT_RANDOM)


def make_task(
    data: BenchmarkData,
    processor: Any,
    protocol: str,
    shots: int,
    seed: int,
    *,
    halves: str = IN_ORDER,
    sampling: str | Path | Shots = COOP,
    targets: Sequence[BenchmarkData] = (),
) -> Task:
    """Draw shots and make a task of a protocol. No image is decoded until it is used.

    The shots are drawn over all classes, before these are cut into base and new: a class has the same shots in every
    protocol.

    Args:
        data (`BenchmarkData`): the data set, or the source.
        processor (`CLIPProcessor` or `CLIPImageProcessor`): says how images become pixel values.
        protocol (`str`): one of [`PROTOCOLS`].
        shots (`int`): images per class.
        seed (`int`): names the draw of the shots, and of the halves if they are drawn.
        halves (`str`): `order`: the first `ceil(C / 2)` label ids are base, as in the published tables. `random`: as
            many, drawn from the seed.
        sampling (`str`, `Path` or `Shots`): `coop` or `seeded`, see [`draw_shots`]; or what that drew, or a JSON file
            of [`Shots.save`], which stand for a draw with any `shots` and `seed`.
        targets (`Sequence[BenchmarkData]`): for `cross-data`, what to measure besides the source's own test set.

    Raises:
        ShotsError: if there are not enough images to draw.
        ValueError: for an unknown protocol, half or sampling, halves of one class, or targets that do not fit.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r} must be one of {', '.join(PROTOCOLS)}.")
    _check_targets(protocol, targets)
    if isinstance(sampling, Shots):
        drawn = sampling
    elif str(sampling).endswith(".json"):
        drawn = Shots.load(sampling, data)
    else:
        drawn = draw_shots(data, shots, seed, str(sampling))
    images, names = _Images(processor), data.class_names
    if protocol in (FEW_SHOT, CROSS_DATA):
        elsewhere = [images.part(each.name, each, each.class_names) for each in targets]
        parts = [
            images.part("test", data, names),
            *(replace(each, classes=replace(each.classes, other_data=True)) for each in elsewhere),
        ]
        return Task(images.shots(data, drawn, names), data.texts(), tuple(parts))
    both = class_halves(names, seed, halves)
    both.check_sizes()
    groups = {"base": both.base, "new": both.new}
    parts = [images.part(name, data, own if protocol == BASE_TO_NEW else names, own) for name, own in groups.items()]
    return Task(images.shots(data, drawn, both.base), data.texts(both.base), tuple(parts))


def class_halves(names: Sequence[str], seed: int, how: str = IN_ORDER) -> ClassHalves:
    """Cut classes, given in the order of their label ids, into base and new; base has `ceil(C / 2)`.

    Args:
        names (`Sequence[str]`): C class names.
        seed (`int`): for `random`.
        how (`str`): `order` or `random`; either keeps the order of the label ids within a half.

    Raises:
        ValueError: for any other `how`.
    """
    if how not in HALVES:
        raise ValueError(f"halves={how!r} must be one of {', '.join(HALVES)}.")
    in_order = halves(names)
    if how == IN_ORDER:
        return in_order
    base = set(np.random.default_rng(seed).permutation(len(names))[: len(in_order.base)].tolist())
    return ClassHalves(
        tuple(name for label, name in enumerate(names) if label in base),
        tuple(name for label, name in enumerate(names) if label not in base),
    )


def _check_targets(protocol: str, targets: Sequence[BenchmarkData]) -> None:
    names = ["test", *(target.name for target in targets)]
    if targets and protocol != CROSS_DATA:
        raise ValueError(f"targets are for the protocol {CROSS_DATA}, not for {protocol}.")
    if protocol == CROSS_DATA and not targets:
        raise ValueError(f"the protocol {CROSS_DATA} needs targets: data sets to measure besides the source.")
    if len(set(names)) < len(names):
        raise ValueError(f"targets need different names, and none may be 'test', got {', '.join(names[1:])}.")


class _Images:
    """Makes image sets that share their transforms."""

    def __init__(self, processor: Any) -> None:
        self.transform = ClipTransform(processor)
        self.augmentation = ClipTransform(processor, augment=True)

    def shots(self, data: BenchmarkData, drawn: Shots, names: Sequence[str]) -> ImageSet:
        """Return the shots of some classes, in the order in which they were drawn."""
        relabelled, numbers = _relabelled(data.train, names)
        rows = [row for row in drawn.train if numbers[row] != UNLABELLED]
        there = set(numbers[rows].tolist())
        if absent := [name for label, name in enumerate(names) if label not in there]:
            raise ShotsError(f"{data.name}: these classes have no image to train on: {', '.join(absent)}.")
        return ImageSet(relabelled.select(rows), self.transform, self.augmentation)

    def part(self, name: str, data: BenchmarkData, names: Sequence[str], only: Sequence[str] | None = None) -> Part:
        """Return the test images of the classes `only`, by default of all `names`, where the classes `names` compete.

        Raises:
            ValueError: if there are none.
        """
        relabelled, numbers = _relabelled(data.test, names)
        wanted = [label for label, each in enumerate(names) if only is None or each in only]
        rows = np.flatnonzero(np.isin(numbers, wanted))
        if not len(rows):
            raise ValueError(f"{data.name}: the split test has no images of the classes {', '.join(only or names)}.")
        return Part(name, ImageSet(relabelled.select(rows), self.transform), data.texts(names), data.synonyms)


def _relabelled(split: Dataset, names: Sequence[str]) -> tuple[Dataset, np.ndarray]:
    """Number the classes `names` from 0 on: the whole split, in which other images are unlabelled, and its labels."""
    number_of = {name: number for number, name in enumerate(names)}
    numbers = np.array([number_of.get(name, UNLABELLED) for name in class_names_of(split)], dtype=np.int64)
    labels = numbers[labels_of(split)]
    return with_labels(split, labels, names), labels
