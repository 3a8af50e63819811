"""The protocols of few-shot learning on CLIP, as CoOp's and CoCoOp's public code defines them.

* `base-to-new` (Zhou et al., CVPR 2022, arXiv 2203.05557): learn the first half of the classes, measure both halves,
  each among its own classes.
* `all-classes` ("generalised"): the same shots, but base and new classes compete.
* `few-shot` (Zhou et al., 2022, arXiv 2109.01134): learn and measure all classes.
* `cross-data`: learn all classes of a source, measure other data sets, each among its own classes. With ImageNet's
  variants as targets this is domain generalisation.
* `folds`: for data of which nothing is held out. The images to train on are cut into folds; all classes are learned
  from all folds but one, and measured on that one.

Shots are drawn over all classes, which are then cut into halves where a protocol says so. The draw `coop` is that of
CoOp's code, from the order of the images and the seed alone. That code stores its draws as pickles, which are never
read here: they can be drawn again.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ..data import ClassHalves, ClipTransform, ShotsError, class_names_of, halves, sample_shots
from ..data.columns import UNLABELLED, labels_of, numbered
from ..data.inspect import image_names
from ..files import atomic_file, read_json, to_json
from .record import BenchmarkData
from .stratified import stratified_folds
from .task import ImageSet, Part, Task

BASE_TO_NEW, FEW_SHOT, ALL_CLASSES, CROSS_DATA = "base-to-new", "few-shot", "all-classes", "cross-data"
FOLDS = "folds"
PROTOCOLS = (BASE_TO_NEW, FEW_SHOT, ALL_CLASSES, CROSS_DATA, FOLDS)
IN_ORDER, AT_RANDOM, PAIRED = "order", "random", "paired"
HALVES = (IN_ORDER, AT_RANDOM, PAIRED)
COOP, SEEDED = "coop", "seeded"
SAMPLINGS = (COOP, SEEDED)
VALIDATION_SHOTS = 4
MOST_FOLDS = 5


@dataclass(frozen=True)
class Shots:
    """Which images were drawn.

    Args:
        train (`tuple[int, ...]`): rows of the split train, those of one class after the other.
        validation (`tuple[int, ...]`): rows of the split validation, empty where there is none.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...] = ()

    def save(self, path: str | Path, data: BenchmarkData) -> None:
        """Write the draw atomically as JSON: `[row, image, class]` for every shot.

        The image is its file with the folder that it is in, and empty where it has none.
        """
        record = {
            "data": data.name,
            "train": _describe(data.train, self.train),
            "validation": [] if data.validation is None else _describe(data.validation, self.validation),
        }
        with atomic_file(Path(path)) as fresh:
            fresh.write_text(to_json(record), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, data: BenchmarkData) -> Shots:
        """Read what [`save`] wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds something else, or was drawn from other data.
        """
        try:
            record = read_json(path)
            return cls(
                _find(data.train, record["train"]),
                () if data.validation is None else _find(data.validation, record["validation"]),
            )
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{path} does not hold shots of {data.name}: {error!r}") from error


def draw_shots(data: BenchmarkData, shots: int, seed: int, sampling: str = COOP) -> Shots:
    """Draw shots of every class; no image is decoded.

    Args:
        data (`BenchmarkData`): the data set.
        shots (`int`): k, the images per class; a class with fewer gives all it has with `coop`.
        seed (`int`): names the draw.
        sampling (`str`): `coop`: one stream of random numbers for all classes in the order of their first images, k
            from train and then `min(k, 4)` from validation. `seeded`: [`sample_shots`], a stream for each class.

    Raises:
        ShotsError: if `shots` is below 1, or there are no images to draw from.
        ValueError: for another sampling.
    """
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling={sampling!r} must be one of {', '.join(SAMPLINGS)}.")
    if shots < 1:
        raise ShotsError(f"shots={shots} must be at least 1.")
    if not len(data.train):
        raise ShotsError(f"{data.name} has no images to train on: it is only measured on.")
    draw = partial(sample_shots, seed=seed) if sampling == SEEDED else partial(_sample, stream=random.Random(seed))
    train = draw(labels_of(data.train).tolist(), shots)
    if data.validation is None:
        return Shots(tuple(train))
    return Shots(tuple(train), tuple(draw(labels_of(data.validation).tolist(), min(shots, VALIDATION_SHOTS))))


