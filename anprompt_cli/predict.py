"""`anprompt predict`."""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from .errors import FAILED
from .options import CLASSES, AdapterOption, ClassesOption, Device, DeviceOption, RevisionOption
from .text import printable


def predict(
    adapter: AdapterOption,
    images: Annotated[
        list[str],
        Argument(metavar="IMAGE", help="Image files, folders (with all in them) or quoted globs.", show_default=False),
    ],
    top_k: Annotated[int, Option(metavar="N", min=1, help="Classes to name per image, the most likely first.")] = 3,
    classes: ClassesOption = None,
    classes_file: Annotated[
        Path | None,
        Option(
            exists=True,
            dir_okay=False,
            help="The same from a file: text with one name per line, or a JSON list.",
            rich_help_panel=CLASSES,
            show_default=False,
        ),
    ] = None,
    template: Annotated[
        list[str] | None,
        Option(
            help="Prompt around a class name; repeat it for several. Default: the adapter's own.",
            rich_help_panel=CLASSES,
            show_default=False,
        ),
    ] = None,
    jsonl: Annotated[bool, Option("--jsonl", help="Print a JSON object per line.")] = False,
    revision: RevisionOption = None,
    batch_size: Annotated[int, Option(metavar="N", min=1, help="Images per step.")] = 16,
    device: DeviceOption = Device.AUTO,
) -> None:
    """Classify images.

    * `anprompt predict adapter cat.jpg holiday/ "more/**/*.png"`
    * `anprompt predict adapter holiday/ --classes beach --classes forest --classes city` asks for any other classes
    * `anprompt predict adapter holiday/ --top-k 1 --jsonl > classes.jsonl`

    Images that cannot be read are named on standard error, and the exit code is then 1.
    """
    if classes and classes_file:
        raise ValueError("--classes and --classes-file exclude each other.")
    paths = find_images(images)
    from .labelled import read_names
    from .prediction_job import classify

    names, templates = classes or read_names(classes_file), template
    width, failed = max(map(len, paths)), False
    for result in classify(adapter, revision, device, paths, names, templates, top_k, batch_size):
        if result.error:
            failed = True
            print(f"error: {result.error}", file=sys.stderr)
        elif jsonl:
            predictions = [{"class": name, "probability": share} for name, share in result.ranking]
            print(json.dumps({"image": result.path, "predictions": predictions}, ensure_ascii=False), flush=True)
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
    from PIL import Image

    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files: list[str] = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            found = [str(file) for file in sorted(path.rglob("*")) if file.suffix.lower() in suffixes]
            missing = f"There are no images in the folder {pattern}."
        else:
            names = [str(path)] if path.exists() else sorted(glob.glob(str(path), recursive=True))
            found = [name for name in names if not Path(name).is_dir()]
            missing = f"There is no file {pattern}."
        if not found:
            raise FileNotFoundError(missing)
        files += found
    return files
