"""Writes a fitted method as a classifier: a configuration, one safetensors file, the processor and a card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
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
    _write_card(folder, config, facts)


def _write_card(folder: Path, config: CLIPClassifierConfig, facts: Sequence[str]) -> None:
    environment = Environment(
        loader=PackageLoader(__package__, "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    base_model = hub_id(config.base_model_name_or_path)
    environment.filters.update(text=model_card.plain_markdown)
    body = environment.get_template("card_template.md").render(
        config=config, facts=facts, base_model=base_model, here=model_card.HERE
    )
    card: Any = ModelCard(model_card.EMPTY)
    relation = [f"{model_card.RELATION}adapter:{base_model}"] if base_model else []
    card.data = ModelCardData(
        base_model=base_model, library_name="transformers", pipeline_tag=model_card.TASK, tags=[*TAGS, *relation]
    )
    card.text = f"{model_card.BEGIN}\n\n{body.replace('<!--', '&lt;!--')}\n\n{model_card.END}\n"
    model_card.write(card, folder / model_card.NAME)
