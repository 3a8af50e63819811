"""What a training step costs: this package with and without its savings, beside LoRA, and inference beside CLIP.

    python benchmarks/step.py [--sizes 10x4 50x4 100x32 500x4 1000x32] [--steps 5] [--bfloat16] [--former]

A size is CLASSESxBATCH, on ViT-B/16 with random weights, on a GPU if there is one. The ways take turns within one
process, and ratios are of steps of the same round, so they hold on a machine whose speed drifts; peak memory is that
of a process of its own for each way, making the adapter included. Operations are those of the matrix products that a
step runs. The rate of the operations that the step with all savings needs is compared with the best that a plain
product of the encoder's shapes reached in the same process. Prints tables and writes step.json and step.png.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure

from anprompt_peft.fast import Savings, set_precision
from fresh import in_process
from measuring import Setting, gemm_peak, interleave, operations, parser_for, ratios, read_setting, size, spread
from reporting import colour, logarithmic, run, table, tidy, whiskers, with_range
from ways import (
    BFLOAT16,
    LORA,
    LORA_BFLOAT16,
    OURS_BFLOAT16,
    PLAIN,
    SAVINGS,
    add_way_options,
    chunked,
    make_step,
    memory_of_two,
)
from workload import Workload, class_ids, make_adapted, make_clip, make_workload

STEP_COLUMNS = ["classes, batch", "way", "s per step", "times ours", "GB at the peak", "GFLOP", "GFLOP/s", "of GEMM"]
INFERENCE_COLUMNS = ["classes, batch", "model", "images/s", "to CLIP"]
CLIP = "zero-shot CLIP"
FORMER = {"text_update_rank": None, "rephrased_weight": 0.0}


def main(arguments: list[str] | None = None) -> None:
    """Measure every size in processes of its own."""
    options, setting = parse(arguments)

    def measure_one(of: tuple[int, int]) -> dict[str, Any]:
        return measure(of, ways_for(of[0], options), setting, FORMER if options.former else {})

    run("step", options, setting, options.sizes, measure_one, report, draw=draw)


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, Setting]:
    """Read the command line."""
    parser = parser_for("step", __doc__)
    default = [(10, 4), (50, 4), (100, 32), (500, 4), (1000, 32)]
    parser.add_argument("--sizes", nargs="+", type=size, default=default, metavar="CxB")
    add_way_options(parser, chunk_from=2000, plain_classes=500)
    parser.add_argument("--bfloat16", action="store_true", help="also with CLIP's frozen weights in bfloat16")
    parser.add_argument("--former", action="store_true", help="the former default: no rephrased texts, no updates")
    options = parser.parse_args(arguments)
    return options, read_setting(parser, options)


def ways_for(classes: int, options: argparse.Namespace) -> list[str]:
    """What is compared: with savings always, the plain path and LoRA where their texts fit into memory."""
    if classes >= options.chunk_from:
        return [chunked(options.text_chunk)]
    ways = [SAVINGS, *([PLAIN] if classes <= options.plain_classes else []), LORA]
    return [*ways, OURS_BFLOAT16, LORA_BFLOAT16] if options.bfloat16 else ways


def measure(of: tuple[int, int], ways: list[str], setting: Setting, config: dict[str, Any]) -> dict[str, Any]:
    """Everything about one size, with some fields of the configuration."""
    row = {"classes": of[0], "batch": of[1], **in_process(time_steps, of, ways, setting, config)}
    row["peak_memory_gb"] = {way: in_process(measure_memory, of, way, setting, config) for way in ways}
    return row


def time_steps(of: tuple[int, int], ways: list[str], setting: Setting, config: dict[str, Any]) -> dict[str, Any]:
    """Time the ways in turn, count their operations, and time inference."""
    setting.begin()
    work = make_workload(*of).to(setting.device)
    model = make_adapted(work, **config)
    models = {SAVINGS: model}
    if OURS_BFLOAT16 in ways:
        models[OURS_BFLOAT16] = copy.deepcopy(model)
        set_precision(models[OURS_BFLOAT16], "bf16")
    steps = {way: make_step(way, models.get(way, model), work, setting.dtype) for way in ways}
    seconds = interleave(steps, setting, f"{of[0]} classes, batch {of[1]}")
    counts = {way: operations(step) for way, step in steps.items()}
    ours = ways[0]
    dtypes = {way: "bfloat16" if BFLOAT16 in way else setting.dtype for way in ways}
    peaks = {dtype: gemm_peak(replace(setting, dtype=dtype)) for dtype in set(dtypes.values())}
    peak_of = {way: peaks[dtype] for way, dtype in dtypes.items()}
    return {
        "seconds": {way: spread(taken) for way, taken in seconds.items()},
        "all_seconds": seconds,
        "times_ours": {way: ratios(taken, seconds[ours]) for way, taken in seconds.items()},
        "operations": counts,
        "gemm_peak": peak_of,
        "share_of_peak": {way: counts[way] / spread(seconds[way])["median"] / peak_of[way] for way in ways},
        "inference": inference(models, work, setting),
    }


@torch.no_grad()
def inference(models: dict[str, Any], work: Workload, setting: Setting) -> dict[str, Any]:
    """Images per second of adapted models with kept class features, and of CLIP's image encoder and a product."""
    clip = make_clip().to(setting.device)
    text = clip.get_text_features(class_ids(work.class_names).to(setting.device)).pooler_output
    runs = {CLIP: lambda: clip.get_image_features(work.pixels).pooler_output @ text.t()}
    for way, model in models.items():
        model.set_savings(Savings())
        runs[way] = partial(model.eval(), pixel_values=work.pixels)

    def under_autocast(run: Callable[[], Any]) -> Callable[[], None]:
        def call() -> None:
            with torch.autocast(setting.device, getattr(torch, setting.dtype), enabled=setting.dtype != "float32"):
                run()

        return call

    seconds = interleave({name: under_autocast(run) for name, run in runs.items()}, setting)
    rates = {name: spread(len(work.labels) / each for each in taken) for name, taken in seconds.items()}
    return {
        "images_per_second": rates,
        "over_clip": {way: ratios(seconds[CLIP], seconds[way]) for way in models},
    }


