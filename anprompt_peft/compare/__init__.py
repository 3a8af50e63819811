"""Which method works best on some photos: methods measured on the same draws of shots, and a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..data import load_image_data
from .advice import advise
from .files import write_comparison
from .methods import COMPARED
from .run import Plan, plan_comparison, run_comparison
from .save import save_method
from .verdict import Comparison

__all__ = [
    "COMPARED",
    "Comparison",
    "Plan",
    "advise",
    "compare",
    "plan_comparison",
    "run_comparison",
    "save_method",
    "write_comparison",
]


def compare(photos: str | Path | Mapping[str, Dataset], model: str, output: str | Path, **settings: Any) -> Comparison:
    """Measure which method works best on photos, write the report, and return what was found.

    `compare("photos", "openai/clip-vit-base-patch16", "compared").verdict()` are the sentences of `anprompt compare`,
    and `advise` of the result the advice below them. The same call continues after an interruption.

    Args:
        photos (`str`, `Path` or `Mapping[str, Dataset]`): what
            [`load_image_data`][anprompt_peft.data.load_image_data] takes, or its splits.
        model (`str`): CLIP: its id on the Hub, or a folder.
        output (`str` or `Path`): folder of the measurements and the report.
        settings: further arguments of [`plan_comparison`].

    Raises:
        ValueError: as [`plan_comparison`] does.
        RuntimeError: if zero-shot CLIP cannot be measured.
    """
    splits = photos if isinstance(photos, Mapping) else load_image_data(str(photos))
    name = "photos" if isinstance(photos, Mapping) else Path(photos).name
    plan = plan_comparison(splits, model, Path(output), **{"name": name, **settings})
    comparison, _ = run_comparison(plan)
    write_comparison(plan, comparison)
    return comparison
