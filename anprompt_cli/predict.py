"""`anprompt predict`."""

from __future__ import annotations

import glob
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from .errors import FAILED
from .options import PredictOptions, command
from .text import as_json, printable

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}


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
    paths = find_images(options.images)
    from .jobs.predict import classify

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


def find_images(patterns: Sequence[str]) -> list[str]:
    """Return the files meant by paths, folders and globs, in that order, each group sorted.

    Raises:
        FileNotFoundError: if one of them finds nothing.
    """
    files: list[str] = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            found = [str(file) for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES]
            missing = f"There are no images in the folder {pattern}."
        else:
            names = [str(path)] if path.exists() else sorted(glob.glob(str(path), recursive=True))
            found = [name for name in names if not Path(name).is_dir()]
            missing = f"There is no file {pattern}."
        if not found:
            raise FileNotFoundError(missing)
        files += found
    return files
