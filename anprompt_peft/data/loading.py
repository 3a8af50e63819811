"""Labelled images from the Hub, folders, parquet files or tables of files."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import (
    ClassLabel,
    DatasetDict,
    Features,
    IterableDataset,
    IterableDatasetDict,
    ReadInstruction,
    Split,
    Value,
    concatenate_datasets,
    config,
    load_dataset,
)
from datasets import Image as ImageFeature
from huggingface_hub import HfApi

from ..method.class_texts import check_class_names
from .columns import UNLABELLED, from_files, label_column, map_stream, with_labels
from .folders import Listing, class_folders, list_folder, split_folders
from .images import IMAGE, LABEL, RGBImage
from .names import ClassNames, is_list, rename
from .tables import ENDINGS as TABLES
from .tables import read_table

logger = logging.getLogger(__name__)


def load_image_data(
    source: str | Path,
    split: str | None = None,
    *,
    name: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    streaming: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: ClassNames | None = None,
) -> Any:
    """Load labelled images with [`datasets.load_dataset`].

    A folder of images has one sub-folder per class, to which all that is below it belongs. If it has sub-folders
    `train` (also `training`), `validation` (`valid`, `val`, `dev`) or `test` (`testing`, `eval`, `evaluation`), in any
    letter case, that hold folders themselves, those are the splits, and anything beside them is left out; otherwise
    all of it is the split `train`. Hidden files, and files whose ending is not read, are left out. Warnings are logged
    about what may not be meant.

    Args:
        source (`str` or `Path`): a folder of images, a parquet file, a glob of them (`"data/*.parquet"`), a folder
            with parquet files, a table of image files with their labels (`.csv` or `.tsv`, see [`read_table`]), or the
            name of a data set on the Hub.
        split (`str`, *optional*): one split, or a part such as `"train[:10%]"`.
        name (`str`, *optional*): configuration of a data set on the Hub or of a folder with parquet files.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        token (`str` or `bool`, *optional*): for private data sets on the Hub.
        streaming (`bool`): read while iterating, instead of preparing everything first.
        image_column (`str`, *optional*): needed unless exactly one column has the type `Image`.
        label_column (`str`, *optional*): needed unless exactly one column is a `ClassLabel` or, where none is, holds
            strings or integers.
        class_names (`list[str]`, `dict[str, str]` or a function, *optional*): better names than [`readable_names`]
            makes of those in the data. A dict goes from names in the data to better ones and may leave names out; a
            function makes each name of the one in the data. A list has one name for every `ClassLabel` or integer
            label, in their order; where labels are strings, it lists them.

    Returns:
        `Dataset` or `IterableDataset`, or, without `split`, a dict of them: columns `image`, an [`RGBImage`] decoded
        on access, and `label`, a `ClassLabel`, with -1 for examples that the data mark as unlabelled.

    Raises:
        FileNotFoundError: if there is no such folder, file or revision, or no images or parquet files in the folder.
        ValueError: if columns are missing or ambiguous, labels and class names do not fit, two names read alike, or a
            folder does not tell its splits and classes.
    """
    if is_list(class_names):
        check_class_names(class_names)
    text = os.path.expanduser(source)
    if text.endswith(TABLES):
        _refuse(source, name=name, revision=revision)
        listed = read_table(text, image_column, label_column)
        loader: Callable[..., Any] = partial(_load_files, os.path.dirname(text), listed.splits, listed.class_names)
        image_column, label_column = IMAGE, LABEL
    else:
        loader = _loader(source, name, revision, token)
    load = partial(loader, streaming=streaming, token=token)
    loaded = load(split=split)
    parts = loaded if split is None else {split: loaded}
    features = next(iter(parts.values())).features
    if features is None:
        raise ValueError(f"{source} does not tell its columns when streamed: load it with streaming=False.")
    image = image_column or _only("image_column", _image_columns(features), features)
    label = label_column or _only("label_column", _label_columns(features), features)
    if unknown := {image, label} - set(features):
        raise ValueError(f"there is no column {' or '.join(sorted(unknown))}, only {', '.join(features)}.")
    raw = _names_in_data(features[label], class_names, lambda: _strings(load(split=None), label))
    names = check_class_names(rename(raw, class_names))
    for part, dataset in parts.items():
        parts[part] = _with_columns(dataset, image, label, raw, names)
    return parts if split is None else parts[split]


# --- sources


def _loader(
    source: str | Path, name: str | None, revision: str | None, token: str | bool | None
) -> Callable[..., Any]:
    """Choose how `load_dataset` reads `source`."""
    text = os.path.expanduser(source)
    folder = Path(text)
    if folder.is_dir():
        return _folder_loader(source, folder, name, revision)
    if text.endswith(".parquet"):
        if "://" not in text and not glob.glob(text, recursive=True):
            raise FileNotFoundError(f"There is no file {text}.")
        _refuse(source, name=name, revision=revision)
        return partial(load_dataset, "parquet", data_files=text)
    if isinstance(source, Path) or text.startswith((".", os.sep)) or text.count("/") > 1 or folder.exists():
        raise FileNotFoundError(
            f"{source} is neither a folder, nor a parquet file, nor a table (.csv, .tsv), nor a name on the Hub."
        )
    if revision is not None or "/" not in text:
        _ask_hub(text, revision, token)
    return partial(load_dataset, text, name, revision=revision)


def _folder_loader(source: str | Path, folder: Path, name: str | None, revision: str | None) -> Callable[..., Any]:
    listing = list_folder(folder)
    if listing.parquet:
        _refuse(source, revision=revision)
        return partial(load_dataset, str(folder), name)
    if not listing.images:
        raise FileNotFoundError(f"{source} holds neither images nor parquet files. {listing.left_out()}".strip())
    _refuse(source, name=name, revision=revision)
    if left_out := listing.left_out():
        logger.info(left_out)
    if listing.metadata:
        return partial(load_dataset, "imagefolder", data_files=_image_patterns(listing))
    found = class_folders(listing)
    for note in found.notes:
        logger.warning(note)
    return partial(_load_files, folder, found.splits, found.class_names)


def _ask_hub(name: str, revision: str | None, token: str | bool | None) -> None:
    """Ask the Hub once for a revision, or for a name that looks like a missing folder's and is not cached.

    `load_dataset` would take any other revision from its cache, and try again for long where nothing answers.
    """
    if revision is None and any(Path(config.HF_DATASETS_CACHE).glob(glob.escape(name))):
        return
    what = name if revision is None else f"revision {revision!r} of {name}"
    no_folder = f"There is no folder {name}, and " if revision is None else ""
    try:
        HfApi(token=token).dataset_info(name, revision=revision)
    except Exception as error:  # the Hub's, or its HTTP client's, which changed with its versions
        raise FileNotFoundError(f"{no_folder}{what} could not be downloaded from the Hub: {error}") from error


def _refuse(source: str | Path, **options: str | None) -> None:
    if given := [name for name, value in options.items() if value is not None]:
        raise ValueError(f"{' and '.join(given)} cannot be given for {source}, only for a name on the Hub.")


def _image_patterns(listing: Listing) -> dict[str, list[str]]:
    """Name the files of every split, without datasets' guesses, which take a class `train_station` for a split."""
    places = split_folders(listing) or {str(Split.TRAIN): ""}
    return {split: [glob.escape(str(listing.folder / place)) + "/**"] for split, place in places.items()}


