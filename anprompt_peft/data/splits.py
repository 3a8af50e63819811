"""Draws, splits and classes of labelled images: the same ones from the same seed. No image is decoded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, IterableDataset
from sklearn.model_selection import train_test_split

from ..method.class_texts import composed
from .columns import UNLABELLED, class_names_of, labels_of, map_stream, numbered
from .images import IMAGE, LABEL


class ShotsError(ValueError):
    """More shots were asked for than there are, or none."""


def sample_shots(labels: Sequence[int] | np.ndarray, shots: int, seed: int, *, fewer: bool = False) -> list[int]:
    """Return the positions of `shots` examples of every class, drawn without replacement.

    Each class has a random stream of its own, so leaving out other classes does not change its shots.

    Args:
        labels (sequence of `int`): the class of every example.
        shots (`int`): examples per class.
        seed (`int`): names the draw.
        fewer (`bool`): take all examples of a class that has fewer, instead of raising an error.

    Raises:
        ShotsError: if `shots` is below 1 or, without `fewer`, a class has fewer examples.
    """
    if shots < 1:
        raise ShotsError(f"shots={shots} must be at least 1.")
    array = np.asarray(labels)
    chosen: list[int] = []
    for label in np.unique(array):
        positions = np.flatnonzero(array == label)
        if len(positions) < shots and not fewer:
            raise ShotsError(
                f"shots={shots} asks for more examples than class {label} has. Use at most {len(positions)}."
            )
        rng = np.random.default_rng([seed, int(label)])
        chosen.extend(rng.choice(positions, min(shots, len(positions)), replace=False).tolist())
    return sorted(chosen)


def few_shot(dataset: Dataset, shots: int, seed: int, *, fewer: bool = False) -> Dataset:
    """Return `shots` examples of every class, drawn by [`sample_shots`]; no image is decoded.

    Args:
        dataset (`Dataset`): with labels.
        shots (`int`): examples per class.
        seed (`int`): names the draw.
        fewer (`bool`): take all examples of a class that has fewer, instead of raising an error.

    Raises:
        ShotsError: if `shots` is below 1, or a class has fewer examples; with `fewer`, if it has none.
        ValueError: if an example is unlabelled.
        TypeError: for a stream.
    """
    labels, names = labels_of(dataset), class_names_of(dataset)
    counts = np.bincount(labels, minlength=len(names))
    needed = 1 if fewer else shots
    if short := {name: int(count) for name, count in zip(names, counts, strict=True) if count < needed}:
        cure = f"Use at most {counts.min()}" if counts.min() else "Leave these classes out with select_classes"
        up_to = "" if fewer else f", or take up to {shots} of each class with fewer=True"
        raise ShotsError(f"shots={shots} asks for more examples than these classes have: {short}. {cure}{up_to}.")
    return dataset.select(sample_shots(labels, shots, seed, fewer=fewer))


def split_data(dataset: Dataset, *, validation: float = 0.0, test: float = 0.0, seed: int) -> DatasetDict:
    """Split one data set at random, each class in the same proportions; no image is decoded.

    A class whose share is less than half an example has one in each split.

    Args:
        dataset (`Dataset`): with labels.
        validation (`float`): share (0..1) that becomes the split `validation`; 0 leaves it out.
        test (`float`): share (0..1) that becomes the split `test`; 0 leaves it out.
        seed (`int`): names the draw.

    Returns:
        `DatasetDict`: `train`, and those of `validation` and `test` that were asked for.

    Raises:
        ValueError: if a share is less than one example per class, the shares do not leave so many to train on, or a
            class has too few examples to be in every split.
        TypeError: for a stream.
    """
    shares = {name: share for name, share in {"validation": validation, "test": test}.items() if share}
    if not shares or min(shares.values()) < 0 or not 0 < sum(shares.values()) < 1:
        raise ValueError(f"validation={validation} and test={test} must be shares with a sum between 0 and 1.")
    labels = labels_of(dataset)
    _check_sizes(labels, class_names_of(dataset), shares)
    rest, parts = np.arange(len(labels)), {}
    for after, (name, share) in enumerate(shares.items()):
        rest, part = train_test_split(
            rest, test_size=round(share * len(labels)), stratify=labels[rest], random_state=seed
        )
        part, rest = _at_least(1, part, rest, labels)
        rest, parts[name] = _at_least(len(shares) - after, rest, part, labels)
    return DatasetDict({name: dataset.select(np.sort(rows)) for name, rows in {"train": rest, **parts}.items()})


def _check_sizes(labels: np.ndarray, names: Sequence[str], shares: Mapping[str, float]) -> None:
    counts = {names[label]: int(count) for label, count in zip(*np.unique(labels, return_counts=True), strict=True)}
    if short := {name: count for name, count in counts.items() if count <= len(shares)}:
        raise ValueError(
            f"each of the splits train, {', '.join(shares)} needs an image of every class, and these have fewer "
            f"images than that: {short}. Add images, or leave the classes out."
        )
    least = math.ceil(100 * len(counts) / len(labels)) / 100
    for name, share in shares.items():
        if round(share * len(labels)) < len(counts):
            raise ValueError(
                f"{name}={share} of {len(labels)} images is {round(share * len(labels))}, less than one image of each "
                f"of the {len(counts)} classes. Use at least {least}."
            )
    if len(labels) - sum(round(share * len(labels)) for share in shares.values()) < len(counts):
        given = " and ".join(f"{name}={share}" for name, share in shares.items())
        raise ValueError(
            f"{given} of {len(labels)} images leave less than one image of each of the {len(counts)} classes to train "
            f"on. Use at most {round(1 - least, 2)} in all."
        )


def _at_least(count: int, rows: np.ndarray, others: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `rows` with `count` examples or more of every class, those that it lacks taken from `others`."""
    for label in np.unique(labels):
        lacking = max(0, count - np.count_nonzero(labels[rows] == label))
        moved = others[labels[others] == label][:lacking]
        rows, others = np.concatenate([rows, moved]), others[~np.isin(others, moved)]
    return rows, others


def select_classes(dataset: Dataset | IterableDataset, names: Sequence[str]) -> Dataset | IterableDataset:
    """Keep the examples of some classes, with labels that are positions in `names`.

    No image is decoded, and a transform set before is dropped. It is cheapest on data as they were loaded: a part that
    was drawn or split before is copied.

    Raises:
        ValueError: if a name is unknown or repeated.
    """
    known, names = class_names_of(dataset), [composed(name) for name in names]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown classes {unknown}: the data have {known}.")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"select one class or more, each once, got {list(names)}.")
    if isinstance(dataset, IterableDataset):
        numbers = {known.index(name): position for position, name in enumerate(names)}
        return map_stream(dataset, IMAGE, partial(_keep_labels, numbers=numbers), names)
    chosen, labels = numbered(dataset, names)
    return chosen.select(np.flatnonzero(labels != UNLABELLED))


def _keep_labels(batch: dict[str, list[Any]], numbers: dict[int, int]) -> dict[str, list[Any]]:
    kept = [
        (image, numbers[label]) for image, label in zip(batch[IMAGE], batch[LABEL], strict=True) if label in numbers
    ]
    return {IMAGE: [image for image, _ in kept], LABEL: [label for _, label in kept]}
