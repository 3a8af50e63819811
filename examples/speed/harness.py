"""How everything about speed is measured and reported: options, turns, operations, memory, tables."""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop
from tqdm import tqdm

from anprompt_peft.files import atomic_folder, to_json
from anprompt_peft.provenance import provenance
from fresh import Row, collect

DTYPES = ("float32", "bfloat16", "float16")
GEMM_SHAPES = {
    "cpu": ((788, 768, 3072), (788, 3072, 768), (2048, 512, 2048)),
    "cuda": ((6304, 768, 3072), (6304, 3072, 768), (8192, 8192, 8192)),
}
NOTED = ("torch", "transformers", "peft", "python")
Job = TypeVar("Job")
Step = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """How all steps of a run are measured.

    Attributes:
        device: `cpu` or `cuda`.
        dtype: one of `DTYPES`; other than float32 means autocast, as with Accelerate's mixed precision.
        threads: of PyTorch.
        steps: timed steps of each way, after one that is not.
        block: steps that count as one, between which nothing waits for the device.
    """

    device: str
    dtype: str
    threads: int
    steps: int
    block: int = 1

    def begin(self) -> None:
        """Prepare this process."""
        torch.set_num_threads(self.threads)


def parser_for(name: str, description: str | None, **fixed: Any) -> argparse.ArgumentParser:
    """A parser with the options of all scripts; `fixed` are fields of `Setting` that this one does not ask for."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options: dict[str, dict[str, Any]] = {
        "--steps": {"type": positive, "default": 5, "help": "timed steps of each way, after one that is not"},
        "--threads": {"type": positive, "default": 2, "help": "of PyTorch on the CPU (default 2)"},
        "--device": {"choices": ("cpu", "cuda"), "default": "cuda" if torch.cuda.is_available() else "cpu"},
        "--dtype": {"choices": DTYPES, "default": "float32", "help": "other than float32: under autocast"},
        "--block": {"type": positive, "default": 1, "help": "steps between which nothing waits for a GPU (default 1)"},
    }
    for option, settings in options.items():
        if option.removeprefix("--") not in fixed:
            parser.add_argument(option, **settings)
    parser.set_defaults(**fixed)
    output = Path("outputs/speed") / name
    parser.add_argument("--output", type=Path, default=output, help=f"folder to write (default {output})")
    return parser


def read_setting(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Setting:
    """Return the setting that the options ask for; float16 without a GPU is an error, as its loss is not scaled."""
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU here. Use --device cpu.")
    if options.device == "cpu" and options.dtype == "float16":
        parser.error("--dtype float16 needs a GPU. Use float32 or bfloat16 on the CPU.")
    return Setting(options.device, options.dtype, options.threads, options.steps, options.block)


def positive(text: str) -> int:
    """Parse a number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return number


# --- measuring


def timed(run: Step, device: str = "cpu", times: int = 1) -> float:
    """Seconds that each of so many calls takes, with all that they start on the GPU."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        run()
    synchronize(device)
    return (time.perf_counter() - start) / times


def synchronize(device: str) -> None:
    """Wait for what a GPU was asked to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def interleave(ways: Mapping[str, Step], setting: Setting, label: str = "") -> dict[str, list[float]]:
    """Seconds of each step of each way; they take turns in another order each round, and the first is not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for step in tqdm(range(len(names) * (1 + setting.steps)), desc=label, disable=not label, leave=False, position=1):
        turn, place = divmod(step, len(names))
        name = names[(turn + place) % len(names)]
        taken = timed(ways[name], setting.device, setting.block if turn else 1)
        if turn:
            seconds[name].append(taken)
    return seconds


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Median, smallest and largest value, and all of them."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": values}


def ratios(times: list[float], base: list[float]) -> dict[str, Any]:
    """Spread of the ratios of steps of the same round."""
    return spread(each / of for each, of in zip(times, base, strict=True))


def operations(run: Step) -> int:
    """Floating-point operations of the matrix products of a call.

    The forward of attention counts as two products and its backward as four, also where a kernel forms one again.
    PyTorch's own table leaves out attention on the CPU.
    """
    aten = torch.ops.aten

    def attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return sdpa_flop(query, key, value)

    def attention_backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return 2 * sdpa_flop(query, key, value)

    mapping: dict[Any, Any] = {}
    for name in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention"):
        mapping[getattr(aten, f"_scaled_dot_product_{name}")] = attention
        mapping[getattr(aten, f"_scaled_dot_product_{name}_backward")] = attention_backward
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        run()
    return counter.get_total_flops()


def gemm_peak(device: str, dtype: str) -> float:
    """Best rate of a matrix product of the encoder's shapes, in operations per second."""
    best = 0.0
    for rows, inner, columns in GEMM_SHAPES[device]:
        left = torch.randn(rows, inner, device=device, dtype=getattr(torch, dtype))
        right = torch.randn(inner, columns, device=device, dtype=getattr(torch, dtype))
        for _ in range(20):
            seconds = timed(lambda a=left, b=right: a @ b, device)  # type: ignore[misc]
            best = max(best, 2 * rows * inner * columns / seconds)
    return best


