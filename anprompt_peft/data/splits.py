"""Draws, splits and classes of labelled images: the same ones from the same seed. No image is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, IterableDataset
from sklearn.model_selection import train_test_split

from ..method.class_texts import composed
from .columns import UNLABELLED, class_names_of, label_column, labels_of, map_stream, with_labels
from .images import IMAGE, LABEL


class ShotsError(ValueError):
    """More shots were asked for than there are, or none."""


def sample_shots(labels: Sequence[int] | np.ndarray, shots: int, seed: int) -> list[int]:
    """Return the positions of `shots` examples of every class, drawn without replacement.

    Each class has a random stream of its own, so leaving out other classes does not change its shots.

    Args:
        labels (sequence of `int`): the class of every example.
        shots (`int`): examples per class.
        seed (`int`): names the draw.

    Raises:
        ShotsError: if `shots` is below 1 or a class has fewer examples.
    """
    if shots < 1:
        raise ShotsError(f"shots={shots} must be at least 1.")
    array = np.asarray(labels)
    chosen: list[int] = []
    for label in np.unique(array):
        positions = np.flatnonzero(array == label)
        if len(positions) < shots:
            raise ShotsError(
                f"shots={shots} asks for more examples than class {label} has. Use at most {len(positions)}."
            )
        rng = np.random.default_rng([seed, int(label)])
        chosen.extend(rng.choice(positions, shots, replace=False).tolist())
    return sorted(chosen)


def few_shot(dataset: Dataset, shots: int, seed: int) -> Dataset:
    """Return `shots` examples of every class, drawn by [`sample_shots`]; no image is decoded.

    Raises:
        ShotsError: if `shots` is below 1 or a class has fewer examples.
        ValueError: if an example is unlabelled.
        TypeError: for a stream.
    """
    labels, names = labels_of(dataset), class_names_of(dataset)
    counts = np.bincount(labels, minlength=len(names))
    if short := {name: int(count) for name, count in zip(names, counts, strict=True) if count < shots}:
        raise ShotsError(
            f"shots={shots} asks for more examples than these classes have: {short}. Use at most {counts.min()}, or "
            "leave the classes out with select_classes."
        )
    return dataset.select(sample_shots(labels, shots, seed))


def split_data(dataset: Dataset, *, validation: float = 0.0, test: float = 0.0, seed: int) -> DatasetDict:
    """Split one data set at random, each class in the same proportions; no image is decoded.

    Args:
        dataset (`Dataset`): with labels.
        validation (`float`): share (0..1) that becomes the split `validation`; 0 leaves it out.
        test (`float`): share (0..1) that becomes the split `test`; 0 leaves it out.
        seed (`int`): names the draw.

    Returns:
        `DatasetDict`: `train`, and those of `validation` and `test` that were asked for.

    Raises:
        ValueError: if the shares do not leave something to train on, or a class is too small to be in every split.
        TypeError: for a stream.
    """
    shares = {"validation": validation, "test": test}
    if min(shares.values()) < 0 or not 0 < sum(shares.values()) < 1:
        raise ValueError(f"validation={validation} and test={test} must be shares with a sum between 0 and 1.")
    labels = labels_of(dataset)
    rest, parts = np.arange(len(labels)), {}
    for name in [name for name, share in shares.items() if share]:
        size = round(shares[name] * len(labels))
        rest, parts[name] = train_test_split(rest, test_size=size, stratify=labels[rest], random_state=seed)
    return DatasetDict({name: dataset.select(np.sort(rows)) for name, rows in {"train": rest, **parts}.items()})


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
    numbers = {known.index(name): position for position, name in enumerate(names)}
    if isinstance(dataset, IterableDataset):
        return map_stream(dataset, IMAGE, partial(_keep_labels, numbers=numbers), names)
    renumbered = np.array([numbers.get(label, UNLABELLED) for label in label_column(dataset)], dtype=np.int64)
    return with_labels(dataset, renumbered, names).select(np.flatnonzero(renumbered != UNLABELLED))


def _keep_labels(batch: dict[str, list[Any]], numbers: dict[int, int]) -> dict[str, list[Any]]:
    kept = [
        (image, numbers[label]) for image, label in zip(batch[IMAGE], batch[LABEL], strict=True) if label in numbers
    ]
    return {IMAGE: [image for image, _ in kept], LABEL: [label for _, label in kept]}
