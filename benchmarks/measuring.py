"""Time, memory and operations of a step; shared by the benchmarks."""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop
from tqdm import tqdm

DTYPES = ("float32", "bfloat16", "float16")
GEMM_SHAPES = {
    "cpu": ((788, 768, 3072), (788, 3072, 768), (2048, 512, 2048)),
    "cuda": ((6304, 768, 3072), (6304, 3072, 768), (8192, 8192, 8192)),
}
Step = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """How all steps of a run are measured.

    Attributes:
        device: `cpu` or `cuda`.
        dtype: one of `DTYPES`; other than float32 means autocast, as with Accelerate's mixed precision.
        threads: of PyTorch.
        steps: timed steps of each way, after one that is not.
    """

    device: str
    dtype: str
    threads: int
    steps: int

    def begin(self) -> None:
        """Prepare this process."""
        torch.set_num_threads(self.threads)


def parser_for(name: str, description: str | None, **fixed: Any) -> argparse.ArgumentParser:
    """A parser with the options of all benchmarks.

    Args:
        name: of the benchmark.
        description: what `--help` says.
        fixed: fields of [`Setting`] that this benchmark does not ask for, with their values.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options: dict[str, dict[str, Any]] = {
        "--steps": {"type": positive, "default": 5, "help": "timed steps of each way, after one that is not"},
        "--threads": {"type": positive, "default": 2, "help": "of PyTorch on the CPU (default 2)"},
        "--device": {"choices": ("cpu", "cuda"), "default": "cuda" if torch.cuda.is_available() else "cpu"},
        "--dtype": {"choices": DTYPES, "default": "float32", "help": "other than float32: under autocast"},
    }
    for option, settings in options.items():
        if option.removeprefix("--") not in fixed:
            parser.add_argument(option, **settings)
    parser.set_defaults(**fixed)
    output = Path("outputs/benchmarks") / name
    parser.add_argument("--output", type=Path, default=output, help=f"folder to write (default {output})")
    return parser


def read_setting(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Setting:
    """Return the setting that the options ask for; float16 without a GPU is an error, as its loss is not scaled."""
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU here. Use --device cpu.")
    if options.device == "cpu" and options.dtype == "float16":
        parser.error("--dtype float16 needs a GPU. Use float32 or bfloat16 on the CPU.")
    return Setting(options.device, options.dtype, options.threads, options.steps)


def positive(text: str) -> int:
    """Parse a number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return number


def size(text: str) -> tuple[int, int]:
    """Parse CLASSESxBATCH."""
    classes, cross, batch = text.partition("x")
    if not (cross and classes.isdecimal() and batch.isdecimal() and int(classes) > 1 and int(batch) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} must be CLASSESxBATCH with two classes or more, such as 50x4")
    return int(classes), int(batch)


def timed(run: Step, device: str = "cpu") -> float:
    """Seconds that a call takes, with all that it starts on the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleave(ways: Mapping[str, Step], setting: Setting, label: str = "") -> dict[str, list[float]]:
    """Seconds of each step of each way; they take turns, each round in another order, after a round that is not timed.

    Args:
        ways: steps by name.
        setting: how many steps, and where they run.
        label: what the progress bar says; without, there is none.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for step in tqdm(range(len(names) * (1 + setting.steps)), desc=label, disable=not label, leave=False, position=1):
        turn, place = divmod(step, len(names))
        name = names[(turn + place) % len(names)]
        taken = timed(ways[name], setting.device)
        if turn:
            seconds[name].append(taken)
    return seconds


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, smallest and largest value."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(times: list[float], base: list[float]) -> dict[str, float]:
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


def gemm_peak(setting: Setting) -> float:
    """Best rate of a matrix product of the encoder's shapes, in operations per second."""
    dtype, best = getattr(torch, setting.dtype), 0.0
    for rows, inner, columns in GEMM_SHAPES[setting.device]:
        left = torch.randn(rows, inner, device=setting.device, dtype=dtype)
        right = torch.randn(inner, columns, device=setting.device, dtype=dtype)
        for _ in range(20):
            seconds = timed(lambda a=left, b=right: a @ b, setting.device)  # type: ignore[misc]
            best = max(best, 2 * rows * inner * columns / seconds)
    return best


def peak_memory_gb(device: str) -> float:
    """Most memory that this process has held, in GB: on the GPU what tensors took, else of the whole process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
