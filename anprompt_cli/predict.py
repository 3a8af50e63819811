"""`anprompt predict`."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from .errors import FAILED
from .options import CHOOSE, CLASSES, ModelOptions, RunOptions, argument, command, file, flag, number, option
from .text import as_json, printable


@dataclass(frozen=True, kw_only=True)
class PredictOptions(RunOptions, ModelOptions):
    """Options of `anprompt predict`."""

    images: list[str] = argument("IMAGE", "Image files, folders (searched with their sub-folders) or quoted globs.")
    top_k: int = number("Classes to show per image, the most likely first.", default=3)
    classes: list[str] | None = option(CHOOSE, CLASSES, metavar="NAME")
    classes_file: Path | None = file("The same from a file: text with one name per line, or a JSON list.", CLASSES)
    template: list[str] | None = option(
        "Prompt with {} for the class name; repeat it for several. Default: the adapter's own.", CLASSES
    )
    jsonl: bool = flag("--jsonl", "Print one JSON object per line.")
    batch_size: int = number("Images per step.", default=16)


@command
def predict(options: PredictOptions) -> None:
    """Classify images.

    * `anprompt predict adapter cat.jpg holiday/ "more/**/*.png"`
    * `anprompt predict adapter holiday/ --classes beach --classes forest --classes city` asks for any other classes
    * `anprompt predict adapter holiday/ --top-k 1 --jsonl > classes.jsonl`

    Images that cannot be read are named on standard error, and the exit code is then 1.
    """
    if options.classes and options.classes_file:
        raise ValueError("--classes and --classes-file exclude each other.")
    _check_there(options.images)
    from .jobs.predict import classify, find_images

    paths = find_images(options.images)
    width, failed = max(map(len, paths)), False
    for result in classify(options, paths):
        if result.error:
            failed = True
            print(printable(f"error: {result.error}"), file=sys.stderr)
        elif options.jsonl:
            predictions = [{"class": name, "probability": share} for name, share in result.ranking]
            print(as_json({"image": result.path, "predictions": predictions}, indent=None), flush=True)
        else:
            ranking = ", ".join(f"{name} {share:.1%}" for name, share in result.ranking)
            print(printable(f"{result.path:<{width}}  {ranking}"), flush=True)
    if failed:
        raise typer.Exit(FAILED)


def _check_there(patterns: Sequence[str]) -> None:
    """Raise `FileNotFoundError` for a path or glob that finds nothing, before PyTorch is loaded."""
    for pattern in patterns:
        path = os.path.expanduser(pattern)
        if not (os.path.lexists(path) or any(glob.iglob(path, recursive=True))):
            raise FileNotFoundError(f"There is no file {pattern}.")
