"""What is in labelled images, without decoding one: numbers of images by class, files, digests."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset

from ..text import printable
from .columns import count_by_class
from .images import IMAGE, RGBImage

LISTED = 8
"""Most classes whose numbers of images are listed one by one."""

_hash = partial(blake2b, digest_size=8)


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


def digests(dataset: Dataset) -> list[str]:
    """Return a digest of the encoded bytes of every image, empty where it cannot be read."""
    raw = dataset.with_format(None).select_columns(IMAGE).cast_column(IMAGE, RGBImage(decode=False))
    return [_digest(example[IMAGE] or {}) for example in raw]


def _digest(image: Mapping[str, Any]) -> str:
    content, path = image.get("bytes"), image.get("path")
    if content is None and "://" in (path or ""):
        feature = RGBImage(decode=False)
        content = feature.embed_storage(pa.array([image], feature.pa_type))[0]["bytes"].as_py()
    if content is not None:
        return _hash(content).hexdigest()
    try:
        if path is None or not Path(path).is_file():
            return ""
        with open(path, "rb") as file:
            return file_digest(file, _hash).hexdigest()
    except OSError:
        return ""
