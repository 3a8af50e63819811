"""The two columns that labelled images have here: `image`, an [`RGBImage`], and `label`, a `ClassLabel`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, IterableDataset

from ..method.class_texts import as_read, composed
from .images import IMAGE, LABEL, STREAM_BATCH, RGBImage
from .names import readable

UNLABELLED = -1

logger = logging.getLogger(__name__)


def class_names_of(dataset: Dataset | IterableDataset) -> list[str]:
    """Return the class names of a data set, in the order of its labels.

    Raises:
        ValueError: if its column `label` is missing or not a `ClassLabel`.
    """
    feature = (dataset.features or {}).get(LABEL)
    if not isinstance(feature, ClassLabel):
        raise ValueError(f"need a column 'label' of type ClassLabel, as load_image_data makes it, got {feature!r}.")
    return [composed(name) for name in feature.names]


def labels_of(dataset: Dataset) -> np.ndarray:
    """Return all labels, int64 `[n]`; raise `ValueError` if an example has none, `TypeError` for a stream."""
    if isinstance(dataset, IterableDataset):
        raise TypeError("a stream has no labels to choose from: load the data with streaming=False.")
    count = len(class_names_of(dataset))
    labels = np.array(label_column(dataset), dtype=np.int64)
    if wrong := int(np.count_nonzero((labels < 0) | (labels >= count))):
        raise ValueError(f"{wrong} of {len(labels)} examples have no label from 0 to {count - 1}.")
    return labels


def label_column(dataset: Dataset, column: str = LABEL) -> list[Any]:
    """Return one column as Python values; it is read alone, as rows of a data set would read their images too."""
    return dataset.with_format(None).select_columns(column)[:][column]


def encoded_images(dataset: Dataset) -> Dataset:
    """Return the images alone, as they are stored: path and bytes, not decoded."""
    return dataset.with_format(None).select_columns(IMAGE).cast_column(IMAGE, RGBImage(decode=False))


def from_files(rows: Sequence[tuple[str, int]], names: Sequence[str], split: Any = None) -> Dataset:
    """Return image files with their labels as a data set, which may be empty. No file is opened."""
    columns = {IMAGE: [path for path, _ in rows], LABEL: [label for _, label in rows]}
    features = Features({IMAGE: RGBImage(), LABEL: ClassLabel(names=list(names))})
    return Dataset.from_dict(columns, features, split=split)


def with_labels(dataset: Dataset, labels: np.ndarray, names: Sequence[str]) -> Dataset:
    """Set the labels beside the images; casting the column would rewrite the images to disk."""
    unlabelled = dataset.with_format(None).select_columns(IMAGE)
    return unlabelled.add_column(LABEL, labels, feature=ClassLabel(names=list(names)))


def numbered(
    dataset: Dataset, classes: Sequence[str], names: Sequence[str] | None = None
) -> tuple[Dataset, np.ndarray]:
    """Number some classes from 0 on, under new names if they are given, and return the labels beside the data set.

    Rows stay; those of other classes are unlabelled.
    """
    known = class_names_of(dataset)
    number_of = {known.index(name): number for number, name in enumerate(classes)}
    labels = np.array([number_of.get(label, UNLABELLED) for label in label_column(dataset)], dtype=np.int64)
    return with_labels(dataset, labels, classes if names is None else names), labels


def map_stream(stream: IterableDataset, image: str, function: Any, names: Sequence[str]) -> IterableDataset:
    """Map a stream with its images left as they are, and set the types after it: earlier they would decode images."""
    raw = stream.decode(False).cast_column(image, RGBImage(decode=False))
    mapped = raw.map(function, batched=True, batch_size=STREAM_BATCH, remove_columns=list(stream.features))
    return mapped.cast(Features({IMAGE: RGBImage(), LABEL: ClassLabel(names=list(names))}))


def check_same_classes(dataset: Any, class_names: Sequence[str]) -> None:
    """Refuse a data set of any kind that numbers the model's classes in another order, and warn of other classes."""
    features = getattr(dataset, "features", None)
    parts = [] if features else getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    if any(part is not None for part in parts):  # torch's ConcatDataset and Subset
        for part in parts:
            check_same_classes(part, class_names)
        return
    names = _numbered_names(dataset, features or {})
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return
    theirs, ours = ([as_read(readable(name)) for name in each] for each in (names, class_names))
    if theirs == ours:
        return
    both = f"The data number {list(names)}, and the adapter's classes are {list(class_names)}"
    if sorted(theirs) == sorted(ours):
        raise ValueError(
            f"{both}: the same names in another order. Give the adapter class_names in the order of the data, or "
            "reorder these: anprompt_peft.data.select_classes(dataset, model.class_names)."
        )
    logger.warning(
        "%s: label 0 counts as %r, and so on. If these are not the same classes, it is wrong.", both, class_names[0]
    )


def _numbered_names(dataset: Any, features: Mapping[str, Any]) -> Any:
    """Return the names of a `ClassLabel`, or of torchvision's `classes` or `class_to_idx`, if there are any."""
    columns = [feature for name in (LABEL, "labels") if isinstance(feature := features.get(name), ClassLabel)]
    numbers = getattr(dataset, "class_to_idx", None)
    names = columns[0].names if columns else getattr(dataset, "classes", None)
    return sorted(numbers, key=numbers.__getitem__) if names is None and isinstance(numbers, dict) else names
