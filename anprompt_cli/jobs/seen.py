"""Which images a run was trained on and which it held out: kept beside the adapter, for `anprompt evaluate`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from pydantic import TypeAdapter, ValidationError

from anprompt_peft.data.inspect import digests
from anprompt_peft.files import read_json

from ..config_file import RECORD
from ..records import read_record

IMAGES = "images.json"
MEASURED_SPLITS = ("test", "validation")
HOLD_OUT = "`anprompt train --test-share 0.2` holds a fifth of the images out."


@dataclass(frozen=True)
class Seen:
    """Digests of images: trained on, used to choose the best checkpoint, and held out by a share, by split."""

    trained_on: list[str]
    chosen_on: list[str] = field(default_factory=list)
    held_out: dict[str, list[str]] = field(default_factory=dict)

    def count_trained(self, parts: Mapping[str, Dataset]) -> int:
        """Return how many images of some data sets were trained on."""
        return _count(parts, self.trained_on)

    def select_held_out(self, pool: Dataset, split: str) -> Dataset:
        """Return the images of `pool` that were held out as `split`."""
        wanted, rows = Counter(self.held_out.get(split, ())), []
        for row, digest in enumerate(digests(pool)):
            if digest and wanted[digest]:
                wanted[digest] -= 1
                rows.append(row)
        return pool.select(rows)

    def notes(self, parts: Mapping[str, Dataset], cure: str) -> list[str]:
        """Return what a reader of figures on these images must know, with what to do about it."""
        images, notes = sum(map(len, parts.values())), []
        if trained := self.count_trained(parts):
            notes.append(
                f"The adapter was trained on {trained} of the {images} images that it is measured on, so the figures "
                f"do not tell how it does on new ones. {cure}"
            )
        if _count(parts, self.chosen_on):
            notes.append("The best checkpoint was chosen on the images that the figures come from.")
        return notes


@dataclass(frozen=True)
class Run:
    """What `run.yaml` says about the data of a run."""

    data: str
    train_split: str = "train"
    test_share: float | None = None
    validation_share: float | None = None
    data_config: str | None = None
    data_revision: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    class_names: list[str] | None = None
    classes_file: Path | None = None
    rename: list[str] | None = None

    def is_of(self, data: str) -> bool:
        """Whether the run was one on these data."""
        path = Path(data).expanduser()
        return self.data == (str(path.resolve()) if path.exists() else data)


def read_run(folder: Path) -> Run | None:
    """Return what a folder's `run.yaml` says about the data, `None` if there is none."""
    path = folder / RECORD
    return _checked(path, Run, read_record) if path.is_file() else None


def read_seen(folder: Path) -> Seen | None:
    """Return which images the run in a folder has seen, `None` if it has not told."""
    path = folder / IMAGES
    return _checked(path, Seen, read_json) if path.is_file() else None


def _checked(path: Path, kind: Any, read: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(read(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path} was not written by anprompt train: {where}: {first['msg']}.") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _count(parts: Mapping[str, Dataset], known: Iterable[str]) -> int:
    wanted = set(known) - {""}
    return sum(digest in wanted for part in parts.values() for digest in digests(part)) if wanted else 0
