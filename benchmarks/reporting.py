"""How the benchmarks run, print tables and draw."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from anprompt_peft.files import to_json, whole_folder
from anprompt_peft.provenance import provenance
from fresh import collect
from measuring import Setting
from ways import LORA, LORA_BFLOAT16, OURS_BFLOAT16, PLAIN, SAVINGS

COLOURS = {SAVINGS: "#1b6ca8", OURS_BFLOAT16: "#7fb2dd", PLAIN: "#b5523b", LORA: "#8a8a8a", LORA_BFLOAT16: "#c4c4c4"}
NOTED = ("torch", "transformers", "peft", "python")


def run(
    name: str,
    options: argparse.Namespace,
    setting: Setting,
    jobs: Iterable[Any],
    measure: Callable[[Any], Any],
    report: Callable[[dict[str, Any]], str],
    content: Callable[[list[Any]], dict[str, Any]] = lambda rows: {"rows": rows},
    draw: Callable[[dict[str, Any]], Figure] | None = None,
    subject: str = "ViT-B/16 with random weights",
) -> None:
    """Measure all jobs, print the tables, and write `name`.json and perhaps `name`.png to `options.output`.

    Args:
        name: of the benchmark.
        options: of the command line.
        setting: how it is measured.
        jobs: what is measured, one after the other.
        measure: measures one of them.
        report: makes the tables of a record.
        content: makes the record's content of the measurements.
        draw: makes the picture of a record.
        subject: the model that is measured.

    Raises:
        SystemExit: in the end, if the process of a job ended without a result.
    """
    setting.begin()
    with whole_folder(options.output, replaces=f"{name}.json") as folder:
        results, failures = collect(jobs, measure, str)
        record = {**content(results), "did_not_finish": failures, "setting": asdict(setting), **provenance()}
        record["subject"] = subject
        (folder / f"{name}.json").write_text(to_json(record))
        if draw:
            draw(record).savefig(folder / f"{name}.png", dpi=120)
    print(f"{head(record)}\n\n{report(record)}\n\nWritten to {options.output}")
    if failures:
        raise SystemExit("Not measured:\n" + "\n".join(failures))


def head(record: dict[str, Any]) -> str:
    """Hardware, precision, versions and commit of a record, above its table."""
    hardware, setting, versions = record["hardware"], record["setting"], record["versions"]
    machine = hardware["accelerator"] if setting["device"] == "cuda" else hardware["processor"]
    plural = "s" if setting["threads"] > 1 else ""
    how = f"{setting['threads']} thread{plural} of {hardware['cpu_count']} CPUs, {setting['dtype']}"
    packages = ", ".join(f"{name} {versions[name]}" for name in NOTED)
    return (
        f"{record['subject']} on {machine}, {how}\n"
        f"Median [smallest, largest] of {setting['steps']} steps\n"
        f"{packages}; commit {record['git_commit'] or 'unknown'}"
    )


def table(columns: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table with aligned columns; the first is flush left, numbers are flush right."""
    cells = [columns, *rows]
    widths = [max(3, *(len(row[at]) for row in cells)) for at in range(len(columns))]

    def line(row: list[str]) -> str:
        first, *others = zip(row, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if not at else "-" * (width - 1) + ":" for at, width in enumerate(widths)]
    return "\n".join(line(row) for row in (columns, rule, *cells[1:]))


def colour(way: str) -> str:
    """The colour of a way in every chart."""
    return COLOURS.get(way, "#3f9b6b")


def with_range(value: dict[str, float], form: str = ".2f") -> str:
    """Median and, in brackets, the smallest and largest value."""
    return f"{value['median']:{form}} [{value['min']:{form}}, {value['max']:{form}}]"


def whiskers(values: list[dict[str, float]]) -> list[list[float]]:
    """How far the smallest and largest values lie from the medians, as matplotlib's error bars want it."""
    below = [each["median"] - each["min"] for each in values]
    return [below, [each["max"] - each["median"] for each in values]]


def tidy(axes: Axes) -> None:
    """Take away what carries no information."""
    axes.spines[["top", "right"]].set_visible(False)


def logarithmic(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else "")
