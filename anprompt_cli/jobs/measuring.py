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
from anprompt_peft.evaluation import Estimate, balanced_accuracy, class_sizes, is_imbalanced, macro_f1
from anprompt_peft.evaluation.tables import ClassRow, class_rows, estimates
from anprompt_peft.report import Predictions, describe_adapter, predict

from ..text import aligned
from .labelled import public_name, sources

ZERO_SHOT, ADAPTED = "zero-shot CLIP", "ANPrompt"
BALANCED = {"balanced accuracy": balanced_accuracy, "macro-F1": macro_f1}


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

    def balanced(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return balanced accuracy and macro-F1 in per cent, by method and part: every class counts the same."""
        methods = {ZERO_SHOT: self.zero_shot, ADAPTED: self.adapted}
        return {
            measure: {method: {part.name: figure(part) for part in parts} for method, parts in methods.items()}
            for measure, figure in BALANCED.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain numbers."""
        accuracies = {
            method: {name: asdict(estimate) for name, estimate in figures.items()}
            for method, figures in self.estimates().items()
        }
        classes = {name: {row.name: _counts(row) for row in rows} for name, rows in self.class_rows().items()}
        balanced = self.balanced()
        return {
            "accuracy_percent": accuracies,
            "balanced_accuracy_percent": balanced["balanced accuracy"],
            "macro_f1_percent": balanced["macro-F1"],
            "classes": classes,
        }

    def summary(self) -> str:
        """Return the gain over zero-shot CLIP, then the accuracies, and balanced figures of imbalanced classes."""
        figures = self.estimates()
        name, ours = list(figures[ADAPTED].items())[-1]
        before, where = figures[ZERO_SHOT][name].value, " in the harmonic mean" if len(self.adapted) > 1 else ""
        gain = f"{ours.value - before:+.1f} points over zero-shot{where}, {ours.value:.1f} against {before:.1f}"
        head = ["accuracy in % [95 % interval]", *figures[ADAPTED]]
        lines = [gain, aligned([head, *([method, *map(str, row.values())] for method, row in figures.items())])]
        if self.imbalance():
            for measure, methods in self.balanced().items():
                rows = ([method, *(f"{each:.1f}" for each in parts.values())] for method, parts in methods.items())
                lines.append(aligned([[f"{measure} in %", *(part.name for part in self.adapted)], *rows]))
        return "\n\n".join(lines)

    def imbalance(self) -> dict[str, tuple[int, int]]:
        """Return the fewest and most images of a class, for parts in which they differ by more than half."""
        return {part.name: class_sizes(part) for part in self.adapted if is_imbalanced(part)}

    def notes(self) -> list[str]:
        """Return what a reader of the figures must know."""
        notes: list[str] = []
        figures = self.estimates()
        pairs = [(name, ours, figures[ZERO_SHOT][name]) for name, ours in figures[ADAPTED].items()]
        if below := [
            f"{ours.value:.1f} against {before.value:.1f} %" + (f" ({name})" if len(pairs) > 1 else "")
            for name, ours, before in pairs
            if ours.value < before.value
        ]:
            notes.append(
                f"The adapter is below zero-shot CLIP: {', '.join(below)}. Train for longer or on more images, or use "
                "CLIP without it."
            )
        balanced = self.balanced()
        for name, (low, high) in self.imbalance().items():
            shown = (
                f"{measure} {methods[ADAPTED][name]:.1f} % ({methods[ZERO_SHOT][name]:.1f} zero-shot)"
                for measure, methods in balanced.items()
            )
            notes.append(f"Classes of {name} have {low} to {high} images: {', '.join(shown)}.")
        return notes

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


def describe(model: Any) -> dict[str, Any]:
    """Return what the report says about the active adapter, without the folder that the base model is in."""
    settings = describe_adapter(model)
    return {**settings, "base model": public_name(settings["base model"])}


def _counts(row: ClassRow) -> dict[str, int | None]:
    return {"images": row.images, "right": row.right, "zero_shot_right": row.zero_shot_right}


def _cells(row: ClassRow) -> list[str]:
    shares = [f"{100 * (right or 0) / row.images:.1f}" for right in (row.zero_shot_right, row.right)]
    mistaken = f"{row.mistaken_for[0]} ({row.mistaken_for[1]})" if row.mistaken_for else ""
    return [row.name, str(row.images), *shares, mistaken]
