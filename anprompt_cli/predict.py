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
from .options import OUTPUT, AskOptions, RunOptions, argument, check_exclusive, command, file, flag, number, option
from .text import as_csv, as_json, printable

UNSURE = "unsure"


def threshold_of(text: str) -> tuple[float, bool]:
    """Return a share between 0 and 1, and whether it is one of right answers (`95%`) instead of a probability."""
    calibrates = text.endswith("%")
    try:
        share = float(text.removesuffix("%")) / (100 if calibrates else 1)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise ValueError(f"--threshold {text} must be a probability such as 0.8, or a share such as 95%.")
    return share, calibrates


def check_threshold(text: str | None) -> str | None:
    """Refuse what is no threshold as soon as the option is read: its callback."""
    if text is not None:
        threshold_of(text)
    return text


@dataclass(frozen=True)
class Answer:
    """What is said of an image: the classes by probability, the answer, and where the file was put."""

    path: str
    adapter: str
    ranking: list[tuple[str, float]]
    name: str
    file: str | None


@dataclass(frozen=True, kw_only=True)
class PredictOptions(RunOptions, AskOptions):
    """Options of `anprompt predict`."""

    images: list[str] = argument("IMAGE", "Image files, folders (searched with their sub-folders) or quoted globs.")
    also: list[str] | None = option(
        "Another adapter that answers beside; repeat it.", None, "--adapter", metavar="ADAPTER"
    )
    threshold: str | None = option(
        "Answer unsure below this: a probability such as 0.8, or a share of right answers such as 95%, which needs "
        "--calibrate.",
        callback=check_threshold,
        metavar="SHARE",
    )
    calibrate: Path | None = file("Answers on held-out images, as `anprompt evaluate --csv` prints them.")
    move_to: Path | None = option("Move each file to the folder of its class in this folder.", OUTPUT, file_okay=False)
    copy_to: Path | None = option("Copy each file to the folder of its class in this folder.", OUTPUT, file_okay=False)
    jsonl: bool = flag("--jsonl", "Print one JSON object per line.", OUTPUT)
    as_csv: bool = flag("--csv", "Print CSV: image, prediction, confidence, and the same of the next classes.", OUTPUT)
    batch_size: int = number("Images per step.", default=16)


@command
def predict(options: PredictOptions) -> None:
    """Classify images.

    * `anprompt predict adapter cat.jpg holiday/ "more/**/*.png"`
    * `anprompt predict adapter holiday/ --classes beach --classes forest --classes city` asks for any other classes
    * `anprompt predict adapter holiday/ --top-k 1 --jsonl > classes.jsonl`
    * `anprompt predict adapter holiday/ --copy-to sorted --threshold 0.8` copies each image to the folder of its class

    Images that cannot be read are named on standard error, and the exit code is then 1. They stay where they are.
    """
    _check(options)
    _check_there(options.images)
    from .jobs.predict import Classifier, find_images

    paths = find_images(options.images)
    classifier = Classifier(options)
    if sorter := classifier.sorter():
        found = {os.path.realpath(path): path for path in paths}.values()
        paths = [path for path in found if not sorter.holds(path)]
        if there := len(found) - len(paths):
            print(f"Left out, as they are in {sorter.folder} already: {there}.", file=sys.stderr)
    if options.as_csv:
        print(as_csv([_head(options, min(options.top_k, len(classifier.classes)))]), end="")
    width, failed = max(map(len, paths), default=0), False
    for path, results in zip(paths, classifier.classify(paths), strict=True):
        for adapter, result in zip([options.adapter, *(options.also or ())], results, strict=True):
            if result.error:
                failed = True
                print(printable(f"error: {result.error}"), file=sys.stderr)
                continue
            name, share = result.ranking[0]
            answer = UNSURE if classifier.threshold is not None and share < classifier.threshold else name
            file = str(sorter.put(path, answer)) if sorter else None
            print(_line(Answer(path, adapter, result.ranking, answer, file), options, width), end="", flush=True)
    if failed:
        raise typer.Exit(FAILED)


def _head(options: PredictOptions, count: int) -> list[str]:
    """Return the names of the columns of CSV."""
    adapter, file = ["adapter"] * bool(options.also), ["file"] * bool(options.move_to or options.copy_to)
    others = [f"{name}_{rank}" for rank in range(2, count + 1) for name in ("prediction", "confidence")]
    return ["image", *adapter, "prediction", "confidence", *others, *file]


def _line(answer: Answer, options: PredictOptions, width: int) -> str:
    """Return what is printed of an answer, with its line end."""
    adapter, file = [answer.adapter] * bool(options.also), [answer.file] * (answer.file is not None)
    if options.as_csv:
        (_, share), *others = answer.ranking
        return as_csv(
            [[answer.path, *adapter, answer.name, share, *(cell for pair in others for cell in pair), *file]]
        )
    if options.jsonl:
        record = {
            "image": answer.path,
            **({"adapter": answer.adapter} if adapter else {}),
            **({"answer": answer.name} if options.threshold else {}),
            "predictions": [{"class": name, "probability": share} for name, share in answer.ranking],
            **({"file": answer.file} if file else {}),
        }
        return as_json(record, indent=None) + "\n"
    ranking = ", ".join(f"{name} {share:.1%}" for name, share in answer.ranking)
    shown = f"{UNSURE} ({ranking})" if answer.name == UNSURE else ranking
    cells = [f"{answer.path:<{width}}", *adapter, shown, *(f"-> {each}" for each in file)]
    return printable("  ".join(cells)) + "\n"


def _check(options: PredictOptions) -> None:
    """Raise for options that exclude or need others."""
    check_exclusive(options, ("classes", "classes_file"), ("move_to", "copy_to"), ("jsonl", "as_csv"))
    calibrates = options.threshold is not None and threshold_of(options.threshold)[1]
    if calibrates and not options.calibrate:
        raise ValueError(f"--threshold {options.threshold} needs --calibrate FILE with answers on held-out images.")
    if options.calibrate and not calibrates:
        raise ValueError("--calibrate needs a share of right answers to hold: --threshold 95%.")
    for name in ("move_to", "copy_to", "calibrate", "revision"):
        if options.also and getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')} is for one adapter. Leave --adapter out.")


def _check_there(patterns: Sequence[str]) -> None:
    """Raise `FileNotFoundError` for a path or glob that finds nothing, before PyTorch is loaded."""
    for pattern in patterns:
        path = os.path.expanduser(pattern)
        if not (os.path.lexists(path) or any(glob.iglob(path, recursive=True))):
            raise FileNotFoundError(f"There is no file {pattern}.")
