"""Random crops by seed, epoch and row alone, so that a resumed run sees the same ones."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.images import IMAGE, RGBImage
from ..text import printable

ROW = "anprompt_row"
"""Key under which a batch carries the numbers of its rows."""


class SeededDataset(Dataset):
    """A data set whose transform draws torch's random numbers by seed, epoch and row.

    So neither the workers' random states matter nor that Trainer restores a checkpoint's after the next batches were
    read. Rows that are dictionaries carry their number, so that a batch that goes wrong can be named.

    Args:
        dataset: with `len(...)` and a row by number.
        seed (`int`): names the draw.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # shared with persistent workers

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> Any:
        (seed,) = np.random.SeedSequence([self.seed, int(self.epoch), row]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(seed))
            values = self.dataset[row]
        return {**values, ROW: row} if isinstance(values, dict) else values

    def names(self, rows: list[int]) -> list[str]:
        """Return the files of rows, or their numbers where the data set names no files."""
        files: dict[int, str | None] = {}
        if isinstance(self.dataset, datasets.Dataset) and IMAGE in self.dataset.column_names:
            images = self.dataset.with_format(None).select_columns(IMAGE).cast_column(IMAGE, RGBImage(decode=False))
            files = dict(zip(rows, ((each or {}).get("path") for each in images[rows][IMAGE]), strict=True))
        return [printable(files.get(row) or f"row {row}") for row in rows]


class SetEpochCallback(TrainerCallback):
    """Sets the epoch of a [`SeededDataset`]."""

    def __init__(self, rows: SeededDataset) -> None:
        self.rows = rows

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the number of the epoch."""
        self.rows.epoch.fill_(int(state.epoch or 0))
        draw_as_new(kwargs.get("train_dataloader"))


def draw_as_new(loader: Any) -> None:
    """Draw what starting workers draws, for a loader whose persistent ones run already, so that later draws agree."""
    if getattr(loader, "_iterator", None) is not None:
        torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
