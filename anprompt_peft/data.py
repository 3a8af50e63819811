"""Labelled images from the Hub, folders or parquet files, and draws, splits and classes of them."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, Value, load_dataset
from datasets import Image as ImageFeature
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from sklearn.model_selection import train_test_split

from .config import check_class_names
from .images import IMAGE, LABEL, STREAM_BATCH, RGBImage
from .names import readable, readable_names
from .sampling import ShotsError, sample_shots

SPLITS = {"train": ["train"], "validation": ["validation", "valid", "val", "dev"], "test": ["test"]}
UNLABELLED = -1

ClassNames = Sequence[str] | Mapping[str, str]


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

    A folder of images has one sub-folder per class. If it has sub-folders `train`, `validation` (also `valid`, `val`
    or `dev`) or `test` that hold folders themselves, those are the splits, and anything beside them is left out;
    otherwise all of it is the split `train`.

    Args:
        source (`str` or `Path`): a folder of images, a parquet file, a glob of them (`"data/*.parquet"`), a folder
            with parquet files, or the name of a data set on the Hub.
        split (`str`, *optional*): one split, or a part such as `"train[:10%]"`.
        name (`str`, *optional*): configuration of a data set on the Hub or of a folder with parquet files.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        token (`str` or `bool`, *optional*): for private data sets on the Hub.
        streaming (`bool`): read while iterating, instead of preparing everything first.
        image_column (`str`, *optional*): needed unless exactly one column has the type `Image`.
        label_column (`str`, *optional*): needed unless exactly one column is a `ClassLabel` or, where none is, holds
            strings or integers.
        class_names (`list[str]` or `dict[str, str]`, *optional*): better names than [`readable_names`] makes of those
            in the data. A dict goes from names in the data to better ones and may leave names out. A list has one
            name for every `ClassLabel` or integer label, in their order; where labels are strings, it lists them.

    Returns:
        `Dataset` or `IterableDataset`, or, without `split`, a dict of them: columns `image`, an [`RGBImage`] decoded
        on access, and `label`, a `ClassLabel`, with -1 for examples that the data mark as unlabelled.

    Raises:
        FileNotFoundError: if there is no such folder, file or revision, or no images or parquet files in the folder.
        ValueError: if columns are missing or ambiguous, labels and class names do not fit, or two names read alike.
    """
    if class_names is not None and not isinstance(class_names, Mapping):
        check_class_names(class_names)
    load = partial(_loader(source, name, revision, token), streaming=streaming, token=token)
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
    names = _chosen_names(raw, class_names)
    check_class_names(names)
    for part, dataset in parts.items():
        parts[part] = _with_columns(dataset, image, label, raw, names)
    return parts if split is None else parts[split]


def class_names_of(dataset: Dataset | IterableDataset) -> list[str]:
    """Return the class names of a data set, in the order of its labels.

    Raises:
        ValueError: if its column `label` is missing or no `ClassLabel`.
    """
    feature = (dataset.features or {}).get(LABEL)
    if not isinstance(feature, ClassLabel):
        raise ValueError(f"need a column 'label' of type ClassLabel, as load_image_data makes it, got {feature!r}.")
    return list(feature.names)


def few_shot(dataset: Dataset, shots: int, seed: int) -> Dataset:
    """Return `shots` examples of every class, drawn by [`sample_shots`]; no image is decoded.

    Raises:
        ShotsError: if `shots` is below 1 or a class has fewer examples.
        ValueError: if an example is unlabelled.
        TypeError: for a stream.
    """
    labels, names = _labels(dataset), class_names_of(dataset)
    counts = np.bincount(labels, minlength=len(names))
    if short := {name: int(count) for name, count in zip(names, counts, strict=True) if count < shots}:
        raise ShotsError(f"shots={shots} asks for more examples than these classes have: {short}.")
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
    labels = _labels(dataset)
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
    known = class_names_of(dataset)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown classes {unknown}: the data have {known}.")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"select one class or more, each once, got {list(names)}.")
    numbers = {known.index(name): position for position, name in enumerate(names)}
    if isinstance(dataset, IterableDataset):
        return _map_stream(dataset, IMAGE, partial(_keep_labels, numbers=numbers), names)
    renumbered = np.array([numbers.get(label, UNLABELLED) for label in _label_column(dataset)], dtype=np.int64)
    return _with_labels(dataset, renumbered, names).select(np.flatnonzero(renumbered != UNLABELLED))


