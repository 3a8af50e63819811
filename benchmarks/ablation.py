"""What each saving is worth: a training step with all of them, with all but one, with an image cache, and plain.

    python benchmarks/ablation.py [--sizes 50x4 100x32 500x4] [--steps 5] [--output outputs/benchmarks/ablation]

A size is CLASSESxBATCH, on ViT-B/16 with random weights. The variants have prompts and optimisers of their own, so
that each keeps its text prefix, and the same frozen weights; their steps take turns within one process, and ratios are
of steps of the same round. The image cache holds the batch from the first step on, which is not timed. Peak memory is
that of a process of its own for each variant. Prints a table and writes ablation.json.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from anprompt_peft.fast import Savings, set_precision
from fresh import in_process
from measuring import Setting, interleave, parser_for, ratios, read_setting, size, spread
from reporting import run, table, with_range
from ways import PLAIN, SAVINGS, memory_of_two, with_savings
from workload import Workload, make_adapted, make_workload, share_frozen, train_step

CACHED = "with an image cache"
COLUMNS = ["classes, batch", "variant", "s per step", "ratio to all savings", "GB at the peak"]


def main(arguments: list[str] | None = None) -> None:
    """Measure every size."""
    options, setting = parse(arguments)

    def measure_one(of: tuple[int, int]) -> dict[str, Any]:
        return measure(of, variants(of[0], options), setting, "bf16" if options.bfloat16 else "fp32")

    run("ablation", options, setting, options.sizes, measure_one, report)


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, Setting]:
    """Read the command line."""
    parser = parser_for("ablation", __doc__)
    default = [(50, 4), (100, 32), (500, 4)]
    parser.add_argument("--sizes", nargs="+", type=size, default=default, metavar="CxB")
    parser.add_argument("--without", nargs="+", choices=switches(), default=switches(), help="savings to leave out")
    parser.add_argument("--plain-classes", type=int, default=100, help="most classes for the plain path (default 100)")
    parser.add_argument("--bfloat16", action="store_true", help="with CLIP's frozen weights in bfloat16")
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


def measure(of: tuple[int, int], variants: dict[str, Savings], setting: Setting, precision: str) -> dict[str, Any]:
    """Everything about one size."""
    seconds = in_process(time_variants, of, variants, setting, precision)
    return {
        "classes": of[0],
        "batch": of[1],
        "seconds": {name: spread(taken) for name, taken in seconds.items()},
        "all_seconds": seconds,
        "ratio": {name: ratios(taken, seconds[SAVINGS]) for name, taken in seconds.items()},
        "peak_memory_gb": {
            name: in_process(measure_memory, of, name, savings, setting, precision)
            for name, savings in variants.items()
        },
    }


def time_variants(
    of: tuple[int, int], variants: dict[str, Savings], setting: Setting, precision: str
) -> dict[str, list[float]]:
    """Seconds of each step of each variant."""
    setting.begin()
    work = make_workload(*of).to(setting.device)
    model = make_adapted(work, random_targets=True)
    set_precision(model, precision)
    with tempfile.TemporaryDirectory() as cache:
        steps = {
            name: make_step(name, savings, share_frozen(model), work, setting, cache)
            for name, savings in variants.items()
        }
        return interleave(steps, setting, f"{of[0]} classes, batch {of[1]}")


def measure_memory(of: tuple[int, int], name: str, savings: Savings, setting: Setting, precision: str) -> float:
    """Peak memory in GB of one variant."""
    setting.begin()
    work = make_workload(*of).to(setting.device)
    model = make_adapted(work, random_targets=True)
    set_precision(model, precision)
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
    return table(COLUMNS, rows)


if __name__ == "__main__":
    main()
