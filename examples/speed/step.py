"""What a training step costs: this package with and without its savings, beside LoRA, over all sizes.

    python examples/speed/step.py [--sizes 10x4 50x4 100x32 500x4] [--ways savings plain lora savings-bf16] [--former]

ViT-B/16 with random weights, on a GPU if there is one; the ways are `savings`, `plain` (without any), `chunks` of 500
texts at a time, `compiled`, and PEFT's `lora`. Sizes of which only one part varies show how a step grows with it. The
ways take turns within one process, and ratios are of steps of the same round, so they hold on a machine whose speed
drifts; peak memory is that of a process of its own for each way. Noise prompts are random, which changes no cost of a
step. Operations are those of the matrix products of a step, and their rate is compared with the best that a plain
product of the encoder's shapes reached in the same process. Prints a table and writes step.json and step.png.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from anprompt_peft.extras import extra
from fresh import Row, in_process
from harness import (
    Setting,
    gemm_peak,
    interleave,
    operations,
    parser_for,
    peak_memory_gb,
    ratios,
    read_setting,
    run,
    spread,
)
from workload import BFLOAT16, COMPILED, Size, add_step_options, make_step

with extra("examples"):
    from matplotlib.figure import Figure

SECONDS, MEMORY = "s per step", "GB at the peak"


def main(arguments: list[str] | None = None) -> None:
    """Measure every size in processes of its own."""
    options, setting = parse(arguments)
    run("step", options, setting, options.sizes, partial(measure, options.ways, options.former, setting), draw=draw)


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, Setting]:
    """Read the command line."""
    parser = parser_for("step", __doc__)
    add_step_options(parser, "10x4 50x4 100x32 500x4")
    options = parser.parse_args(arguments)
    return options, read_setting(parser, options)


def measure(ways: list[str], former: bool, setting: Setting, size: Size) -> list[Row]:
    """A row for each way."""
    rows = in_process(time_ways, ways, former, setting, size)
    return [{**row, MEMORY: in_process(memory_of, row["way"], former, setting, size)} for row in rows]


def time_ways(ways: list[str], former: bool, setting: Setting, size: Size) -> list[Row]:
    """Time the ways in turn, and count their operations."""
    setting.begin()
    steps = {way: make_step(way, size, setting.device, setting.dtype, former) for way in ways}
    seconds = interleave(steps, setting, str(size))
    dtypes = {way: "bfloat16" if way.endswith(BFLOAT16) else setting.dtype for way in ways}
    peaks = {dtype: gemm_peak(setting.device, dtype) for dtype in set(dtypes.values())}
    rows: list[Row] = []
    for way, step in steps.items():
        row: dict[str, Any] = {"classes x batch x tokens x pixels": str(size), "way": way}
        row[SECONDS] = spread(seconds[way])
        row[f"to {ways[0]}"] = ratios(seconds[way], seconds[ways[0]])
        count = None if way.startswith(COMPILED) else operations(step) / 1e9  # a compiled graph hides them
        row["GFLOP"] = count
        row["% of GEMM"] = count and 100e9 * count / row[SECONDS]["median"] / peaks[dtypes[way]]
        rows.append(row)
    return rows


def memory_of(way: str, former: bool, setting: Setting, size: Size) -> float:
    """Peak memory in GB of this process after two steps, the second of which has the optimiser's state."""
    setting.begin()
    step = make_step(way, size, setting.device, setting.dtype, former)
    step()
    step()
    return peak_memory_gb(setting.device)


def draw(rows: list[Row], path: Path) -> None:
    """Draw step times and memory, a group of bars for every size."""
    size = next(iter(rows[0]))
    table = pd.DataFrame([{**row, SECONDS: row[SECONDS]["median"]} for row in rows])
    figure = Figure(figsize=(max(9, 0.7 * len(rows)), 4.5), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), (SECONDS, MEMORY), strict=True):
        bars = table.pivot(index=size, columns="way", values=what).reindex(table[size].unique())
        bars[table["way"].unique()].plot.bar(ax=axes, rot=20, xlabel="", ylabel=what, logy=what == SECONDS)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