def _loader(
    source: str | Path, name: str | None, revision: str | None, token: str | bool | None
) -> Callable[..., Any]:
    """Choose how `load_dataset` reads `source`."""
    text = os.path.expanduser(source)
    folder = Path(text)
    if folder.is_dir():
        if any(file.name != "metadata.parquet" for file in folder.rglob("*.parquet")):
            _refuse(source, revision=revision)
            return partial(load_dataset, text, name)
        if not any(file.suffix.lower() in ImageFolder.EXTENSIONS for file in folder.rglob("*")):
            raise FileNotFoundError(f"{source} holds neither images nor parquet files.")
        _refuse(source, name=name, revision=revision)
        return partial(load_dataset, "imagefolder", data_files=_image_patterns(folder))
    if text.endswith(".parquet"):
        if "://" not in text and not glob.glob(text, recursive=True):
            raise FileNotFoundError(f"There is no file {text}.")
        _refuse(source, name=name, revision=revision)
        return partial(load_dataset, "parquet", data_files=text)
    if isinstance(source, Path) or text.startswith((".", os.sep)) or text.count("/") > 1 or folder.exists():
        raise FileNotFoundError(f"{source} is neither a folder, nor a parquet file, nor a name on the Hub.")
    if revision is not None:
        _check_revision(text, revision, token)
    return partial(load_dataset, text, name, revision=revision)


def _check_revision(name: str, revision: str, token: str | bool | None) -> None:
    """Ask the Hub for a revision: where it cannot be had, `load_dataset` would take any other from its cache."""
    try:
        HfApi(token=token).dataset_info(name, revision=revision)
    except (HfHubHTTPError, OfflineModeIsEnabled) as error:
        raise FileNotFoundError(f"revision {revision!r} of {name} cannot be had from the Hub: {error}") from error


def _refuse(source: str | Path, **options: str | None) -> None:
    if given := [name for name, value in options.items() if value is not None]:
        raise ValueError(f"{' and '.join(given)} cannot be given for {source}, only for a name on the Hub.")


def _image_patterns(folder: Path) -> dict[str, list[str]]:
    """Name the files of every split, without datasets' guesses, which take a class `train_station` for a split."""
    splits = {
        split: [glob.escape(str(folder / alias)) + "/**" for alias in aliases if _holds_examples(folder / alias)]
        for split, aliases in SPLITS.items()
    }
    return {split: found for split, found in splits.items() if found} or {"train": [glob.escape(str(folder)) + "/**"]}


def _holds_examples(folder: Path) -> bool:
    return folder.is_dir() and any(entry.is_dir() or entry.stem == "metadata" for entry in folder.iterdir())


def _image_columns(features: Features) -> list[str]:
    return [column for column, feature in features.items() if isinstance(feature, ImageFeature)]


def _is_text(feature: Any) -> bool:
    return isinstance(feature, Value) and "string" in feature.dtype


def _is_integer(feature: Any) -> bool:
    return isinstance(feature, Value) and "int" in feature.dtype


def _label_columns(features: Features) -> list[str]:
    named = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    return named or [column for column, feature in features.items() if _is_text(feature) or _is_integer(feature)]


def _only(argument: str, candidates: list[str], features: Features) -> str:
    if len(candidates) > 1:
        raise ValueError(f"{', '.join(candidates)} could be meant: give {argument}.")
    if not candidates:
        raise ValueError(
            f"none of the columns {', '.join(features)} fits: give {argument}. (A folder of images has labels only if "
            "it has two or more sub-folders of classes, all at the same depth.)"
        )
    return candidates[0]


def _names_in_data(
    feature: Any, class_names: ClassNames | None, read_labels: Callable[[], Iterable[str]]
) -> list[str]:
    """The classes as the data name them, in the order of the labels."""
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    listed = class_names is not None and not isinstance(class_names, Mapping)
    if listed and (_is_text(feature) or _is_integer(feature)):
        return list(class_names or ())
    if _is_text(feature):
        return sorted(read_labels())
    raise ValueError(f"labels of type {feature} need class_names, a list with the name of every label from 0 on.")


