"""What an adapter and zero-shot CLIP get right on labelled images, as predictions, record and table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import default_data_collator

from anprompt_peft.data import ClipTransform, class_names_of
from anprompt_peft.data.images import IMAGE
from anprompt_peft.evaluation import Estimate
from anprompt_peft.evaluation.tables import ClassRow, class_rows, estimates
from anprompt_peft.report import Predictions, predict

from .labelled import sources
from .text import aligned

ZERO_SHOT, ADAPTED = "zero-shot CLIP", "ANPrompt"


@dataclass(frozen=True)
class Measured:
    """Predictions of both models for the same parts of the data, in the same order.

    Attributes:
        adapted (`list[Predictions]`): of the adapted model.
        zero_shot (`list[Predictions]`): of the same model with the adapter switched off.
    """

    adapted: list[Predictions]
    zero_shot: list[Predictions]

    def estimates(self) -> dict[str, dict[str, Estimate]]:
        """Return, by method, the accuracy on each part and, for two parts, their harmonic mean."""
        return {ZERO_SHOT: estimates(self.zero_shot), ADAPTED: estimates(self.adapted)}

    def class_rows(self) -> dict[str, list[ClassRow]]:
        """Return the figures of every class, by part."""
        pairs = zip(self.adapted, self.zero_shot, strict=True)
        return {ours.name: class_rows(ours, theirs) for ours, theirs in pairs}

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain numbers."""
        accuracies = {
            method: {name: asdict(estimate) for name, estimate in figures.items()}
            for method, figures in self.estimates().items()
        }
        classes = {name: {row.name: _counts(row) for row in rows} for name, rows in self.class_rows().items()}
        return {"accuracy_percent": accuracies, "classes": classes}

    def table(self) -> str:
        """Return the accuracies as text."""
        figures = self.estimates()
        head = ["accuracy in % [95 % interval]", *figures[ADAPTED]]
        return aligned([head, *([method, *map(str, row.values())] for method, row in figures.items())])

    def class_table(self) -> str:
        """Return the accuracy on every class as text, the lowest first."""
        head = ["images", f"{ZERO_SHOT}, %", f"{ADAPTED}, %", "most often taken for"]
        rows: list[list[str]] = []
        for part, classes in self.class_rows().items():
            rows += [[f"{part} class", *head], *(_cells(row) for row in classes if row.images)]
        return aligned(rows)


def measure(model: Any, parts: Mapping[str, Dataset], processor: Any, batch_size: int, workers: int) -> Measured:
    """Classify each part's images among that part's classes, with the adapter and without.

    Args:
        model (`PeftModel`): left with the classes it was trained on.
        parts (`Mapping[str, Dataset]`): labelled images by name of the part.
        processor: CLIP's image processor.
        batch_size (`int`): images per forward pass.
        workers (`int`): processes that read images.
    """
    measured = Measured([], [])
    transform = ClipTransform(processor)
    for name, dataset in parts.items():
        model.set_classes(class_names_of(dataset))
        batches: Any = DataLoader(
            transform.apply(dataset), batch_size, num_workers=workers, collate_fn=default_data_collator
        )
        extras = (lambda row, images=dataset: images[row][IMAGE]), sources(dataset)
        measured.adapted.append(predict(model, batches, name, *extras))
        with model.disable_adapter():
            measured.zero_shot.append(predict(model, batches, name, *extras))
    model.set_classes(None)
    return measured


def _counts(row: ClassRow) -> dict[str, int | None]:
    return {"images": row.images, "right": row.right, "zero_shot_right": row.zero_shot_right}


def _cells(row: ClassRow) -> list[str]:
    shares = [f"{100 * (right or 0) / row.images:.1f}" for right in (row.zero_shot_right, row.right)]
    mistaken = f"{row.mistaken_for[0]} ({row.mistaken_for[1]})" if row.mistaken_for else ""
    return [row.name, str(row.images), *shares, mistaken]
