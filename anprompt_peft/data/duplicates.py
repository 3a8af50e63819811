"""Pictures that are the same or nearly the same, found by a perceptual hash."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .columns import class_names_of, encoded_images, label_column
from .images import IMAGE
from .inspect import digests

HASH_SIDE = 16
"""Side of the hash: 256 bits. Of 64 bits, other pictures of simple things differ in as few as copies of one do."""
NEAR = 20
"""Most bits in which nearly the same pictures differ; other ones of scikit-learn's digits or MNIST differ in 26."""
GRID, BRIGHTER, RECOLOURED = 4, 64, 24
"""Side of the grid of colours that the hash does not see, and the most by which its luma and its chroma may differ."""
BLOCK = 2048


@dataclass
class Looks:
    """What n pictures look like, in order: their hashes, bool `[n, 256]`, and colours, int16 `[n, 4, 4, 3]`.

    It needs the package ImageHash; see [`can_compare`].
    """

    hashes: list[np.ndarray] = field(default_factory=list)
    colours: list[np.ndarray] = field(default_factory=list)

    def add(self, image: Image.Image) -> None:
        """Remember a picture in RGB."""
        from imagehash import phash

        small = image.resize((GRID, GRID), Image.Resampling.BOX).convert("YCbCr")
        self.hashes.append(phash(image, HASH_SIDE).hash.reshape(-1))
        self.colours.append(np.asarray(small, dtype=np.int16))


@dataclass(frozen=True)
class Copy:
    """One place of a picture that is in several: its split, its class, and its file or row."""

    split: str
    class_name: str
    name: str


@dataclass(frozen=True)
class Duplicates:
    """Groups of pictures that are the same or nearly the same, each picture in one group at most."""

    groups: list[list[Copy]]

    def in_two_classes(self) -> list[list[Copy]]:
        """Return the groups with different classes."""
        return [group for group in self.groups if len({copy.class_name for copy in group}) > 1]

    def in_two_splits(self) -> list[list[Copy]]:
        """Return the groups with different splits."""
        return [group for group in self.groups if len({copy.split for copy in group}) > 1]

    def in_one_class(self) -> list[list[Copy]]:
        """Return the groups within one class and split."""
        return [group for group in self.groups if len({(copy.split, copy.class_name) for copy in group}) == 1]


def can_compare() -> bool:
    """Whether pictures can be compared by their looks; else only files of the same content are found."""
    try:
        import imagehash  # noqa: F401
    except ModuleNotFoundError:  # it comes with an extra
        return False
    return True


def find_duplicates(
    parts: Sequence[tuple[str, Dataset, Looks | None]], folder: str | Path | None = None
) -> Duplicates:
    """Find pictures that are the same file, or look nearly the same, in one or several data sets.

    Copies that were saved again, scaled, or made a little brighter are found; those cut at the edges by more than 2 %,
    turned or mirrored are not.

    Args:
        parts (`Sequence[tuple[str, Dataset, Looks]]`): splits and labelled pictures, with the looks of all of them in
            order; without looks they are compared by content alone.
        folder (`str` or `Path`, *optional*): names of files are given relative to it.

    Returns:
        `Duplicates`: in the order of the data.
    """
    copies = [copy for split, part, _ in parts for copy in _places(split, part, folder)]
    starts = np.cumsum([0, *(len(part) for _, part, _ in parts)])
    edges = _same_content([digest for _, part, _ in parts for digest in digests(part)])
    seen = [(start, looks) for start, (_, _, looks) in zip(starts, parts, strict=False) if looks and looks.hashes]
    edges += _near(seen)
    first, second = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(edges)), (first, second)), shape=(len(copies), len(copies)))
    groups: defaultdict[int, list[Copy]] = defaultdict(list)
    for copy, number in zip(copies, connected_components(graph, directed=False)[1], strict=True):
        groups[number].append(copy)
    return Duplicates([group for group in groups.values() if len(group) > 1])


def _places(split: str, part: Dataset, folder: str | Path | None) -> list[Copy]:
    names, root = class_names_of(part), None if folder is None else Path(folder).expanduser().resolve()

    def name_of(value: Any, row: int) -> str:
        path = Path((value or {}).get("path") or "")
        if not path.name:
            return f"row {row} of {split}"
        return str(path.relative_to(root)) if root and path.is_relative_to(root) else str(path)

    labels = label_column(part)
    files = [name_of(example[IMAGE], row) for row, example in enumerate(encoded_images(part))]
    return [Copy(split, names[label], file) for label, file in zip(labels, files, strict=True)]


def _same_content(contents: Sequence[str]) -> list[tuple[int, int]]:
    """Return pairs of rows of equal digests, which join all rows of one digest."""
    first: dict[str, int] = {}
    pairs = ((first.setdefault(digest, row), row) for row, digest in enumerate(contents) if digest)
    return [pair for pair in pairs if pair[0] != pair[1]]


def _near(seen: Sequence[tuple[int, Looks]]) -> list[tuple[int, int]]:
    """Return the pairs of rows whose hashes and colours hardly differ; looks come with their first row."""
    if not seen:
        return []
    rows = np.concatenate([start + np.arange(len(looks.hashes)) for start, looks in seen])
    hashes = np.concatenate([np.stack(looks.hashes) for _, looks in seen])
    colours = np.concatenate([np.stack(looks.colours) for _, looks in seen])
    signs = np.where(hashes, 1, -1).astype(np.float32)  # of two, the product is the bits alike less those that differ
    found: list[tuple[int, int]] = []
    for start in range(0, len(signs), BLOCK):
        alike = signs[start : start + BLOCK] @ signs[start:].T >= signs.shape[1] - 2 * NEAR
        one, other = (start + at for at in np.nonzero(np.triu(alike, 1)))
        far = np.abs(colours[one] - colours[other]).max(axis=(1, 2), initial=0)
        near = (far <= (BRIGHTER, RECOLOURED, RECOLOURED)).all(axis=1)
        found += zip(rows[one[near]].tolist(), rows[other[near]].tolist(), strict=True)
    return found
