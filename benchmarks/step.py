"""What a training step costs: this package with and without its savings, beside LoRA, and inference beside CLIP.

    python benchmarks/step.py [--sizes 10x4 50x4 100x32 500x4 1000x32] [--steps 5] [--output outputs/benchmarks]

A size is CLASSESxBATCH, on ViT-B/16 with random weights, float32 on the CPU. The ways take turns within one process,
so ratios hold on a machine whose speed drifts; peak memory is that of a process of its own for each way. Operations
are those of the matrix products that the step with all savings runs; the rate is compared with the best that a plain
product of the encoder's shapes reached in the same process. Writes step.json and step.png.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from anprompt_peft.fast import Savings
from anprompt_peft.provenance import provenance, to_json, whole_folder
from workload import Workload, class_ids, lora_step, make_adapted, make_clip, make_workload, train_step

WAYS = ("all savings", "plain", "LoRA")
GEMM_SHAPES = ((788, 768, 3072), (788, 3072, 768), (2048, 512, 2048))
RECORD = "step.json"


def main(arguments: list[str] | None = None) -> None:
    """Measure every size in processes of its own, print the table, write the record and the picture."""
    options = parse(arguments)
    if options.worker:
        print(json.dumps(WORKERS[options.worker](options)))
        return
    rows = []
    for size in tqdm(options.sizes, desc="sizes", file=sys.stderr):
        row = {"classes": size[0], "batch": size[1], **run_worker("time", size, options)}
        ways = [way for way in WAYS if way in row["seconds"]]
        row["peak_memory_gb"] = {way: run_worker("memory", size, options, way)["peak_memory_gb"] for way in ways}
        rows.append(row)
        print(line(row), flush=True)
    record = {"rows": rows, "steps": options.steps, "threads": options.threads, **provenance()}
    with whole_folder(options.output, replaces=RECORD) as folder:
        (folder / RECORD).write_text(to_json(record))
        save_chart(folder / "step.png", rows)
    print(f"Written to {options.output}/: {RECORD}, step.png")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = [(10, 4), (50, 4), (100, 32), (500, 4), (1000, 32)]
    parser.add_argument("--sizes", nargs="+", type=size, default=default, metavar="CxB")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each way, after one that is not")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plain-up-to", type=int, default=2000, help="classes x batch above which only savings run")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/step"))
    parser.add_argument("--worker", choices=list(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def size(text: str) -> tuple[int, int]:
    """Parse CLASSESxBATCH."""
    classes, _, batch = text.partition("x")
    return int(classes), int(batch)


def run_worker(worker: str, of: tuple[int, int], options: argparse.Namespace, way: str | None = None) -> Any:
    """Run one measurement in a process of its own and return what it printed."""
    command = [sys.executable, __file__, "--worker", worker, "--sizes", f"{of[0]}x{of[1]}"]
    command += ["--steps", str(options.steps), "--threads", str(options.threads)]
    command += ["--plain-up-to", str(options.plain_up_to), *(["--way", way] if way else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def make_ways(work: Workload, names: list[str]) -> dict[str, Callable[[], None]]:
    """The steps to compare; both of this package's share one model."""
    steps: dict[str, Callable[[], None]] = {}
    if set(names) & {"all savings", "plain"}:
        model = make_adapted(work)
        step = train_step(model, work)

        def with_savings(savings: Savings) -> Callable[[], None]:
            def run() -> None:
                model.set_savings(savings)
                step()

            return run

        steps = {"all savings": with_savings(Savings()), "plain": with_savings(Savings.none())}
    if "LoRA" in names:
        steps["LoRA"] = lora_step(work)
    return {name: steps[name] for name in names}


