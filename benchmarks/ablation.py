"""What each saving is worth: a training step with all of them, with all but one, with an image cache, and plain.

    python benchmarks/ablation.py [--sizes 50x4 100x32 500x4] [--steps 5] [--output outputs/benchmarks/ablation]

A size is CLASSESxBATCH, on ViT-B/16 with random weights. The variants have prompts and optimisers of their own, so
that each keeps its text prefix, and the same frozen weights; their steps take turns within one process, and ratios are
of steps of the same round. The image cache holds the batch from the first step on, which is not timed. Peak memory is
that of a process of its own for each variant. Prints a table and writes ablation.json and ablation.png.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from anprompt_peft.fast import Savings
from anprompt_peft.files import to_json, whole_folder
from fresh import collect, in_process
from measuring import Setting, add_options, interleave, ratios, read_setting, size, spread
from reporting import colour, head, logarithmic, make_record, report_failures, table, tidy, whiskers, with_range
from ways import PLAIN, SAVINGS, memory_of_two, with_savings
from workload import Workload, make_adapted, make_workload, share_frozen, train_step

CACHED = "with an image cache"
RECORD = "ablation.json"
COLUMNS = ["classes, batch", "variant", "s per step", "ratio to all savings", "GB at the peak"]


def main(arguments: list[str] | None = None) -> None:
    """Measure every size, print the table, write the record and the picture."""
    options, setting = parse(arguments)
    setting.begin()
    with whole_folder(options.output, replaces=RECORD) as folder:
        rows, failures = collect(options.sizes, lambda of: measure(of, variants(of[0], options), setting), str)
        record = make_record(setting, failures, rows=rows)
        (folder / RECORD).write_text(to_json(record))
        save_chart(folder / "ablation.png", rows)
    print(report(record))
    print(f"\nWritten to {options.output}/: {RECORD}, ablation.png")
    report_failures(failures)


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, Setting]:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = [(50, 4), (100, 32), (500, 4)]
    parser.add_argument("--sizes", nargs="+", type=size, default=default, metavar="CxB")
    parser.add_argument("--without", nargs="+", choices=switches(), default=switches(), help="savings to leave out")
    parser.add_argument("--plain-classes", type=int, default=100, help="most classes for the plain path (default 100)")
    add_options(parser, "ablation")
    options = parser.parse_args(arguments)
    return options, read_setting(parser, options)


def switches() -> list[str]:
    """The savings that are on by default."""
    return [each.name for each in fields(Savings) if getattr(Savings(), each.name) is True]


def variants(classes: int, options: argparse.Namespace) -> dict[str, Savings]:
    """What is compared at a number of classes."""
    without = {f"without {name}": replace(Savings(), **{name: False}) for name in options.without}
    return {
        SAVINGS: Savings(),
        **without,
        CACHED: Savings(),
        **({PLAIN: Savings.none()} if classes <= options.plain_classes else {}),
    }


def measure(of: tuple[int, int], variants: dict[str, Savings], setting: Setting) -> dict[str, Any]:
    """Everything about one size."""
    seconds = in_process(time_variants, of, variants, setting)
    return {
        "classes": of[0],
        "batch": of[1],
        "seconds": {name: spread(taken) for name, taken in seconds.items()},
        "all_seconds": seconds,
        "ratio": {name: ratios(taken, seconds[SAVINGS]) for name, taken in seconds.items()},
        "peak_memory_gb": {
            name: in_process(measure_memory, of, name, savings, setting) for name, savings in variants.items()
        },
    }


def time_variants(of: tuple[int, int], variants: dict[str, Savings], setting: Setting) -> dict[str, list[float]]:
    """Seconds of each step of each variant."""
    setting.begin()
    work = make_workload(*of).to(setting.device)
    model = make_adapted(work, random_targets=True)
    with tempfile.TemporaryDirectory() as cache:
        steps = {
            name: make_step(name, savings, share_frozen(model), work, setting, cache)
            for name, savings in variants.items()
        }
        return interleave(steps, setting, f"{of[0]} classes, batch {of[1]}")


def measure_memory(of: tuple[int, int], name: str, savings: Savings, setting: Setting) -> float:
    """Peak memory in GB of one variant."""
    setting.begin()
    work = make_workload(*of).to(setting.device)
    model = make_adapted(work, random_targets=True)
    with tempfile.TemporaryDirectory() as cache:
        return memory_of_two(make_step(name, savings, model, work, setting, cache), setting.device)


def make_step(
    name: str, savings: Savings, model: Any, work: Workload, setting: Setting, cache: str
) -> Callable[[], None]:
    """The step of a variant, with a model of its own."""
    model.set_image_cache(cache if name == CACHED else None)
    return with_savings(savings, model, train_step(model, work, setting.dtype))


def report(record: dict[str, Any]) -> str:
    """The table."""
    rows = [
        [
            f"{row['classes']}, {row['batch']}",
            name,
            with_range(taken),
            with_range(row["ratio"][name]),
            f"{row['peak_memory_gb'][name]:.2f}",
        ]
        for row in record["rows"]
        for name, taken in row["seconds"].items()
    ]
    return f"{head(record)}\n\n{table(COLUMNS, rows)}"


def save_chart(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draw the ratios as bars with the memory behind them, a panel for every size."""
    figure = Figure(figsize=(max(6, 4.5 * len(rows)), 4.5), layout="constrained")
    for axes, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        names = [name for name in row["ratio"] if name != SAVINGS]
        values = [row["ratio"][name] for name in names]
        tint = [colour(name if name == PLAIN else SAVINGS) for name in names]
        beyond = [value["median"] - 1 for value in values]
        axes.barh(names, beyond, left=1, xerr=whiskers(values), color=tint, alpha=0.8)
        for place, name in enumerate(names):
            text = f"{values[place]['median']:.2f}, {row['peak_memory_gb'][name]:.1f} GB"
            axes.annotate(text, (max(1, values[place]["max"]), place), (4, 0), textcoords="offset points", va="center")
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlim(0.9 * min(1, *(value["min"] for value in values)), 3 * max(value["max"] for value in values))
        logarithmic(axes.xaxis)
        axes.invert_yaxis()
        axes.set_title(f"{row['classes']} classes, batch {row['batch']}")
        axes.set_xlabel(f"time of a step / with all savings (log)\n{row['peak_memory_gb'][SAVINGS]:.1f} GB with all")
        tidy(axes)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
