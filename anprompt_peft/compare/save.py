"""Trains the method of choice on all photos, and saves it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datasets import concatenate_datasets

from ..classifier import save_classifier
from ..data.inspect import digests
from ..data.transform import ClipTransform
from ..evaluation.adapter import FittedAdapter
from ..evaluation.grid.runner import open_cell, threads
from ..evaluation.task import ImageSet
from ..files import atomic_folder, to_json
from ..publish.facts import Metric, TrainingFacts
from .methods import COMPARED, ZERO_SHOT
from .run import Plan
from .verdict import Comparison, duration

BEST = "best"
IMAGES = "images.json"
SEED = 1


def check_name(plan: Plan, name: str) -> None:
    """Raise `ValueError` unless a method of this name is compared; `best` is one of them."""
    if name != BEST and name not in plan.cells:
        raise ValueError(f"save={name!r} must be {BEST}, or one of the methods compared: {', '.join(plan.cells)}.")


def save_method(plan: Plan, comparison: Comparison, name: str = BEST, show: Callable[[str], None] = print) -> Path:
    """Train a method on all photos, those held out among them, and save it in the comparison's folder.

    ANPrompt and LoRA become adapters of PEFT, the others [classifiers][anprompt_peft.classifier]. Nothing is written
    until it is whole; an earlier result of the method is replaced.

    Args:
        plan (`Plan`): what was measured.
        comparison (`Comparison`): what the methods did, for the card.
        name (`str`): a method, or `best`: the one that the comparison says to take.
        show (`Callable`): is given a line of text.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: for a method that is not compared.
    """
    check_name(plan, name)
    method = comparison.chosen if name == BEST else name
    cell = plan.cells[method][0]
    (data,) = plan.place.loaded.values()
    parts = [data.train] if data.test is data.train else [data.train, data.test]
    photos = concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    with threads(plan.place.threads), atomic_folder(plan.place.output / method, replaces=IMAGES) as folder:
        backbone, task = open_cell(cell, plan.place)
        images = ImageSet(photos, ClipTransform(backbone.processor))
        seconds = comparison.methods[method].seconds if method in comparison.methods else 0.0
        expected = duration(seconds * len(images) / len(task.shots))
        show(f"Training {method} on all {len(images)} photos, after they are encoded: about {expected}.")
        fitted = cell.method.fit(backbone, images, task.classes, SEED)
        facts = _facts(plan, comparison, method, len(images))
        if isinstance(fitted, FittedAdapter):
            fitted.model.describe_training(facts)
            fitted.model.save_pretrained(str(folder))
            backbone.processor.save_pretrained(folder)
            backbone.processor.image_processor.save_pretrained(folder)
        else:
            lines = [str(facts.training_data), *(_sentence(each) for each in facts.metrics)]
            save_classifier(fitted, folder, task.classes.names, task.classes.templates, plan.setup.model, lines)
        seen = {"trained_on": [each for part in parts for each in digests(part)], "chosen_on": [], "held_out": {}}
        (folder / IMAGES).write_text(to_json(seen), encoding="utf-8")
    return plan.place.output / method


def _facts(plan: Plan, comparison: Comparison, method: str, images: int) -> TrainingFacts:
    (data,) = plan.place.loaded.values()
    metrics = []
    if method in comparison.methods:
        drawn = f"{plan.folds} folds" if plan.folds else f"{len(plan.cells[method])} draws"
        metrics.append(
            Metric(
                "accuracy",
                round(comparison.methods[method].accuracy, 2),
                data.name,
                name=f"accuracy, %, over {drawn} of up to {plan.setup.shots} shots per class",
                split="folds" if plan.folds else "test",
                baseline=round(comparison.methods[ZERO_SHOT].accuracy, 2),
            )
        )
    trained = f"{images} images of {len(data.class_names)} classes from {data.name}, all that there are."
    return TrainingFacts(
        training_data=f"{trained} The figures are those of `anprompt compare`, which learned from fewer.",
        arguments={"method": method, "title": COMPARED[method].title, "seed": SEED},
        metrics=metrics,
    )


def _sentence(metric: Metric) -> str:
    return f"{metric.name}: {metric.value:g} (zero-shot CLIP {metric.baseline:g})."