def measure_memory(of: tuple[int, int], way: str, setting: Setting, config: dict[str, Any]) -> float:
    """Peak memory in GB of one way."""
    setting.begin()
    work = make_workload(*of).to(setting.device)
    model = None if way.startswith(LORA) else make_adapted(work, **config)
    if model is not None and BFLOAT16 in way:
        set_precision(model, "bf16")
    return memory_of_two(make_step(way, model, work, setting.dtype), setting.device)


def report(record: dict[str, Any]) -> str:
    """The tables."""
    steps, inferences = [], []
    for row in record["rows"]:
        name = f"{row['classes']}, {row['batch']}"
        for way, taken in row["seconds"].items():
            rate = row["operations"][way] / taken["median"]
            ours = way == next(iter(row["seconds"]))
            steps.append(
                [
                    name,
                    way,
                    with_range(taken),
                    "" if ours else with_range(row["times_ours"][way]),
                    f"{row['peak_memory_gb'][way]:.1f}",
                    f"{row['operations'][way] / 1e9:,.0f}",
                    f"{rate / 1e9:,.0f}",
                    f"{row['share_of_peak'][way]:.0%} of {row['gemm_peak'][way] / 1e9:,.0f}",
                ]
            )
        for way, rate in row["inference"]["images_per_second"].items():
            ratio = row["inference"]["over_clip"].get(way)
            inferences.append([name, way, with_range(rate, ".1f"), with_range(ratio) if ratio else ""])
    return f"{table(STEP_COLUMNS, steps)}\n\n{table(INFERENCE_COLUMNS, inferences)}"


def draw(record: dict[str, Any]) -> Figure:
    """Draw step times and memory, a group of bars for every size."""
    rows = record["rows"]
    ways = list(dict.fromkeys(way for row in rows for way in row["seconds"]))
    figure = Figure(figsize=(max(9, 0.7 * len(rows) * len(ways)), 4.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, unit in zip(panels, ("s per step (log)", "GB at the peak"), strict=True):
        for number, way in enumerate(ways):
            having = [(place, row) for place, row in enumerate(rows) if way in row["seconds"]]
            places = [place + 0.8 * ((number + 0.5) / len(ways) - 0.5) for place, _ in having]
            if axes is panels[0]:
                values = [row["seconds"][way] for _, row in having]
                heights, errors = [value["median"] for value in values], whiskers(values)
            else:
                heights, errors = [row["peak_memory_gb"][way] for _, row in having], None
            bars = axes.bar(places, heights, 0.75 / len(ways), yerr=errors, label=way, color=colour(way))
            axes.bar_label(bars, fmt="%.3g", fontsize=7, padding=1)
        axes.set_xticks(range(len(rows)), [f"{row['classes']} classes\nbatch {row['batch']}" for row in rows])
        axes.set_ylabel(unit)
        tidy(axes)
    panels[0].set_yscale("log")
    panels[0].set_ylim(panels[0].get_ylim()[0] / 2)
    logarithmic(panels[0].yaxis)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(ways), frameon=False)
    return figure


if __name__ == "__main__":
    main()