def _sample(labels: Sequence[int], shots: int, stream: random.Random) -> list[int]:
    """Draw as CoOp's code does: classes in the order of their first images, from one stream."""
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        rows_of[label].append(row)
    drawn = (stream.sample(rows, shots) if len(rows) >= shots else rows for rows in rows_of.values())
    return [row for rows in drawn for row in rows]


def _describe(split: Dataset, rows: Sequence[int]) -> list[list[int | str]]:
    names, labels = class_names_of(split), labels_of(split)
    files = image_names(split.select(rows))
    return [[row, file, names[labels[row]]] for row, file in zip(rows, files, strict=True)]


def _find(split: Dataset, recorded: Sequence[Sequence[int | str]]) -> tuple[int, ...]:
    rows = [int(row) for row, _, _ in recorded]
    found = _describe(split, rows)
    if wrong := [each for each, there in zip(recorded, found, strict=True) if list(each) != there]:
        raise ValueError(f"{wrong[0]} is not what the data have there.")
    return tuple(rows)


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
            many, drawn from the seed. `paired`: two seeds share a draw, 1 and 2, 3 and 4; the even one learns the
            other half. Which half is learned decides much of the gain, and both orders together balance it.
        sampling (`str`, `Path` or `Shots`): `coop` or `seeded`, see [`draw_shots`]; or what that drew, or a JSON file
            of [`Shots.save`], which stand for a draw with any `shots` and `seed`.
        targets (`Sequence[BenchmarkData]`): for `cross-data`, what to measure besides the source's own test set.

    With `folds` the seed names the fold as well, see [`leave_fold_out`], and a [`Shots`] is a draw from what that
    leaves.

    Raises:
        ShotsError: if there are not enough images to draw.
        ValueError: for an unknown protocol, half or sampling, halves of one class, or targets that do not fit.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r} must be one of {', '.join(PROTOCOLS)}.")
    _check_targets(protocol, targets)
    if protocol == FOLDS:
        data = leave_fold_out(data, seed)
    if isinstance(sampling, Shots):
        drawn = sampling
    elif str(sampling).endswith(".json"):
        drawn = Shots.load(sampling, data)
    else:
        drawn = draw_shots(data, shots, seed, str(sampling))
    names, transform = data.class_names, ClipTransform(processor)
    if protocol in (FEW_SHOT, CROSS_DATA, FOLDS):
        learned, groups = names, {"test": (names, names)}
    else:
        both = class_halves(names, seed, halves)
        both.check_sizes()
        learned = both.base
        groups = {
            name: (own if protocol == BASE_TO_NEW else names, own)
            for name, own in (("base", both.base), ("new", both.new))
        }
    parts = [_part(name, data, competing, only, transform) for name, (competing, only) in groups.items()]
    for target in targets:
        part = _part(target.name, target, target.class_names, target.class_names, transform)
        parts.append(replace(part, classes=replace(part.classes, other_data=True)))
    augmentation = ClipTransform(processor, augment=True)
    return Task(_shots(data, drawn, learned, transform, augmentation), data.texts(learned), tuple(parts))


