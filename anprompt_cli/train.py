"""`anprompt train`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from .config_file import RECORD, RESULTS, effective, use_file
from .errors import Interrupted
from .options import (
    CLASSES,
    DATA,
    RUN,
    ClassesFileOption,
    DataConfigOption,
    DataOption,
    DataRevisionOption,
    Device,
    DeviceOption,
    ImageColumnOption,
    LabelColumnOption,
    OnCorrupt,
    OnCorruptOption,
    Precision,
)

TRAINING, OUTPUT = "Training", "Output"
NOT_RECORDED = ("config", "output", "resume", "push_to_hub", "device")
LOCAL = ("data", "model", "halves", "classes_file")


def train(
    context: typer.Context,
    data: DataOption,
    output: Annotated[
        Path,
        Option(
            is_eager=True,
            help="Folder to write the adapter to, with results, report and model card. It must be empty, or absent.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ],
    resume: Annotated[
        bool,
        Option(
            "--resume",
            is_eager=True,
            help="Go on with the run that was begun in --output. Other options need not be repeated.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    config: Annotated[
        Path | None,
        Option(
            is_eager=True,
            exists=True,
            dir_okay=False,
            callback=use_file,
            help="YAML or JSON file with options (`shots: 16`) and with any field of the adapter and of Trainer.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[str, Option(help="CLIP to adapt: its id on the Hub, or a folder.")] = (
        "openai/clip-vit-base-patch16"
    ),
    shots: Annotated[
        int | None,
        Option(
            metavar="N",
            min=1,
            help="Images per class, drawn with --seed. Default: all.",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ] = None,
    train_split: Annotated[str, Option(help="Split to train on.", rich_help_panel=DATA)] = "train",
    eval_split: Annotated[
        str | None,
        Option(
            help="Split to measure the result on. Default: test or else validation.",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ] = None,
    test_share: Annotated[
        float | None,
        Option(
            min=0.01,
            max=0.99,
            help="Share of the images to hold out as the split test, if the data have none.",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ] = None,
    data_config: DataConfigOption = None,
    data_revision: DataRevisionOption = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    on_corrupt: OnCorruptOption = OnCorrupt.RAISE,
    class_names: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help="Better name of a class of the data; repeat it for every class, in the order of the labels.",
            rich_help_panel=CLASSES,
            show_default=False,
        ),
    ] = None,
    classes_file: ClassesFileOption = None,
    template: Annotated[
        list[str] | None,
        Option(
            help="Prompt around a class name; repeat it for several. Default: a photo of a {}.",
            rich_help_panel=CLASSES,
            show_default=False,
        ),
    ] = None,
    base_only: Annotated[
        bool,
        Option(
            "--base-only",
            help="Train on the first half of the classes; measure on it (base), and on the others (new).",
            rich_help_panel=CLASSES,
        ),
    ] = False,
    halves: Annotated[
        Path | None,
        Option(
            exists=True,
            dir_okay=False,
            help='The same with the halves of a JSON file: {"base": [names], "new": [names]}.',
            rich_help_panel=CLASSES,
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        float | None,
        Option(
            metavar="N",
            min=0,
            help="Passes over the images, the first one a warm-up. Default: 10.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        Option(metavar="N", min=1, help="Images per step. Default: 4.", rich_help_panel=TRAINING, show_default=False),
    ] = None,
    learning_rate: Annotated[
        float | None,
        Option(
            metavar="N",
            min=0,
            help="Peak rate of AdamW. Default: 0.001.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    augment: Annotated[
        bool, Option(help="Train on random crops, half of them mirrored.", rich_help_panel=TRAINING)
    ] = True,
    seed: Annotated[
        int,
        Option(
            metavar="N",
            min=0,
            max=2**32 - 1,
            help="Seed of shots, weights, batches and crops.",
            rich_help_panel=TRAINING,
        ),
    ] = 1,
    precision: Annotated[
        Precision, Option(help="fp16 and bf16 train with autocast.", rich_help_panel=TRAINING)
    ] = Precision.FP32,
    workers: Annotated[
        int | None,
        Option(
            metavar="N", min=0, help="Processes that read images. Default: 0.", rich_help_panel=RUN, show_default=False
        ),
    ] = None,
    device: DeviceOption = Device.AUTO,
    report_to: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help="Where Trainer logs to, such as tensorboard; repeat it for several.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        Option(metavar="REPO", help="Push the adapter there in the end.", rich_help_panel=OUTPUT, show_default=False),
    ] = None,
) -> None:
    """Train an adapter of CLIP on your images, and measure it.

    * `anprompt train photos --output adapter --shots 16`
    * `anprompt train photos --output adapter --template "a photo of a {}, a type of flower." --epochs 50`
    * `anprompt train photos --output adapter --base-only` also measures classes that were not trained on
    * `anprompt train --config run.yaml --output adapter`

    A configuration file gives defaults: options under their names, and in its sections `adapter` and `training` the
    fields of `ANPromptConfig` and of transformers' `TrainingArguments`. Options on the command line win. The folder's
    `run.yaml` is such a file, and repeats the run.

    Ctrl-C writes a checkpoint; `anprompt train --output adapter --resume` goes on from there.
    """
    _check_output(output, resume)
    options = {option.name: context.params[option.name] for option in context.command.params}
    settings = effective(_plain(options), context.obj.sections)
    from .training_job import train_adapter

    try:
        measured = train_adapter(settings, output, device)
    except (Interrupted, KeyboardInterrupt) as error:
        if not (output / RECORD).is_file():
            raise
        note = error.message if isinstance(error, Interrupted) else "Interrupted."
        raise Interrupted(f"{note} Go on with: anprompt train --output {shlex.quote(str(output))} --resume") from None
    print(measured.table() if measured else "There is no split test or validation, so nothing was measured.")
    print(f"Written to {output}/: adapter, {RESULTS} and report.html; {RECORD} repeats the run.")
    if push_to_hub:
        from anprompt_peft.publish import push_folder

        print(push_folder(output, push_to_hub))


def _check_output(output: Path, resume: bool) -> None:
    """Raise unless the folder is fit to begin a run in, or to go on with one."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file. Choose a folder.")
    if not resume and output.is_dir() and any(output.iterdir()):
        raise ValueError(f"--output {output} is not empty. Choose another folder, or go on with its run by --resume.")
    if resume and (output / RESULTS).is_file():
        raise ValueError(f"--resume: the run in {output} is complete.")


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a run is repeated from, as JSON values; local paths work from anywhere."""
    for pair in (("halves", "base_only"), ("class_names", "classes_file")):
        if all(options[name] for name in pair):
            raise ValueError("{} and {} exclude each other.".format(*(f"--{name.replace('_', '-')}" for name in pair)))
    settings: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in options.items()
        if name not in NOT_RECORDED and value not in (None, ())
    }
    for name in LOCAL:
        if name in settings and (path := Path(settings[name]).expanduser()).exists():
            settings[name] = str(path.resolve())
    return {name: str(value) if isinstance(value, Enum) else value for name, value in settings.items()}