def _chosen_names(raw: list[str], class_names: ClassNames | None) -> list[str]:
    """The names to use for the classes `raw`, in the same order."""
    if class_names is None:
        return readable_names(raw)
    if isinstance(class_names, Mapping):
        if unknown := set(class_names) - set(raw):
            raise ValueError(f"class_names renames {sorted(unknown)}, which are not among the data's classes {raw}.")
        return [class_names[name] if name in class_names else readable(name) for name in raw]
    names = list(class_names)
    if len(names) != len(raw):
        raise ValueError(f"class_names lists {len(names)} names for {len(raw)} classes: {raw}.")
    positions = {readable(old): at for at, old in enumerate(raw)} | {old: at for at, old in enumerate(raw)}
    if moved := [name for at, name in enumerate(names) if positions.get(name, at) != at]:
        raise ValueError(
            f"class_names gives {moved} to other classes than the data do, whose order is {raw}. Rename with a dict, "
            "{name: better name}; reorder with select_classes."
        )
    return names


def _strings(parts: Mapping[str, Any], column: str) -> set[str]:
    """All labels of all splits, so that every split numbers them alike."""
    if any(isinstance(part, IterableDataset) for part in parts.values()):
        raise ValueError(f"labels that are strings ({column}) need class_names, a list of them, to be streamed.")
    return {text for part in parts.values() for text in part.unique(column) if text is not None}


def _numbers(labels: list[Any], raw: list[str]) -> list[Any]:
    """Labels that are strings or integers as positions in `raw`."""
    positions = {name: number for number, name in enumerate(raw)}
    numbers = [positions.get(label) if isinstance(label, str) else label for label in labels]
    allowed = {UNLABELLED, *positions.values()}
    if wrong := {label for label, number in zip(labels, numbers, strict=True) if number not in allowed}:
        raise ValueError(f"labels {sorted(wrong, key=str)} are none of the {len(raw)} classes {raw}.")
    return numbers


def _with_columns(dataset: Any, image: str, label: str, raw: list[str], names: list[str]) -> Any:
    if isinstance(dataset, IterableDataset):
        return _map_stream(dataset, image, partial(_rename_columns, image=image, label=label, raw=raw), names)
    numbers = np.array(_numbers(_label_column(dataset, label), raw), dtype=np.int64)
    images = dataset.select_columns(image).rename_columns({image: IMAGE}).cast_column(IMAGE, RGBImage())
    return _with_labels(images, numbers, names)


def _label_column(dataset: Dataset, column: str = LABEL) -> list[Any]:
    """One column as Python values. It is read alone: taking rows of a data set would read their images too."""
    return dataset.with_format(None).select_columns(column)[:][column]


def _labels(dataset: Dataset) -> np.ndarray:
    if isinstance(dataset, IterableDataset):
        raise TypeError("a stream has no labels to choose from: load the data with streaming=False.")
    count = len(class_names_of(dataset))
    labels = np.array(_label_column(dataset), dtype=np.int64)
    if wrong := int(np.count_nonzero((labels < 0) | (labels >= count))):
        raise ValueError(f"{wrong} of {len(labels)} examples have no label from 0 to {count - 1}.")
    return labels


def _with_labels(dataset: Dataset, labels: np.ndarray, names: Sequence[str]) -> Dataset:
    """Set the labels beside the images; casting the column would rewrite the images to disk."""
    unlabelled = dataset.with_format(None).select_columns(IMAGE)
    return unlabelled.add_column(LABEL, labels, feature=ClassLabel(names=list(names)))


def _map_stream(stream: IterableDataset, image: str, function: Any, names: Sequence[str]) -> IterableDataset:
    """Map a stream with its images left as they are, and set the types after it: earlier they would decode images."""
    raw = stream.decode(False).cast_column(image, RGBImage(decode=False))
    mapped = raw.map(function, batched=True, batch_size=STREAM_BATCH, remove_columns=list(stream.features))
    return mapped.cast(Features({IMAGE: RGBImage(), LABEL: ClassLabel(names=list(names))}))


def _rename_columns(batch: dict[str, list[Any]], image: str, label: str, raw: list[str]) -> dict[str, list[Any]]:
    return {IMAGE: batch[image], LABEL: _numbers(batch[label], raw)}


def _keep_labels(batch: dict[str, list[Any]], numbers: dict[int, int]) -> dict[str, list[Any]]:
    kept = [
        (image, numbers[label]) for image, label in zip(batch[IMAGE], batch[LABEL], strict=True) if label in numbers
    ]
    return {IMAGE: [image for image, _ in kept], LABEL: [label for _, label in kept]}
