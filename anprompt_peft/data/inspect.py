"""What is in labelled images, without decoding one: numbers of images by class, files, digests."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ..text import printable
from .columns import class_names_of, encoded_images, label_column
from .images import IMAGE, with_bytes

LISTED = 8
"""Most classes whose numbers of images are listed one by one."""

_hash = partial(blake2b, digest_size=8)


def count_by_class(dataset: Dataset) -> dict[str, int]:
    """Return the number of images of each class; those without a label do not count."""
    names, labels = class_names_of(dataset), np.array(label_column(dataset), dtype=np.int64)
    return dict(zip(names, np.bincount(labels[labels >= 0], minlength=len(names)).tolist(), strict=True))


def without_images(dataset: Dataset) -> list[str]:
    """Return the classes that have no images."""
    return [name for name, count in count_by_class(dataset).items() if not count]


def describe_size(dataset: Dataset) -> str:
    """Return the numbers of images and classes, and the images of each class: the fewest and most of many."""
    counts = {name: count for name, count in count_by_class(dataset).items() if count}
    sizes = sorted(set(counts.values()))
    if len(sizes) > 1 and len(counts) <= LISTED:
        each = ", ".join(f"{printable(name)} {count}" for name, count in counts.items())
    else:
        each = " to ".join(map(str, dict.fromkeys([*sizes[:1], *sizes[-1:]]))) + " each"
    return f"{len(dataset)} images of {len(counts)} classes" + f" ({each})" * bool(counts)


def image_names(dataset: Dataset) -> list[str]:
    """Return the file of every image with the folder that it is in, empty where it has none."""
    return ["/".join(Path(example[IMAGE]["path"] or "").parts[-2:]) for example in encoded_images(dataset)]


def digests(dataset: Dataset) -> list[str]:
    """Return a digest of the encoded bytes of every image, empty where it cannot be read."""
    return [_digest(example[IMAGE] or {"path": None, "bytes": None}) for example in encoded_images(dataset)]


def _digest(image: Mapping[str, Any]) -> str:
    path, content = image["path"], with_bytes(image)["bytes"]
    if content is not None:
        return _hash(content).hexdigest()
    try:
        if path is None or not Path(path).is_file():
            return ""
        with open(path, "rb") as file:
            return file_digest(file, _hash).hexdigest()
    except OSError:
        return ""