def leave_fold_out(data: BenchmarkData, seed: int) -> BenchmarkData:
    """Return data that are measured on one fold of the images to train on, and learned from the others.

    There are [`number_of_folds`], over which each class is spread evenly. Of five folds, the seeds 1 to 5 leave out
    those of one cut, 6 to 10 those of another. The split test is not used.

    Args:
        data (`BenchmarkData`): with images to train on.
        seed (`int`): from 1 on.

    Raises:
        ShotsError: if a class has a single image, so that no other is left to learn it from.
    """
    labels = labels_of(data.train)
    counts = np.bincount(labels, minlength=len(data.class_names))
    if lone := [name for name, count in zip(data.class_names, counts, strict=True) if count < 2]:
        raise ShotsError(
            f"{data.name}: these classes have fewer than 2 images: {', '.join(lone)}. Nothing is held out, so one is "
            "needed to learn from and one to measure on. Add images, or leave the classes out."
        )
    number = number_of_folds(data)
    cut, fold = divmod(seed - 1, number)
    learn, left_out = stratified_folds(labels, number, cut)[fold]
    return replace(data, train=data.train.select(learn), test=data.train.select(left_out))


def number_of_folds(data: BenchmarkData) -> int:
    """Return 5, or the number of images to train on of the largest class if that is smaller."""
    return min(MOST_FOLDS, int(np.bincount(labels_of(data.train)).max()))


def class_halves(names: Sequence[str], seed: int, how: str = IN_ORDER) -> ClassHalves:
    """Cut classes, given in the order of their label ids, into base and new.

    Args:
        names (`Sequence[str]`): C class names.
        seed (`int`): for `random` and `paired`.
        how (`str`): `order`, `random` or `paired`, see [`make_task`]; each keeps the order of the label ids within a
            half.

    Raises:
        ValueError: for any other `how`.
    """
    if how not in HALVES:
        raise ValueError(f"halves={how!r} must be one of {', '.join(HALVES)}.")
    in_order = halves(names)
    if how == IN_ORDER:
        return in_order
    draw = draw_of(seed) if how == PAIRED else seed
    first = set(np.random.default_rng(draw).permutation(len(names))[: len(in_order.base)].tolist())
    both = [tuple(name for label, name in enumerate(names) if (label in first) == one) for one in (True, False)]
    return ClassHalves(*(reversed(both) if how == PAIRED and seed % 2 == 0 else both))


def draw_of(seed: int) -> int:
    """Return the draw of `paired` halves that a seed belongs to: 1 for the seeds 1 and 2, 2 for 3 and 4."""
    return (seed + 1) // 2


def _check_targets(protocol: str, targets: Sequence[BenchmarkData]) -> None:
    names = ["test", *(target.name for target in targets)]
    if targets and protocol != CROSS_DATA:
        raise ValueError(f"targets are for the protocol {CROSS_DATA}, not for {protocol}.")
    if protocol == CROSS_DATA and not targets:
        raise ValueError(f"the protocol {CROSS_DATA} needs targets: data sets to measure besides the source.")
    if len(set(names)) < len(names):
        raise ValueError(f"targets need different names, and none may be 'test', got {', '.join(names[1:])}.")


def _shots(
    data: BenchmarkData, drawn: Shots, names: Sequence[str], transform: ClipTransform, augmentation: ClipTransform
) -> ImageSet:
    """Return the shots of some classes, in the order in which they were drawn."""
    dataset, labels = numbered(data.train, names)
    rows = [row for row in drawn.train if labels[row] != UNLABELLED]
    there = set(labels[rows].tolist())
    if absent := [name for label, name in enumerate(names) if label not in there]:
        raise ShotsError(f"{data.name}: these classes have no image to train on: {', '.join(absent)}.")
    return ImageSet(dataset.select(rows), transform, augmentation)


def _part(name: str, data: BenchmarkData, names: Sequence[str], only: Sequence[str], transform: ClipTransform) -> Part:
    """Return the test images of the classes `only`, where the classes `names` compete."""
    dataset, labels = numbered(data.test, names)
    rows = np.flatnonzero(np.isin(labels, [names.index(each) for each in only]))
    if not len(rows):
        raise ValueError(f"{data.name}: the split test has no images of the classes {', '.join(only)}.")
    return Part(name, ImageSet(dataset.select(rows), transform), data.texts(names), data.synonyms)
