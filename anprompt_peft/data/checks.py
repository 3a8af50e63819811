"""A check of all images of a data set before they are used: each is decoded once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Features, IterableDataset
from PIL import Image
from tqdm import tqdm

from .columns import encoded_images
from .images import IMAGE, STREAM_BATCH, CorruptImageError, RGBImage

logger = logging.getLogger(__name__)


class CheckedImages(NamedTuple):
    """What [`check_images`] found: examples that can be decoded, and a line about every other one.

    For a stream, `corrupt` grows while the stream is read.
    """

    dataset: Any  # Dataset or IterableDataset
    corrupt: list[str]  # path, row and reason


def check_images(
    dataset: Dataset | IterableDataset,
    on_corrupt: str = "raise",
    look: Callable[[Image.Image], object] | None = None,
) -> CheckedImages:
    """Decode every image once, and report or leave out those that cannot be decoded.

    A stream is checked while it is read, and its images are then decoded no second time. With several `DataLoader`
    workers each has its own count; every image left out is logged as a warning in any case. Choose classes
    (`select_classes`) before and not after the check of a stream.

    Args:
        dataset (`Dataset` or `IterableDataset`): with a column `image`.
        on_corrupt (`str`): `"raise"` or `"skip"`.
        look (function, *optional*): called with each image that can be decoded, in order; not for a stream.

    Raises:
        CorruptImageError: with `on_corrupt="raise"`: lists all corrupt images, or names the first one of a stream.
        ValueError: for any other `on_corrupt`, or a stream with `look`.
    """
    if on_corrupt not in ("raise", "skip"):
        raise ValueError(f"on_corrupt={on_corrupt!r} must be 'raise' or 'skip'.")
    if isinstance(dataset, IterableDataset):
        if look is not None:
            raise ValueError("look needs images that are all there: load the data with streaming=False.")
        return _check_stream(dataset, skip=on_corrupt == "skip")
    broken = {}
    for row, example in enumerate(tqdm(encoded_images(dataset), desc="checking images", unit="image")):
        try:
            image = _decode(example[IMAGE], row)
        except CorruptImageError as error:
            broken[row] = str(error)
            continue
        if look is not None:
            look(image)
    corrupt = list(broken.values())
    if not corrupt:
        return CheckedImages(dataset, [])
    if on_corrupt == "raise":
        raise CorruptImageError("\n".join([f"{len(corrupt)} of {len(dataset)} images are corrupt:", *corrupt]))
    for line in corrupt:
        logger.warning("left out: %s", line)
    return CheckedImages(dataset.select(np.delete(np.arange(len(dataset)), list(broken))), corrupt)


def _check_stream(stream: IterableDataset, skip: bool) -> CheckedImages:
    corrupt: list[str] = []
    features = Features({**stream.features, IMAGE: RGBImage()})
    raw = stream.decode(False).cast_column(IMAGE, RGBImage(decode=False))
    check = partial(_decode_batch, corrupt=corrupt, skip=skip)
    options = {"batched": True, "batch_size": STREAM_BATCH, "with_indices": True, "remove_columns": list(features)}
    return CheckedImages(raw.map(check, features=features, **options), corrupt)


def _decode_batch(
    batch: dict[str, list[Any]], rows: list[int], corrupt: list[str], skip: bool
) -> dict[str, list[Any]]:
    decoded: dict[int, Image.Image] = {}
    for position, row in enumerate(rows):
        try:
            decoded[position] = _decode(batch[IMAGE][position], row)
        except CorruptImageError as error:
            if not skip:
                raise
            corrupt.append(str(error))
            logger.warning("left out: %s", error)
    kept = {name: [values[position] for position in decoded] for name, values in batch.items()}
    return {**kept, IMAGE: list(decoded.values())}


def _decode(value: Any, row: int) -> Image.Image:
    if value is None:
        raise CorruptImageError(f"row {row}: there is no image")
    try:
        return RGBImage().decode_example(value)
    except CorruptImageError as error:
        raise CorruptImageError(f"row {row}: {error}") from error
