"""The ways to take one and the same training step."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from anprompt_peft.fast import Savings
from measuring import peak_memory_gb, positive
from workload import Workload, lora_step, make_clip, train_step

LORA, PLAIN, SAVINGS = "LoRA", "plain", "all savings"
BFLOAT16 = "bfloat16 weights"
OURS_BFLOAT16, LORA_BFLOAT16 = f"{SAVINGS}, {BFLOAT16}", f"{LORA}, {BFLOAT16}"


def add_way_options(parser: argparse.ArgumentParser, chunk_from: int, plain_classes: int) -> None:
    """Add the limits of the ways."""
    at = f"classes from which on Savings(text_chunk=...) is used (default {chunk_from})"
    parser.add_argument("--chunk-from", type=positive, default=chunk_from, help=at)
    parser.add_argument("--text-chunk", type=positive, default=500, help="texts at a time from there on (default 500)")
    limit = f"most classes for the plain path, which takes 35 MB each (default {plain_classes})"
    parser.add_argument("--plain-classes", type=int, default=plain_classes, help=limit)


def chunked(text_chunk: int) -> str:
    """The name of the way that computes that many texts at a time."""
    return f"{text_chunk} texts at a time"


def savings_of(way: str) -> Savings:
    """The savings of a way of this package's own."""
    if way == PLAIN:
        return Savings.none()
    return Savings() if way.startswith(SAVINGS) else Savings(text_chunk=int(way.split()[0]))


def make_step(way: str, model: Any, work: Workload, dtype: str) -> Callable[[], None]:
    """The step of a way; the ways of this package's own may share a model, whose weights have their dtype already."""
    if way.startswith(LORA):
        return lora_step(work, dtype, make_clip(dtype="bfloat16" if BFLOAT16 in way else "float32"))
    return with_savings(savings_of(way), model, train_step(model, work, dtype))


def with_savings(savings: Savings, model: Any, step: Callable[[], None]) -> Callable[[], None]:
    """A step before which the savings are chosen."""

    def run() -> None:
        model.set_savings(savings)
        step()

    return run


def memory_of_two(step: Callable[[], None], device: str) -> float:
    """Peak memory in GB of this process after two steps, the second of which has the optimiser's state."""
    step()
    step()
    return peak_memory_gb(device)
