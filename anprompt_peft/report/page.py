"""Fills the page's template and writes it."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from ..evaluation import class_sizes, is_imbalanced, tables
from ..evaluation.predictions import Predictions
from ..files import atomic_file
from .data import ReportData, loss_table, project

FEW_CLASSES = 20
SHOWN_CLASSES = 10
BLOCK = 10
PAIRS = 6
LIST_ITEMS = 8
THUMBNAIL = 160
ZERO_SHOT, PROBE = "zero-shot CLIP", "a linear probe"


def write_report(data: ReportData, path: str | os.PathLike[str]) -> Path:
    """Write a report atomically, as one HTML file without scripts and without references to anything outside it.

    Args:
        data (`ReportData`): what to show.
        path (`str` or `Path`): the file; its folder is made, and an older file is replaced.

    Returns:
        `Path`: the file written.

    Raises:
        ValueError: if the loss history has no times.
    """
    return write_page(render_report(data), path)


def write_page(page: str, path: str | os.PathLike[str]) -> Path:
    """Write a page atomically, and return its path."""
    with atomic_file(Path(path)) as fresh:
        fresh.write_text(page, encoding="utf-8", errors="backslashreplace")
    return Path(path)


def render(template: str, **values: Any) -> str:
    """Fill a template in; every value is escaped."""
    return _templates().get_template(template).render(values)


@cache
def _templates() -> Environment:
    """The templates of this folder, which are compiled once per process."""
    pages = Environment(
        loader=PackageLoader(__package__, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(percent=percent, shown=shown, thumbnail=thumbnail, without_folder=without_folder)
    return pages


def render_report(data: ReportData) -> str:
    """Return the page as text. The same data give the same text."""
    from . import charts  # matplotlib takes a second

    losses = loss_table(data.history)
    before: Sequence[Predictions | None] = data.zero_shot or [None] * len(data.predictions)
    return render(
        "report.html",
        title=data.title,
        data=data,
        gains=_gains(data),
        results=(results := _results(data)),
        behind=_behind(results),
        sizes={part.name: class_sizes(part) for part in data.predictions},
        losses=losses,
        charts=charts,
        geometry=data.geometry,
        plane=data.geometry and project(data.geometry),
        parts=[_part(part, old) for part, old in zip(data.predictions, before, strict=True)],
    )


def percent(share: float) -> str:
    """Return a share 0..1 in per cent."""
    return f"{100 * share:.1f} %"


def shown(value: Any) -> str:
    """Return a setting as short text: long lists end after eight items, and absolute paths lose their folders."""
    match value:
        case str() | os.PathLike():
            return without_folder(os.fspath(value))
        case None:
            return "none"
        case float():
            return f"{value:g}"
        case Mapping():
            return "; ".join(f"{name} {shown(entry)}" for name, entry in value.items())
        case list() | tuple():
            items = [shown(item) for item in value[:LIST_ITEMS]]
            return ", ".join(items) + (f", … ({len(value)} in all)" if len(value) > LIST_ITEMS else "")
    return str(value)


def without_folder(text: str) -> str:
    """Return the last name of an absolute path, which says nothing about the machine; other text as it is."""
    is_absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
    return PureWindowsPath(text).name or text if is_absolute else text


def thumbnail(image: Image.Image) -> str:
    """Return an image, shrunk to at most 160 pixels a side, as a PNG `data:` address."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _gains(data: ReportData) -> list[tuple[str, str, Any]]:
    """Return method, part and gain: over zero-shot CLIP on each part, and over the linear probe on the last."""
    before, probe = (
        tables.gains(data.predictions, others) if others else {} for others in (data.zero_shot, data.probe)
    )
    found = [(ZERO_SHOT, name, gain) for name, gain in before.items()]
    return [*found, *((PROBE, name, gain) for name, gain in [*probe.items()][-1:])]


def _results(data: ReportData) -> dict[str, dict[str, Any]]:
    """Return, by method, its accuracies with intervals, and its balanced figures for imbalanced parts."""
    methods = {ZERO_SHOT: data.zero_shot, PROBE: data.probe, data.method: data.predictions}
    return {
        method: {
            "accuracy": tables.estimates(parts),
            "balanced": {part.name: (part.balanced_accuracy, part.macro_f1) for part in parts if is_imbalanced(part)},
        }
        for method, parts in methods.items()
        if parts
    }


def _behind(results: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the parts on which another method is ahead of the last one."""
    *others, ours = (each["accuracy"] for each in results.values()) if results else [{}]
    return {name for name in ours if any(round(each[name].value - ours[name].value, 1) > 0 for each in others)}


def _part(part: Predictions, zero_shot: Predictions | None) -> dict[str, Any]:
    counts, rows = tables.count_confusions(part), tables.class_rows(part, zero_shot)
    seen = [row for row in rows if row.images]
    few = len(part.class_names) <= FEW_CLASSES
    return {
        "data": part,
        "rows": rows,
        "seen": len(seen),
        "zero_shot": zero_shot is not None,
        "worst": seen if few else seen[:SHOWN_CLASSES],
        "best": [] if few else seen[SHOWN_CLASSES:][-SHOWN_CLASSES:],
        "counts": counts,
        "block": list(range(len(part.class_names))) if few else tables.confused_block(counts, BLOCK),
        "pairs": tables.confused_pairs(counts),
        "examples": tables.confusions(part, PAIRS),
    }
