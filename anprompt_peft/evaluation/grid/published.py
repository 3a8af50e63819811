"""Published figures, to stand beside measured ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .summary import Summary

FILE = Path(__file__).with_name("published.json")
MODEL = "clip-vit-base-patch16"
PROTOCOL = {"protocol": "base-to-new", "shots": 16, "halves": "order", "sampling": "coop"}


@dataclass(frozen=True)
class Published:
    """What a paper reports for base-to-new with ViT-B/16 and 16 shots: averages over the 11 data sets, in per cent."""

    label: str  # the method's name there
    base: float
    new: float
    H: float
    source: str


@cache
def published() -> tuple[Mapping[str, Published], frozenset[str]]:
    """Return the published figures by the names of methods here, and the data sets that they average over."""
    record = json.loads(FILE.read_text(encoding="utf-8"))
    return {name: Published(**row) for name, row in record["methods"].items()}, frozenset(record["data"])


def published_for(summary: Summary) -> Mapping[str, Published]:
    """Return the figures that may stand beside a summary's averages: if protocol, model, and data are theirs."""
    setup, (figures, data) = summary.setup, published()
    same_protocol = all(setup[name] == value for name, value in PROTOCOL.items())
    same_model = str(setup["model"]).rstrip("/").endswith(MODEL)
    same_data = data.issuperset(summary.data) and all(summary.comparable.values())
    return figures if same_protocol and same_model and same_data else {}
