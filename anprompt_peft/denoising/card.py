"""The model card of a denoiser."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..provenance import git_commit
from ..publish import card as model_card
from .train import Denoising

TAGS = ["clip", "lora", "peft", "text-denoiser", "transformers"]


def write_card(folder: Path, base_model: str | None, how: Denoising) -> None:
    """Write the card of a denoiser that was just trained, in place of PEFT's generic one."""
    environment = Environment(
        loader=PackageLoader(__package__, "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    body = environment.get_template("card_template.md").render(
        base_model=base_model,
        here=model_card.HERE,
        settings=asdict(how),
        commit=git_commit(),
        versions={name: version(name) for name in model_card.PACKAGES},
    )
    card: Any = ModelCard(model_card.EMPTY)
    relation = [f"{model_card.RELATION}adapter:{base_model}"] if base_model else []
    card.data = ModelCardData(
        base_model=base_model, library_name="peft", pipeline_tag=model_card.TASK, tags=[*TAGS, *relation]
    )
    card.text = f"{model_card.BEGIN}\n\n{body}\n\n{model_card.END}\n"
    model_card.write(card, folder / model_card.NAME)
