"""The jobs of `anprompt datasets`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from anprompt_peft.evaluation.benchmarks import CatalogEntry, catalog, find_entry, read_entry
from anprompt_peft.evaluation.benchmarks.checks import check_data_set

from ..datasets import CheckOptions
from ..text import aligned, printable


def entry_of(name: str) -> CatalogEntry:
    """Return the entry of the catalog that a name stands for, or that a JSON file holds."""
    entry = read_entry(name) if name.endswith(".json") else find_entry(name)
    if entry is None:
        raise ValueError(f"{name} is none of the catalog's data sets ({', '.join(catalog())}), and no JSON file.")
    return entry


def check_all(options: CheckOptions) -> list[dict[str, Any]]:
    """Check the data sets that are asked for, or all of the catalog."""
    entries = [entry_of(name) for name in options.name] if options.name else list(catalog().values())
    return [asdict(check_data_set(entry, options.root, options.all_images)) for entry in entries]


def as_text(findings: Sequence[Mapping[str, Any]]) -> str:
    """Return findings as lines, with what is wrong and where to get it below each."""
    lines = []
    for each in findings:
        counts = ", ".join(f"{count} {split}" for split, count in each["counts"].items())
        size = f"{each['classes']} classes; {counts}" if each["classes"] is not None else each["folder"]
        lines.append(printable(f"{each['status']:<9}  {each['title']:<15}  {size}"))
        lines += [f"{'':<11}{printable(problem)}" for problem in each["problems"]]
        lines += [f"{'':<11}get {fetch}" for fetch in each["fetch"]]
    return "\n".join(lines)


def known() -> list[dict[str, Any]]:
    """Return what the catalog says in short."""
    return [
        {
            "name": entry.name,
            "title": entry.title,
            "folder": entry.folder,
            "classes": entry.classes,
            "counts": entry.counts,
            "hub": entry.hub and entry.hub.repository,
            "comparable_on_hub": entry.hub and entry.hub.same_test,
        }
        for entry in catalog().values()
    ]


def known_as_text() -> str:
    """Return the same as a table."""
    rows: list[tuple[Any, ...]] = [("name", "folder", "classes", "test", "on the Hub", "comparable there")]
    for each in known():
        same = {True: "yes", False: "no", None: ""}[each["comparable_on_hub"]]
        rows.append((each["name"], each["folder"], each["classes"], each["counts"]["test"], each["hub"] or "", same))
    return aligned(rows, left=True)
