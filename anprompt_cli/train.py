"""`anprompt train`."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from .adapters import check_data, check_repo
from .config_file import RECORD, RESULTS, effective
from .errors import Interrupted
from .options import TrainOptions, command
from .push import upload
from .text import printable

NOT_RECORDED = ("config", "output", "resume", "push_to_hub", "device")
NOT_MEASURED = (
    "There is no split test or validation, so nothing was measured. --test-share 0.2 holds out a fifth of the images "
    "to measure on."
)
LEFTOVERS = (".lock", ".new-", f".{RECORD}-", ".base-new.json-")
"""Beginnings of the names of what a run has in its folder only while it is writing."""
LOCAL = ("data", "model", "halves", "classes_file")


@command
def train(context: typer.Context, options: TrainOptions) -> None:
    """Train an adapter of CLIP on your images, and measure it.

    * `anprompt train photos --output adapter --shots 16`
    * `anprompt train photos --output adapter --template "a photo of a {}, a type of flower." --epochs 50`
    * `anprompt train photos --output adapter --base-only` also measures classes that were not trained on
    * `anprompt train --config run.yaml --output adapter`

    A configuration file gives defaults: options under their names, and in its sections `adapter` and `training` the
    fields of `ANPromptConfig` and of transformers' `TrainingArguments`. Options on the command line win. The folder's
    `run.yaml` is such a file, and repeats the run.

    Ctrl-C or SIGTERM writes a checkpoint; `anprompt train --output adapter --resume` continues from there.
    """
    output = options.output
    _check(options)
    settings = effective(_plain(options), context.obj.sections)
    from anprompt_peft.training import alone_in

    from .jobs.train import train_adapter

    try:
        with alone_in(output):
            _check_folder(options)  # again, as another run may have begun meanwhile
            _sweep(output)
            if (output / RESULTS).is_file():
                raise ValueError(f"--resume: the run in {output} is complete.")
            measured, notes = train_adapter(options, settings)
    except (Interrupted, KeyboardInterrupt) as error:
        if not (output / RECORD).is_file():
            raise
        stopped = error if isinstance(error, Interrupted) else Interrupted("Interrupted.")
        stopped.message += f" Continue with: anprompt train --output {shlex.quote(str(output))} --resume"
        raise stopped from None
    print(*map(printable, notes), sep="\n", file=sys.stderr, end="\n" if notes else "")
    pushed = []
    try:
        if options.push_to_hub:
            pushed.append(upload(output, options.push_to_hub))
    finally:  # what nobody may read any more comes last
        print(measured.summary() if measured else NOT_MEASURED)
        print(
            f"Written to {output}/: adapter, {RESULTS} and report.html; {RECORD} repeats the run.", *pushed, sep="\n"
        )


def _check(options: TrainOptions) -> None:
    """Raise for what can be told before anything is loaded: the folder, the names, and options that exclude others."""
    _check_folder(options)
    for pair in (("shots", "shots_up_to"), ("halves", "base_only"), ("class_names", "classes_file")):
        if all(getattr(options, name) for name in pair):
            raise ValueError("{} and {} exclude each other.".format(*(f"--{name.replace('_', '-')}" for name in pair)))
    if options.image_cache and options.augment:
        raise ValueError(
            f"--image-cache {options.image_cache} needs images that are seen again, and every epoch has new crops. "
            "Add --no-augment, or leave it out."
        )
    if options.push_to_hub:
        check_repo(options.push_to_hub)
    check_data(options.data)


def _check_folder(options: TrainOptions) -> None:
    """Raise unless the run can begin, or go on, in its folder."""
    output, resume = options.output, options.resume
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file. Choose a folder.")
    left = [path for path in output.glob("*") if not path.name.startswith(LEFTOVERS)]
    if not resume and left:
        raise ValueError(f"--output {output} is not empty. Choose another folder, or continue its run with --resume.")


def _sweep(output: Path) -> None:
    """Remove files that a crash left half-written."""
    for path in output.glob(".*"):
        if path.is_dir() and path.name.startswith(LEFTOVERS):
            shutil.rmtree(path)


def _plain(options: TrainOptions) -> dict[str, Any]:
    """Return the options that a run is repeated from, as JSON values; local paths work from anywhere."""
    settings = {
        name: value for name, value in asdict(options).items() if name not in NOT_RECORDED and value is not None
    }
    for name in LOCAL:
        if name in settings and (path := Path(settings[name]).expanduser()).exists():
            settings[name] = str(path.resolve())
    return {name: str(value) if isinstance(value, Enum | Path) else value for name, value in settings.items()}
