"""`anprompt train`: its options, and what can be told before PyTorch is loaded."""

from __future__ import annotations

import sys
from dataclasses import MISSING, dataclass
from functools import partial
from pathlib import Path

import typer

from .adapters import check_data, check_repo
from .choices import TrainingPrecision
from .config_file import OWNED, RECORD, RESULTS, set_defaults, take_sections
from .options import (
    CLASSES,
    CLIP,
    DATA,
    OUTPUT,
    RUN,
    TRAINING,
    PoolOptions,
    RunOptions,
    check_exclusive,
    command,
    file,
    flag,
    number,
    option,
)
from .push import upload
from .text import printable

NOT_MEASURED = (
    "There is no split test or validation, so nothing was measured. --test-share 0.2 holds out a fifth of the images "
    "to measure on."
)
FOLDS = "folds"
LEFTOVERS = (".lock", ".new-", f".{RECORD}-", ".base-new.json-")
"""Beginnings of the names of what a run has in its folder only while it is writing."""


def use_file(context: typer.Context, path: Path | None) -> Path | None:
    """Make a file's values the defaults of the options; without one, those of the run to resume.

    It is the callback of `--config`, which is read before all options but `--output` and `--resume`.
    """
    output = context.params.get("output")
    if context.params.get("resume") and output is not None:
        if not (output / RECORD).is_file():
            raise ValueError(f"--resume: no run was begun in {output}, as there is no {RECORD} in it.")
        path = path or output / RECORD
    return set_defaults(context, path, OWNED, partial(take_sections, options=TrainOptions))


def share_of(text: str) -> float | str:
    """Return what `--frozen-share` stands for: a number between 0 and 1, or `folds`."""
    try:
        share = FOLDS if text == FOLDS else float(text)
    except ValueError:
        share = -1.0
    if share != FOLDS and not 0 <= float(share) <= 1:
        raise ValueError(f"--frozen-share {text} must be a number between 0 and 1, or {FOLDS}.")
    return share


