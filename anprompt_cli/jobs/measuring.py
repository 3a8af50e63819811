"""What an adapter and zero-shot CLIP get right on labelled images, as predictions, record and table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from typing import Any

from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import default_data_collator

from anprompt_peft.classifier import CLIPClassifier
from anprompt_peft.data import ClipTransform, class_names_of
from anprompt_peft.data.images import IMAGE
from anprompt_peft.data.inspect import image_names
from anprompt_peft.evaluation import Estimate, Predictions, class_sizes, is_imbalanced
from anprompt_peft.evaluation.adapter import FittedAdapter
from anprompt_peft.evaluation.backbone import CLIPFeatures
from anprompt_peft.evaluation.peers import METHODS
from anprompt_peft.evaluation.peers.probe import LinearProbe
from anprompt_peft.evaluation.peers.zero_shot import FrozenCLIP
from anprompt_peft.evaluation.predictions import LogitsError, predict_part
from anprompt_peft.evaluation.tables import ClassRow, class_rows, estimates
from anprompt_peft.evaluation.task import BATCH, ClassTexts, Fitted, ImageSet, Part
from anprompt_peft.report import describe_adapter
from anprompt_peft.training import NonFiniteError
from anprompt_peft.tuner import adapted_clip

from ..text import aligned
from .labelled import public_name

ZERO_SHOT, PROBE, ADAPTED = "zero-shot CLIP", "linear probe", "ANPrompt"
BALANCED = {"balanced accuracy": attrgetter("balanced_accuracy"), "macro-F1": attrgetter("macro_f1")}


@dataclass(frozen=True)
class Measured:
    """Predictions of all methods for the same parts of the data, in the same order."""

    adapted: list[Predictions]
    zero_shot: list[Predictions]  # of the same model with the adapter switched off
    probe: list[Predictions] = field(default_factory=list)  # on the training images; empty where there are none
    method: str = field(default=ADAPTED, kw_only=True)  # what the first predictions are of

    def methods(self) -> dict[str, list[Predictions]]:
        """Return the predictions by method."""
        probe = {PROBE: self.probe} if self.probe else {}
        return {ZERO_SHOT: self.zero_shot, **probe, self.method: self.adapted}

    def estimates(self) -> dict[str, dict[str, Estimate]]:
        """Return, by method, the accuracy on each part and, for two parts, their harmonic mean."""
        return {method: estimates(parts) for method, parts in self.methods().items()}

    def class_rows(self) -> dict[str, list[ClassRow]]:
        """Return the figures of every class, by part."""
        pairs = zip(self.adapted, self.zero_shot, strict=True)
        return {ours.name: class_rows(ours, theirs) for ours, theirs in pairs}

    def balanced(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return balanced accuracy and macro-F1 in per cent, by method and part."""
        return {
            measure: {method: {part.name: figure(part) for part in parts} for method, parts in self.methods().items()}
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
        """Return the gain over zero-shot CLIP, then all accuracies, and balanced figures of imbalanced classes."""
        figures = self.estimates()
        name, ours = list(figures[self.method].items())[-1]
        before, where = figures[ZERO_SHOT][name].value, " in the harmonic mean" if len(self.adapted) > 1 else ""
        gain = f"{ours.value - before:+.1f} points over zero-shot{where}, {ours.value:.1f} against {before:.1f}"
        head = ["accuracy in % [95 % interval]", *figures[self.method]]
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
        """Return what a reader of the figures must know: which methods are ahead, and imbalanced classes."""
        return [*self._ahead(), *self._imbalanced()]

    def _ahead(self) -> Iterator[str]:
        figures = self.estimates()
        ours = {name: figure.value for name, figure in figures[self.method].items()}
        where = {name: f" ({name})" if len(ours) > 1 else "" for name in ours}
        before = {name: figure.value for name, figure in figures[ZERO_SHOT].items()}
        below = [f"{ours[at]:.1f} against {before[at]:.1f} %{where[at]}" for at in ours if ours[at] < before[at]]
        if below:
            yield (
                f"The adapter is below zero-shot CLIP: {', '.join(below)}. Train for longer or on more images, or use "
                "CLIP without it."
            )
        last = list(ours)[-1]
        if self.probe and ours[last] < (best := figures[PROBE][last].value):
            yield (f"A linear probe on the same images is ahead: {best:.1f} against {ours[last]:.1f} %{where[last]}.")

    def _imbalanced(self) -> Iterator[str]:
        balanced = self.balanced()
        for name, (low, high) in self.imbalance().items():
            shown = (
                f"{measure} {methods[self.method][name]:.1f} % ({methods[ZERO_SHOT][name]:.1f} zero-shot)"
                for measure, methods in balanced.items()
            )
            yield f"Classes of {name} have {low} to {high} images: {', '.join(shown)}."

    def class_table(self) -> str:
        """Return the accuracy on every class as text, the lowest first."""
        head = ["images", f"{ZERO_SHOT}, %", f"{self.method}, %", "most often taken for"]
        rows: list[list[str]] = []
        for part, classes in self.class_rows().items():
            rows += [[f"{part} class", *head], *(_cells(row) for row in classes if row.images)]
        return aligned(rows)


@dataclass(frozen=True, eq=False)
class LoadedImages(ImageSet):
    """Images that a `DataLoader` reads again for each method, with a progress bar."""

    name: str = ""
    batch_size: int = BATCH
    workers: int = 0

    def batches(self, size: int = BATCH) -> Iterator[Tensor]:
        """Yield the pixel values of all images in order, `[<= batch_size, 3, H, W]` at a time."""
        images: Any = self.transform.apply(self.dataset)
        loader = DataLoader(images, self.batch_size, num_workers=self.workers, collate_fn=default_data_collator)
        for batch in tqdm(loader, desc=f"predicting {self.name}", unit="batch"):
            yield batch["pixel_values"]


def method_of(model: Any) -> str:
    """Return what tables call an adapter, or a saved classifier."""
    return model.config.method if isinstance(model, CLIPClassifier) else ADAPTED


def templates_of(model: Any) -> tuple[str, ...]:
    """Return the templates of the class texts."""
    config = model.config if isinstance(model, CLIPClassifier) else adapted_clip(model).active_config
    return tuple(config.templates)


def fitted_methods(model: Any) -> dict[str, Fitted]:
    """Return zero-shot CLIP and the adapter or classifier, which share what the frozen CLIP has encoded."""
    if isinstance(model, CLIPClassifier):
        return {ZERO_SHOT: FrozenCLIP(model.frozen), method_of(model): model.fitted}
    zero_shot = FittedAdapter(model, zero_shot=True)
    return {ZERO_SHOT: zero_shot, ADAPTED: FittedAdapter(model, frozen=zero_shot)}


def measure(
    model: Any,
    parts: Mapping[str, Dataset],
    processor: Any,
    batch_size: int,
    workers: int,
    shots: Dataset | None = None,
) -> Measured:
    """Classify each part's images among its classes: with the adapter, without, and with a probe learned from shots.

    It raises `ValueError` for class names that CLIP cannot tell apart, and `NonFiniteError` for such logits.
    """
    transform, templates, method = ClipTransform(processor), templates_of(model), method_of(model)
    measured, methods, asked = Measured([], [], method=method), fitted_methods(model), []
    for name, dataset in parts.items():
        model.set_classes(class_names_of(dataset))
        images = LoadedImages(dataset, transform, keep=False, name=name, batch_size=batch_size, workers=workers)
        asked.append(Part(name, images, ClassTexts(tuple(model.class_names), templates)))
    model.set_classes(None)
    for part in asked:
        measured.adapted.append(_predict(methods[method], part))
        measured.zero_shot.append(_predict(methods[ZERO_SHOT], part))
    if shots is not None:
        learned = ImageSet(shots, transform, keep=False)
        with model.disable_adapter():
            frozen, seed = CLIPFeatures(adapted_clip(model), processor), 0  # nothing is random
            probe = LinearProbe(**METHODS["linear-probe"].settings)
            fitted = probe.fit(frozen, learned, ClassTexts(learned.class_names, templates), seed)
            measured.probe.extend(predict_part(fitted, part) for part in asked)
    return measured


def _predict(fitted: Fitted, part: Part) -> Predictions:
    dataset = part.images.dataset
    try:
        return predict_part(fitted, part, lambda row: dataset[row][IMAGE], image_names(dataset))
    except LogitsError as error:
        raise NonFiniteError(str(error)) from error


def describe(model: Any) -> dict[str, Any]:
    """Return what the report says about the active adapter, without the folder that the base model is in."""
    if isinstance(model, CLIPClassifier):
        config = model.config
        settings = {"base model": config.base_model_name_or_path, "method": config.method, **config.settings}
    else:
        settings = describe_adapter(model)
    return {**settings, "base model": public_name(settings["base model"])}


def _counts(row: ClassRow) -> dict[str, int | None]:
    return {"images": row.images, "right": row.right, "zero_shot_right": row.zero_shot_right}


def _cells(row: ClassRow) -> list[str]:
    shares = [f"{100 * (right or 0) / row.images:.1f}" for right in (row.zero_shot_right, row.right)]
    mistaken = f"{row.mistaken_for[0]} ({row.mistaken_for[1]})" if row.mistaken_for else ""
    return [row.name, str(row.images), *shares, mistaken]
