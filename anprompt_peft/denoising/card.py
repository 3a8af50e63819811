"""The model card of a denoiser."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from ..method.families import Family
from ..provenance import git_commit
from ..publish import card as model_card
from .train import Denoising

TAGS = ["lora", "peft", "text-denoiser", "transformers"]


def write_card(folder: Path, base_model: str | None, how: Denoising, family: Family) -> None:
    """Write the card of a denoiser that was just trained, in place of PEFT's generic one."""
    body = model_card.render(
        __package__,
        base_model=base_model,
        model_class=family.model.__name__,
        settings=asdict(how),
        commit=git_commit(),
        versions={name: version(name) for name in model_card.PACKAGES},
    )
    model_card.write_new(folder, body, base_model, "peft", [family.model.config_class.model_type, *TAGS])
