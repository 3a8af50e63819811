"""Strong scaling: one training step of one global batch on one process and, with DDP, on several.

    python benchmarks/processes.py [--classes 10 50 500] [--batch 8] [--processes 2] [--steps 5]

ViT-B/16 with random weights, processes on the CPUs of this machine over gloo, one thread each. The same step is taken
by one process with one thread, by one with as many threads as there are processes, and by all processes, each with its
share of the images; there either each encodes all class texts, or `shard_class_texts()` gives each a share of them
(which has no effect below 32 texts). All ways take turns in one run, in which the other processes wait where one works
alone. A speed-up is the time of one process with one thread over that of the same round; efficiency is the speed-up
over the number of threads. Prints a table and writes processes.json and processes.png.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from fresh import in_processes
from measuring import Setting, interleave, parser_for, positive, ratios, read_setting, spread
from reporting import run, table, tidy, whiskers, with_range
from workload import Workload, make_adapted, make_workload, share_frozen, train_step

COLUMNS = ["classes", "way", "s per step", "speed-up", "efficiency"]
TINTS = ("#8a8a8a", "#b5523b", "#1b6ca8", "#3f9b6b")


def main(arguments: list[str] | None = None) -> None:
    """Measure every number of classes."""
    options, setting = parse(arguments)

    def measure(classes: int) -> dict[str, Any]:
        return summary(classes, time_ways(classes, options.batch, options.processes, setting), options.processes)

    def content(rows: list[Any]) -> dict[str, Any]:
        return {"rows": rows, "batch": options.batch, "processes": options.processes}

    run("processes", options, setting, options.classes, measure, report, content, draw)


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, Setting]:
    """Read the command line."""
    parser = parser_for("processes", __doc__, device="cpu", dtype="float32", threads=1)
    parser.add_argument("--classes", nargs="+", type=positive, default=[10, 50, 500])
    parser.add_argument("--batch", type=positive, default=8, help="images of all processes together (default 8)")
    parser.add_argument("--processes", type=positive, default=2)
    options = parser.parse_args(arguments)
    if options.processes < 2 or options.batch % options.processes:
        parser.error(f"--batch {options.batch} must divide by --processes {options.processes}, which start at 2.")
    if min(options.classes) < 2:
        parser.error("--classes start at 2.")
    return options, read_setting(parser, options)


def time_ways(classes: int, batch: int, processes: int, setting: Setting) -> dict[str, list[float]]:
    """Seconds of each step of each way, as the first process saw them."""
    with tempfile.TemporaryDirectory() as folder:
        calls = [(rank, processes, f"{folder}/store", classes, batch, setting) for rank in range(processes)]
        return in_processes(time_steps, calls)[0]


def time_steps(
    rank: int, processes: int, store: str, classes: int, batch: int, setting: Setting
) -> dict[str, list[float]]:
    """Take all steps in turn with the other processes."""
    setting.begin()
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=processes)
    work = make_workload(classes, batch)
    steps = make_steps(rank, processes, make_adapted(work, random_targets=True), work)
    seconds = interleave(steps, setting, "" if rank else f"{classes} classes")
    distributed.destroy_process_group()
    return seconds


def make_steps(rank: int, processes: int, model: Any, work: Workload) -> dict[str, Callable[[], None]]:
    """The ways; each ends when all processes have come to its end."""
    alone = train_step(share_frozen(model), work)

    def by_first(threads: int) -> Callable[[], None]:
        def step() -> None:
            if rank == 0:
                torch.set_num_threads(threads)
                alone()
                torch.set_num_threads(1)
            distributed.barrier()

        return step

    steps = [by_first(1), by_first(processes), *parallel_steps(model, work.part(rank, processes)).values()]
    return dict(zip(threads_by_way(processes), steps, strict=True))


def parallel_steps(model: Any, work: Workload) -> dict[str, Callable[[], None]]:
    """Steps with DDP of this process's images, without and with shared class texts."""
    parallel = DistributedDataParallel(model)
    parallel.forward_sync_buffers = False
    together = train_step(parallel, work)

    def by_all(shared: bool) -> Callable[[], None]:
        def step() -> None:
            model.shard_class_texts(shared)
            together()
            distributed.barrier()

        return step

    return {"each all": by_all(False), "shared": by_all(True)}


def threads_by_way(processes: int) -> dict[str, int]:
    """Names of the ways, and how many threads work in each."""
    return {
        "1 process, 1 thread": 1,
        f"1 process, {processes} threads": processes,
        f"{processes} processes": processes,
        f"{processes} processes, texts shared": processes,
    }


def summary(classes: int, seconds: dict[str, list[float]], processes: int) -> dict[str, Any]:
    """Times, speed-ups and efficiencies of a number of classes."""
    threads = threads_by_way(processes)
    first = seconds[next(iter(threads))]
    speedup = {way: ratios(first, taken) for way, taken in seconds.items()}
    return {
        "classes": classes,
        "seconds": {way: spread(taken) for way, taken in seconds.items()},
        "all_seconds": seconds,
        "speedup": speedup,
        "efficiency": {way: each["median"] / threads[way] for way, each in speedup.items()},
    }


def report(record: dict[str, Any]) -> str:
    """The table."""
    rows = [
        [
            str(row["classes"]),
            way,
            with_range(taken),
            with_range(row["speedup"][way]),
            f"{row['efficiency'][way]:.0%}",
        ]
        for row in record["rows"]
        for way, taken in row["seconds"].items()
    ]
    title = f"One step of {record['batch']} images, each process with one thread unless it says otherwise"
    return f"{title}\n\n{table(COLUMNS, rows)}"


def draw(record: dict[str, Any]) -> Figure:
    """Draw the speed-ups, a group of bars for every number of classes."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    ways = list(threads_by_way(record["processes"]))[1:]
    for number, way in enumerate(ways):
        values = [row["speedup"][way] for row in record["rows"]]
        places = [place + 0.8 * ((number + 0.5) / len(ways) - 0.5) for place in range(len(values))]
        heights = [value["median"] for value in values]
        bars = axes.bar(places, heights, 0.25, yerr=whiskers(values), label=way, color=TINTS[number])
        axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=1)
    axes.axhline(record["processes"], color="black", linestyle="--", linewidth=0.8, label="all that is possible")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(record["rows"])), [f"{row['classes']} classes" for row in record["rows"]])
    axes.set_ylabel(f"speed-up over one process with one thread\n({record['batch']} images in all)")
    figure.legend(loc="outside upper center", ncols=len(ways) + 1, frameon=False, fontsize=8)
    tidy(axes)
    return figure


if __name__ == "__main__":
    main()
