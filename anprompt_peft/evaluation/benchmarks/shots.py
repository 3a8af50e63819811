"""Few-shot draws: the images that a method may learn from, and a JSON file that keeps which they were.

The draw `coop` is that of CoOp's public code (Zhou et al., 2022, arXiv 2109.01134), from the order of the images and
the seed alone. That code keeps its draws as pickles, which are never read here: they can be drawn again.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from ...data import RGBImage, ShotsError, class_names_of, sample_shots
from ...data.columns import labels_of
from ...data.images import IMAGE
from ...files import read_json, to_json, whole_file
from .record import BenchmarkData

COOP, SEEDED = "coop", "seeded"
SAMPLINGS = (COOP, SEEDED)
VALIDATION_SHOTS = 4


@dataclass(frozen=True)
class Shots:
    """Which images were drawn.

    Args:
        train (`tuple[int, ...]`): rows of the split train, those of one class after the other.
        validation (`tuple[int, ...]`): rows of the split validation, empty where there is none.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...] = ()

    def save(self, path: str | Path, data: BenchmarkData) -> None:
        """Write the draw atomically as JSON: `[row, image, class]` for every shot.

        The image is its file with the folder that it is in, and empty where it has none.
        """
        record = {
            "data": data.name,
            "train": _describe(data.train, self.train),
            "validation": [] if data.validation is None else _describe(data.validation, self.validation),
        }
        with whole_file(Path(path)) as fresh:
            fresh.write_text(to_json(record), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, data: BenchmarkData) -> Shots:
        """Read what [`save`] wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds something else, or was drawn from other data.
        """
        try:
            record = read_json(path)
            return cls(
                _find(data.train, record["train"]),
                () if data.validation is None else _find(data.validation, record["validation"]),
            )
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{path} does not hold shots of {data.name}: {error!r}") from error


def draw_shots(data: BenchmarkData, shots: int, seed: int, sampling: str = COOP) -> Shots:
    """Draw shots of every class; no image is decoded.

    Args:
        data (`BenchmarkData`): the data set.
        shots (`int`): k, the images per class; a class with fewer gives all it has with `coop`.
        seed (`int`): names the draw.
        sampling (`str`): `coop`: one stream of random numbers for all classes in the order of their first images, k
            from train and then `min(k, 4)` from validation. `seeded`: [`sample_shots`], a stream for each class.

    Raises:
        ShotsError: if `shots` is below 1, or there are no images to draw from.
        ValueError: for another sampling.
    """
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling={sampling!r} must be one of {', '.join(SAMPLINGS)}.")
    if shots < 1:
        raise ShotsError(f"shots={shots} must be at least 1.")
    if not len(data.train):
        raise ShotsError(f"{data.name} has no images to train on: it is only measured on.")
    few = min(shots, VALIDATION_SHOTS)
    validation = [] if data.validation is None else labels_of(data.validation).tolist()
    train = labels_of(data.train).tolist()
    if sampling == SEEDED:
        return Shots(
            tuple(sample_shots(train, shots, seed)), tuple(sample_shots(validation, few, seed)) if validation else ()
        )
    stream = random.Random(seed)
    return Shots(_from_stream(train, shots, stream), _from_stream(validation, few, stream))


def _from_stream(labels: Sequence[int], shots: int, stream: random.Random) -> tuple[int, ...]:
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        rows_of[label].append(row)
    drawn = (stream.sample(rows, shots) if len(rows) >= shots else rows for rows in rows_of.values())
    return tuple(row for rows in drawn for row in rows)


def _describe(split: Dataset, rows: Sequence[int]) -> list[list[int | str]]:
    names, labels = class_names_of(split), labels_of(split)
    chosen = split.with_format(None).cast_column(IMAGE, RGBImage(decode=False))
    return [[row, _short(chosen[row][IMAGE]["path"]), names[labels[row]]] for row in rows]


def _short(path: str | None) -> str:
    return "/".join(Path(path or "").parts[-2:])


def _find(split: Dataset, kept: Sequence[Sequence[int | str]]) -> tuple[int, ...]:
    rows = [int(row) for row, _, _ in kept]
    found = _describe(split, rows)
    if wrong := [each for each, there in zip(kept, found, strict=True) if list(each) != there]:
        raise ValueError(f"{wrong[0]} is not what the data have there.")
    return tuple(rows)
