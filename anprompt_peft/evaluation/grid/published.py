"""Published figures, to stand beside measured ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .summary import Summary

FILE = Path(__file__).with_name("published.json")
MODEL = "clip-vit-base-patch16"
PROTOCOL = {"protocol": "base-to-new", "shots": 16, "halves": "order", "sampling": "coop"}


@dataclass(frozen=True)
class Published:
    """What a paper reports for base-to-new with ViT-B/16 and 16 shots: averages over the 11 data sets, in per cent.

    Args:
        label (`str`): the method's name there.
        base (`float`): accuracy on base classes.
        new (`float`): accuracy on new classes.
        H (`float`): the harmonic mean of the two.
        source (`str`): the paper.
    """

    label: str
    base: float
    new: float
    H: float
    source: str


@cache
def published() -> Mapping[str, Published]:
    """Return the published figures by the names of methods here."""
    return {name: Published(**row) for name, row in _record()["methods"].items()}


def published_for(summary: Summary) -> Mapping[str, Published]:
    """Return the figures that may stand beside a summary's averages.

    There are none unless its protocol and model are theirs, and all its data sets are of the eleven, with the tables'
    test sets.
    """
    setup = summary.setup
    same_protocol = all(setup[name] == value for name, value in PROTOCOL.items())
    same_model = str(setup["model"]).rstrip("/").endswith(MODEL)
    same_data = set(summary.data) <= set(_record()["data"]) and all(summary.comparable.values())
    return published() if same_protocol and same_model and same_data else {}


@cache
def _record() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return record