def time_steps(options: argparse.Namespace) -> dict[str, Any]:
    """Time the ways in turn, and inference with kept class features beside CLIP's image encoder."""
    torch.set_num_threads(options.threads)
    ((classes, batch),) = options.sizes
    work = make_workload(classes, batch)
    names = list(WAYS) if classes * batch <= options.plain_up_to or classes <= 100 else ["all savings"]
    steps = make_ways(work, names)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(1 + options.steps):
        for name, step in steps.items():
            seconds[name].append(timed(step))
    with FlopCounterMode(display=False) as counter:
        steps["all savings"]()
    operations = counter.get_total_flops()
    median = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    peak = gemm_peak()
    return {
        "seconds": median,
        "all_seconds": {name: times[1:] for name, times in seconds.items()},
        "operations": operations,
        "gemm_peak": peak,
        "share_of_peak": operations / median["all savings"] / peak,
        "inference": inference_rates(work, options.steps),
    }


def inference_rates(work: Workload, rounds: int) -> dict[str, float]:
    """Images per second of the adapted model with kept class features, and of CLIP's own image side."""
    adapted, clip = make_adapted(work).eval(), make_clip()
    ids = class_ids(work.class_names)
    with torch.no_grad():
        text = clip.get_text_features(ids).pooler_output

        def run_clip() -> None:
            clip.get_image_features(work.pixels).pooler_output @ text.t()

        def run_adapted() -> None:
            adapted(pixel_values=work.pixels)

        times: dict[str, list[float]] = {"CLIP": [], "adapted": []}
        for _ in range(1 + rounds):
            times["CLIP"].append(timed(run_clip))
            times["adapted"].append(timed(run_adapted))
    return {name: len(work.labels) / statistics.median(each[1:]) for name, each in times.items()}


def measure_memory(options: argparse.Namespace) -> dict[str, float]:
    """Peak memory of this process after two steps of one way."""
    torch.set_num_threads(options.threads)
    ((classes, batch),) = options.sizes
    (step,) = make_ways(make_workload(classes, batch), [options.way]).values()
    step()
    step()
    return {"peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


def timed(run: Callable[[], None]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def gemm_peak() -> float:
    """Best rate of a matrix product of the encoder's shapes, in operations per second."""
    best = 0.0
    for rows, inner, columns in GEMM_SHAPES:
        left, right = torch.randn(rows, inner), torch.randn(inner, columns)
        for _ in range(20):
            best = max(best, 2 * rows * inner * columns / timed(lambda a=left, b=right: a @ b))  # type: ignore[misc]
    return best


def line(row: dict[str, Any]) -> str:
    """One size as a line of the table."""
    seconds, memory, rates = row["seconds"], row["peak_memory_gb"], row["inference"]
    ways = "  ".join(f"{way} {seconds[way]:.2f} s {memory[way]:.1f} GB" for way in seconds)
    gain = f"  {seconds['plain'] / seconds['all savings']:.2f}x" if "plain" in seconds else ""
    share = f"{row['share_of_peak']:.0%} of {row['gemm_peak'] / 1e9:.0f} GFLOP/s"
    inference = f"inference {rates['adapted'] / rates['CLIP']:.1%} of CLIP's {rates['CLIP']:.1f} images/s"
    return f"({row['classes']}, {row['batch']}): {ways}{gain}  {share}  {inference}"


def save_chart(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draw step times and memory, a group of bars for every size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for axes, key, unit in zip(panels, ("seconds", "peak_memory_gb"), ("s per step", "GB at the peak"), strict=True):
        for at, way in enumerate(WAYS):
            places = [place + 0.27 * (at - 1) for place, row in enumerate(rows) if way in row[key]]
            values = [row[key][way] for row in rows if way in row[key]]
            bars = axes.bar(places, values, 0.25, label=way)
            axes.bar_label(bars, fmt="%.2g", fontsize=8)
        axes.set_xticks(range(len(rows)), [f"{row['classes']} classes\nbatch {row['batch']}" for row in rows])
        axes.set_yscale("log")
        axes.set_ylabel(unit)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


WORKERS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"time": time_steps, "memory": measure_memory}

if __name__ == "__main__":
    main()