def _load_files(
    folder: str | Path,
    splits: Mapping[str, Mapping[str, str]],
    names: Sequence[str],
    split: str | None = None,
    streaming: bool = False,
    token: object = None,
) -> Any:
    """Load the classes of files in a folder, with the splits, parts of splits and types of `load_dataset`."""
    root = os.path.abspath(folder)
    number_of = {name: number for number, name in enumerate(names)}
    parts = DatasetDict()
    for name, images in splits.items():
        rows = [(os.path.join(root, path), number_of[kind]) for path, kind in images.items()]
        parts[name] = from_files(rows, names, Split(name))
    if split is not None:
        wanted = ReadInstruction.from_spec("+".join(parts) if split == "all" else split)
        chosen = wanted.to_absolute({name: len(part) for name, part in parts.items()})
        part = concatenate_datasets([parts[each.splitname].select(range(each.from_, each.to)) for each in chosen])
        return part.to_iterable_dataset() if streaming else part
    return IterableDatasetDict({n: part.to_iterable_dataset() for n, part in parts.items()}) if streaming else parts


# --- columns


def _image_columns(features: Features) -> list[str]:
    return [column for column, feature in features.items() if isinstance(feature, ImageFeature)]


def _label_columns(features: Features) -> list[str]:
    named = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    return named or [column for column, feature in features.items() if _holds(feature, "string", "int")]


def _holds(feature: Any, *types: str) -> bool:
    return isinstance(feature, Value) and any(each in feature.dtype for each in types)


def _only(argument: str, candidates: list[str], features: Features) -> str:
    if len(candidates) > 1:
        raise ValueError(f"{', '.join(candidates)} could be meant: give {argument}.")
    if not candidates:
        raise ValueError(f"none of the columns {', '.join(features)} fits: give {argument}.")
    return candidates[0]


def _names_in_data(
    feature: Any, class_names: ClassNames | None, read_labels: Callable[[], Iterable[str]]
) -> list[str]:
    """Return the classes as the data name them, in the order of the labels."""
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    if is_list(class_names) and _holds(feature, "string", "int"):
        return list(class_names)
    if _holds(feature, "string"):
        return sorted(read_labels())
    raise ValueError(f"labels of type {feature} need class_names, a list with the name of every label from 0 on.")


def _strings(parts: Mapping[str, Any], column: str) -> set[str]:
    """Return all labels of all splits, so that every split numbers them alike."""
    if any(isinstance(part, IterableDataset) for part in parts.values()):
        raise ValueError(f"labels that are strings ({column}) need class_names, a list of them, to be streamed.")
    return {text for part in parts.values() for text in part.unique(column) if text is not None}


def _numbers(labels: list[Any], raw: list[str]) -> list[Any]:
    """Return labels that are strings or integers as positions in `raw`."""
    positions = {name: number for number, name in enumerate(raw)}
    numbers = [positions.get(label) if isinstance(label, str) else label for label in labels]
    allowed = {UNLABELLED, *positions.values()}
    if wrong := {label for label, number in zip(labels, numbers, strict=True) if number not in allowed}:
        raise ValueError(f"labels {sorted(wrong, key=str)} are none of the {len(raw)} classes {raw}.")
    return numbers


def _with_columns(dataset: Any, image: str, label: str, raw: list[str], names: list[str]) -> Any:
    if isinstance(dataset, IterableDataset):
        return map_stream(dataset, image, partial(_rename_columns, image=image, label=label, raw=raw), names)
    numbers = np.array(_numbers(label_column(dataset, label), raw), dtype=np.int64)
    images = dataset.select_columns(image).rename_columns({image: IMAGE}).cast_column(IMAGE, RGBImage())
    return with_labels(images, numbers, names)


def _rename_columns(batch: dict[str, list[Any]], image: str, label: str, raw: list[str]) -> dict[str, list[Any]]:
    return {IMAGE: batch[image], LABEL: _numbers(batch[label], raw)}
