"""Labelled images for tests: folders and data sets of them, and what those hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features
from PIL import Image

from anprompt_peft.data import RGBImage, class_names_of


def tree(folder: Path, *files: str) -> Path:
    """A folder of files that are no images, whatever they are called; a name that ends with / is a folder."""
    for name in files:
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_text("no image")
    return folder


def photo_tree(folder: Path, *files: str) -> Path:
    """The same with images in all files, whatever they are called."""
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (len(path.name), 50, 60)).save(path, format="PNG")
    return folder


def pictures(count: int) -> list[Image.Image]:
    """Images that tell their number by how red they are."""
    return [Image.new("RGB", (8, 6), (number, 0, 0)) for number in range(count)]


def labelled(labels: Sequence[int], names: Sequence[str] = ("a", "b", "c"), images: Any = None) -> Dataset:
    """A data set, of examples without images by default."""
    features = Features({"image": RGBImage(), "label": ClassLabel(names=list(names))})
    columns = {"image": [None] * len(labels) if images is None else images, "label": list(labels)}
    return Dataset.from_dict(columns, features=features)


def table(path: Path, columns: dict[str, Any], features: dict[str, Any]) -> Path:
    """A parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=Features(features)).to_parquet(path)
    return path


def paths(dataset: Dataset) -> list[str]:
    """The files of the images."""
    return [image["path"] for image in dataset.with_format(None).cast_column("image", RGBImage(decode=False))["image"]]


def labels(dataset: Dataset) -> list[int]:
    """The labels, read alone."""
    return list(dataset.with_format(None).select_columns("label")[:]["label"])


def counts(dataset: Dataset) -> dict[str, int]:
    """The number of images of each class that has some."""
    return dict(Counter(class_names_of(dataset)[label] for label in labels(dataset)))


def reds(dataset: Dataset) -> list[int]:
    """The numbers that [`pictures`] tell."""
    return [example["image"].getpixel((0, 0))[0] for example in dataset]


def assert_refused(message: str, call: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Check that a call raises `ValueError` with a message."""
    with pytest.raises(ValueError, match=message):
        call(*args, **options)