def check_share(text: str | None) -> str | None:
    """Refuse what is no share as soon as the option is read: its callback."""
    if text is not None:
        share_of(text)
    return text


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions, PoolOptions):
    """Options of `anprompt train`."""

    output: Path = option(
        "Folder to write the adapter to, with results, report and model card. It must be empty, or absent.",
        OUTPUT,
        default=MISSING,
        recorded=False,
        is_eager=True,
    )
    resume: bool = flag(
        "--resume",
        "Continue the run that was begun in --output. Other options need not be repeated.",
        OUTPUT,
        recorded=False,
        is_eager=True,
    )
    config: Path | None = file(
        "YAML or JSON file with options (`shots: 16`) and with any field of the adapter and of Trainer.",
        recorded=False,
        is_eager=True,
        callback=use_file,
    )
    model: str = option("CLIP to adapt: its id on the Hub, or a folder.", default=CLIP)
    shots: int | None = number("Images per class, drawn with --seed. Default: all.", DATA)
    shots_up_to: int | None = number("The same, and all images of a class that has fewer than N.", DATA)
    eval_split: str | None = option("Split to measure the result on. Default: test, else validation.", DATA)
    test_share: float | None = option(
        "Share of the images to hold out as the split test, if there is none.", DATA, min=0.01, max=0.99
    )
    validation_share: float | None = option(
        "The same for the split validation, used by --early-stopping.", DATA, min=0.01, max=0.99
    )
    base_only: bool = flag(
        "--base-only",
        "Train on the first half of the classes (base); measure on both halves (base and new).",
        CLASSES,
    )
    halves: Path | None = file('The same with the halves of a JSON file: {"base": [names], "new": [names]}.', CLASSES)
    recipe: str | None = option(
        "Weight decay, clipping and schedule: default, or paper. Default: default.",
        TRAINING,
        metavar="NAME",
        fills="training.recipe",
    )
    epochs: float | None = number(
        "Passes over the training images. Default: 10.", TRAINING, min=0, fills="training.num_train_epochs"
    )
    warmup_epochs: float | None = number(
        "Epochs at a constant learning rate of 1e-5 before the cosine. Default: the recipe's.",
        TRAINING,
        min=0,
        fills="training.warmup_epochs",
    )
    frozen_share: str | None = option(
        "Share (0 to 1) of the frozen CLIP's logits for other classes than those trained on. folds: let the images "
        "choose it, which takes two more trainings, each on half of the classes. Default: 0.5.",
        TRAINING,
        metavar="SHARE",
        callback=check_share,
        fills="adapter.frozen_share",
    )
    batch_size: int | None = number(
        "Images per step. Default: 4.", TRAINING, fills="training.per_device_train_batch_size"
    )
    learning_rate: float | None = number(
        "Peak learning rate of AdamW. Default: 0.001.", TRAINING, min=0, fills="training.learning_rate"
    )
    class_weights: str | None = option(
        "balanced: weight the classes by their inverse frequency in the loss. Default: none.",
        TRAINING,
        metavar="NAME",
        fills="training.class_weights",
    )
    classifier_weight: float | None = number(
        "Weight of a classifier on frozen image features, fitted after training, beside the adapter for the classes "
        "trained on; 0 fits none. Default: 2.0.",
        TRAINING,
        min=0,
        fills="adapter.classifier_weight",
    )
    denoiser: str | None = option(
        "Text denoiser of this CLIP, which the adapter starts from and keeps: a folder that `anprompt denoise` wrote, "
        "or an id on the Hub. Default: none.",
        TRAINING,
        metavar="NAME",
        fills="adapter.denoiser",
    )
    early_stopping: int | None = number(
        "Stop after N epochs without better accuracy on the split validation, and keep the best epoch.", TRAINING
    )
    augment: bool = option("Train on random crops, half of them mirrored.", TRAINING, default=True)
    image_cache: Path | None = option(
        "Folder to cache the output of CLIP's frozen layers in, which later epochs read; with --no-augment.",
        RUN,
        file_okay=False,
        resolve_path=True,
    )
    seed: int = number("Seed of shots, weights, batches and crops.", TRAINING, default=1, min=0, max=2**32 - 1)
    precision: TrainingPrecision = option(
        "Of CLIP's frozen weights. auto: bf16 where the device multiplies it natively, else fp32. "
        "fp16 trains with autocast, on a GPU.",
        TRAINING,
        default="auto",
    )
    workers: int | None = number(
        "Worker processes that load images. Default: 0.", RUN, min=0, fills="training.dataloader_num_workers"
    )
    report_to: list[str] | None = option(
        "Where Trainer logs to, such as tensorboard; repeat it for several.",
        OUTPUT,
        metavar="NAME",
        fills="training.report_to",
    )
    push_to_hub: str | None = option(
        "Repository, namespace/name, to push the adapter to at the end.", OUTPUT, metavar="REPO", recorded=False
    )


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
    from .jobs.train import train_adapter

    measured, notes = train_adapter(options, context.obj.sections)
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


def check_folder(options: TrainOptions) -> None:
    """Raise unless the run can begin, or go on, in its folder."""
    output = options.output
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file. Choose a folder.")
    left = [path for path in output.glob("*") if not path.name.startswith(LEFTOVERS)]
    if not options.resume and left:
        raise ValueError(f"--output {output} is not empty. Choose another folder, or continue its run with --resume.")


def _check(options: TrainOptions) -> None:
    """Raise for what can be told before anything is loaded: the folder, the names, and options that exclude others."""
    check_folder(options)
    check_exclusive(
        options,
        ("shots", "shots_up_to"),
        ("halves", "base_only"),
        ("class_names", "classes_file"),
        ("class_names", "rename"),
    )
    if options.image_cache and options.augment:
        raise ValueError(
            f"--image-cache {options.image_cache} needs images that are seen again, and every epoch has new crops. "
            "Add --no-augment, or leave it out."
        )
    if options.push_to_hub:
        check_repo(options.push_to_hub)
    check_data(options.data)
