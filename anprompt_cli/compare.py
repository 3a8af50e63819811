"""`anprompt compare`: its options, and what can be told before PyTorch is loaded."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import typer

from .adapters import check_data
from .errors import FAILED
from .options import (
    CLIP,
    DATA,
    OUTPUT,
    RUN,
    TRAINING,
    PoolOptions,
    RunOptions,
    command,
    number,
    option,
)
from .text import printable


@dataclass(frozen=True, kw_only=True)
class CompareOptions(RunOptions, PoolOptions):
    """Options of `anprompt compare`."""

    output: Path | None = option(
        "Folder of the measurements and the report. What it has of the same photos is not measured again. Default: "
        "compare-NAME in this folder, for photos called NAME.",
        OUTPUT,
        file_okay=False,
    )
    model: str = option("CLIP to adapt: its id on the Hub, or a folder.", default=CLIP)
    shots: int = number("Images per class to learn from; a class with fewer gives all it has.", DATA, default=16)
    draws: int = number(
        "Draws of the shots, which the intervals are over; folds, where no photos are held out.",
        DATA,
        min=2,
        default=5,
    )
    method: list[str] | None = option(
        "Method to compare with zero-shot CLIP; repeat it. Default: zero-shot-ensemble, linear-probe, tip-adapter-f, "
        "prolip, lora and anprompt.",
        TRAINING,
        metavar="NAME",
    )
    save: str | None = option(
        "Train a method on all photos and save it in --output: best, which is the answer, or one by name.",
        OUTPUT,
        metavar="NAME",
    )
    threads: int | None = number("Threads to compute with. Default: as PyTorch chooses.", RUN)


@command
def compare(options: CompareOptions) -> None:
    """Say which method works best on your photos, what it gains and what it costs.

    * `anprompt compare photos`
    * `anprompt compare photos --shots 4 --template "a photo of a {}, a type of flower."`
    * `anprompt compare photos --method linear-probe --method anprompt`
    * `anprompt compare photos --save best`, and then `anprompt predict compare-photos/linear-probe holiday/`

    Zero-shot CLIP, a linear probe, ANPrompt and others learn from the same draws of the images to train on, and are
    measured on those of the split test, or else validation. Without either, folds take their place. The cheapest
    method comes first, and the answer is the cheapest one that is not told apart from the best.

    Ctrl-C loses at most one measurement: the same command continues.
    """
    check_data(options.data)
    from .jobs.compare import compare_photos

    lines, notes, failed = compare_photos(options)
    print(*map(printable, notes), sep="\n", file=sys.stderr, end="\n" if notes else "")
    print(*map(printable, lines), sep="\n")
    if failed:
        raise typer.Exit(FAILED)