def peak_memory_gb(device: str) -> float:
    """Most memory that this process has held, in GB: on the GPU what tensors took, else of the whole process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


# --- reporting


def run(
    name: str,
    options: argparse.Namespace,
    setting: Setting,
    jobs: Iterable[Job],
    measure: Callable[[Job], list[Row]],
    subject: str = "ViT-B/16 with random weights",
    draw: Callable[[list[Row], Path], None] | None = None,
) -> None:
    """Measure all jobs, print their rows as tables, and write `name`.json and perhaps `name`.png to `options.output`.

    Raises:
        SystemExit: in the end, if the process of a job ended without a result.
        ChildProcessError: if those of all jobs did.
    """
    setting.begin()
    with atomic_folder(options.output, replaces=f"{name}.json") as folder:
        rows, failures = collect(jobs, measure)
        record = {"rows": rows, "did_not_finish": failures, "setting": asdict(setting), **provenance()}
        record["subject"] = subject
        (folder / f"{name}.json").write_text(to_json(record))
        if draw:
            draw(rows, folder / f"{name}.png")
    print(f"{head(record)}\n\n{tables(rows)}\n\nWritten to {options.output}")
    if failures:
        raise SystemExit("Not measured:\n" + "\n".join(failures))


def head(record: dict[str, Any]) -> str:
    """Hardware, precision, versions and commit of a record, above its tables."""
    hardware, setting, versions = record["hardware"], record["setting"], record["versions"]
    machine = hardware["accelerator"] if setting["device"] == "cuda" else hardware["processor"]
    packages = ", ".join(f"{name} {versions[name]}" for name in NOTED)
    return (
        f"{record['subject']} on {machine}, threads: {setting['threads']} of {hardware['cpu_count']} CPUs, "
        f"{setting['dtype']}\nMedian [smallest, largest] of {setting['steps']} steps\n"
        f"{packages}; commit {record['git_commit'] or 'unknown'}"
    )


def tables(rows: list[Row]) -> str:
    """A Markdown table for each run of rows with the same keys; the first column is flush left."""
    return "\n\n".join(_table(list(columns), list(group)) for columns, group in itertools.groupby(rows, tuple))


def _table(columns: list[str], rows: list[Row]) -> str:
    cells = [columns, *([_cell(row[column]) for column in columns] for row in rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * width if not at else "-" * (width - 1) + ":" for at, width in enumerate(widths)]

    def line(row: list[str]) -> str:
        first, *others = zip(row, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return f"| {' | '.join(padded)} |"

    return "\n".join(map(line, (columns, rule, *cells[1:])))


def _cell(value: Any) -> str:
    """Three digits of a number; of a spread also the smallest and the largest value in brackets."""
    if isinstance(value, dict):
        return f"{_cell(value['median'])} [{_cell(value['min'])}, {_cell(value['max'])}]"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value or "")
