"""Reader of the catalog's copies on the Hub, through `datasets`."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from datasets import Dataset, load_dataset

from ...data import class_names_of, load_image_data
from ...data.columns import UNLABELLED, label_column, labels_of, with_labels
from .catalog import CatalogEntry, HubCopy, catalog
from .folders import CLASSNAMES, Names, named, read_class_names
from .record import BenchmarkData, from_paths, hold_out


def read_hub(entry: CatalogEntry, root: str | Path | None = None) -> BenchmarkData:
    """Read a data set from the Hub. Where its test set is not that of the published tables, `comparable` is `False`.

    Args:
        entry (`CatalogEntry`): with a copy on the Hub.
        root (`str` or `Path`, *optional*): folder with `imagenet/classnames.txt`, for ImageNet and its variants.

    Raises:
        ValueError: if there is no such copy, or its columns or classes do not fit the entry.
        FileNotFoundError: if the Hub does not have it, or `classnames.txt` is missing.
    """
    if entry.hub is None:
        raise ValueError(f"{entry.title} has no copy on the Hub that `datasets` can read.{entry.how_to_fetch()}")
    hub, note = entry.hub, [entry.hub.note]
    test = _load(hub, hub.test or hub.train)
    classes, numbers = _classes(entry, hub, class_names_of(test), root)
    splits = {"test": _relabelled(test, classes, numbers)}
    if hub.test is None:
        splits["train"], splits["test"], share = hold_out(splits["test"])
        note.append(share)
    elif hub.train is not None:
        splits["train"] = _relabelled(_load(hub, hub.train), classes, numbers)
    if hub.validation is not None:
        splits["validation"] = _relabelled(_load(hub, hub.validation), classes, numbers)
    return BenchmarkData(
        entry.name,
        splits.get("train", from_paths([], [], classes.names)),
        splits["test"],
        tuple(entry.templates),
        validation=splits.get("validation"),
        comparable=hub.same_test,
        note="; ".join(note),
        written=classes.written,
        ensemble=tuple(entry.ensemble),
    )


def _load(hub: HubCopy, split: str | None) -> Dataset:
    if split is None:
        raise ValueError(f"{hub.repository} needs the name of a split to train or to test on.")
    dataset = load_image_data(
        hub.repository,
        split,
        name=hub.config,
        image_column=hub.image,
        label_column=hub.label,
        class_names=str,  # as they are: they are renamed below
    )
    if not hub.one_frame_of:
        return dataset
    columns = load_dataset(hub.repository, hub.config, split=split)
    return dataset.select(_middle_frames(columns, hub)).flatten_indices()


def _middle_frames(dataset: Dataset, hub: HubCopy) -> list[int]:
    """Return the row of the middle frame of each video, in the order of the videos."""
    keys = zip(*(label_column(dataset, column) for column in (hub.label, *hub.one_frame_of)), strict=True)
    frames = label_column(dataset, str(hub.frame))
    rows_of: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        rows_of[key].append(row)
    return [sorted(rows, key=frames.__getitem__)[len(rows) // 2] for rows in rows_of.values()]


def _classes(entry: CatalogEntry, hub: HubCopy, raw: list[str], root: str | Path | None) -> tuple[Names, list[int]]:
    """Return the classes to keep, and for each one in the data its number among these."""
    chosen = [name for name in raw if name not in hub.leave_out]
    number_of = {name: number for number, name in enumerate(chosen)}
    numbers = [number_of.get(name, UNLABELLED) for name in raw]
    if hub.names == "data":
        names = [entry.names.clean(name) for name in chosen]
        if alike := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"{hub.repository}: several classes are called {', '.join(alike)} once cleaned.")
        return Names(tuple(names), {}), numbers
    path = _class_names_file(entry, root)
    known = read_class_names(path)
    if hub.names == "position" and len(known) != len(raw):
        raise ValueError(f"{hub.repository} has {len(raw)} classes, {path} has {len(known)} lines.")
    return named(known if hub.names == "position" else raw, known, path), numbers


def _class_names_file(entry: CatalogEntry, root: str | Path | None) -> Path:
    imagenet = catalog()["imagenet"]
    if root is None:
        raise ValueError(
            f"{entry.title}: give the root of the data sets; the class names are read from "
            f"ROOT/{imagenet.folder}/{CLASSNAMES}.{imagenet.how_to_fetch()}"
        )
    return Path(root).expanduser() / imagenet.folder / CLASSNAMES


def _relabelled(split: Dataset, classes: Names, numbers: list[int]) -> Dataset:
    labels = np.asarray(numbers)[labels_of(split)]
    relabelled = with_labels(split, labels, classes.names)
    if (labels != UNLABELLED).all():
        return relabelled
    return relabelled.select(np.flatnonzero(labels != UNLABELLED)).flatten_indices()
