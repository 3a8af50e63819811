"""Writes a fitted method as a classifier: a configuration, one safetensors file, the processor and a card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..files import hub_id
from ..publish import card as model_card
from .config import LORA, CLIPClassifierConfig
from .loading import weights_name

TAGS = ["clip", "image-classification", "transformers"]


def save_classifier(
    fitted: Any,
    folder: str | Path,
    class_names: Sequence[str],
    templates: Sequence[str],
    base_model: str,
    facts: Sequence[str] = (),
    base_model_revision: str | None = None,
) -> None:
    """Save a fitted method of [`anprompt_peft.evaluation.peers`] for inference; the frozen CLIP is not saved.

    Args:
        fitted (`Fitted`): zero-shot CLIP, a linear probe, Tip-Adapter-F, ProLIP or LoRA.
        folder (`str` or `Path`): an empty one. The files are written one by one: give the folder that
            [`~anprompt_peft.files.atomic_folder`] makes.
        class_names (`Sequence[str]`): the classes that it learned, in the order of their labels.
        templates (`Sequence[str]`): of the class texts.
        base_model (`str`): the CLIP that it learned on: its id on the Hub, or a folder.
        facts (`Sequence[str]`): sentences for the card.
        base_model_revision (`str`, *optional*): branch, tag or commit of the CLIP.

    Raises:
        TypeError: if the method cannot be saved.
        ValueError: if a class has nothing that was learned.
    """
    from .kinds import KINDS, kind_of

    folder, fitted = Path(folder), getattr(fitted, "fitted", fitted)
    method = kind_of(fitted)
    learned = getattr(fitted, "names", tuple(class_names))
    if tuple(learned) != tuple(class_names):
        raise ValueError(f"{method} learned the classes {list(learned)}, not {list(class_names)}.")
    config = CLIPClassifierConfig(
        method=method,
        class_names=class_names,
        templates=[*dict.fromkeys((*templates, *getattr(fitted, "templates", ())))],
        base_model_name_or_path=hub_id(base_model) or str(Path(base_model).expanduser().resolve()),
        base_model_revision=base_model_revision,
        settings={name: float(getattr(fitted, name)) for name in KINDS[method].settings},
        architectures=["CLIPClassifier"],
    )
    config.save_pretrained(folder)
    tensors = {name: each.detach().cpu().contiguous() for name, each in getattr(fitted, "saved", {}).items()}
    save_file(tensors, folder / weights_name(method), metadata={"format": "pt"})
    if method == LORA:
        fitted.config.base_model_name_or_path = config.base_model_name_or_path
        fitted.config.save_pretrained(str(folder))
    processor = fitted.backbone.processor
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    base_id = hub_id(config.base_model_name_or_path)
    body = model_card.render(__package__, config=config, facts=facts, base_model=base_id)
    model_card.write_new(folder, body, base_id, "transformers", TAGS, "image-classification")
