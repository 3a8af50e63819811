"""What options are made of, and those that several commands share.

The options of a command are the fields of a frozen dataclass in the command's own file. A new command is such a file,
and one in `jobs`; a new option is a field and its use. One that only sets a field of the adapter or of Trainer says
with `fills` which, and needs no use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Any, get_type_hints

from typer import Argument, Option

from .choices import Device, OnCorrupt, Precision
from .streams import escaped_output
from .wording import worded

DATA, CLASSES, TRAINING, RUN, OUTPUT = "Data", "Classes", "Training", "Running", "Output"
ROBUSTNESS = "Robustness"
CLIP = "openai/clip-vit-base-patch16"
CHOOSE = "Class to choose from; repeat it. Default: those the adapter was trained on."


def option(
    help: str,
    panel: str | None = None,
    *names: str,
    default: Any = None,
    fills: str | None = None,
    recorded: bool = True,
    **settings: Any,
) -> Any:
    """Return a field that is an option; help shows no default of `None`, which stands for what the text says.

    `fills` is the field of a configuration file's section that it stands for, such as `training.learning_rate`, and
    `recorded` whether a run is repeated with it.
    """
    shown = default is not None and default is not MISSING
    value = ... if default is MISSING else default
    made = Option(value, *names, help=help, rich_help_panel=panel, show_default=shown, **settings)
    return field(default=default, metadata={"typer": made, "fills": fills, "recorded": recorded})


def number(help: str, panel: str | None = None, *, min: int = 1, **settings: Any) -> Any:
    """Return an option that takes a number."""
    return option(help, panel, metavar="N", min=min, **settings)


def file(help: str, panel: str | None = None, **settings: Any) -> Any:
    """Return an option that takes a file that exists."""
    return option(help, panel, exists=True, dir_okay=False, **settings)


def flag(name: str, help: str, panel: str | None = None, **settings: Any) -> Any:
    """Return an option that is given or not."""
    return option(help, panel, name, default=False, **settings)


def argument(metavar: str, help: str, **settings: Any) -> Any:
    """Return a field that is a required argument."""
    return field(metadata={"typer": Argument(..., metavar=metavar, help=help, show_default=False, **settings)})


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a typer command of a function whose parameter `options` is a dataclass of options.

    All that the command prints is escaped, and an error about a value names the option instead of Python's argument.
    """
    record = get_type_hints(function)["options"]
    hints = get_type_hints(record)
    others = [each for each in signature(function, eval_str=True).parameters.values() if each.name != "options"]

    @wraps(function)
    def call(**values: Any) -> None:
        given = {each.name: values.pop(each.name) for each in others}
        options = record(**values)
        with escaped_output(), worded(options):
            function(**given, options=options)

    parameters = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in others]
    for each in fields(record):
        made = {"default": each.metadata["typer"], "annotation": hints[each.name]}
        parameters.append(Parameter(each.name, Parameter.KEYWORD_ONLY, **made))
    call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    return call


def check_exclusive(options: Any, *pairs: tuple[str, str]) -> None:
    """Raise `ValueError` if both options of a pair, fields of `options`, are given."""
    for pair in pairs:
        if all(getattr(options, name) for name in pair):
            names = (f"--{name.removeprefix('as_').replace('_', '-')}" for name in pair)
            raise ValueError(f"{' and '.join(names)} exclude each other.")


def renames(given: Sequence[str] | None) -> dict[str, str]:
    """Return what `--rename` asks for, new names by old ones."""
    pairs: dict[str, str] = {}
    for text in given or ():
        old, _, new = (part.strip() for part in text.partition("="))
        if not (old and new):
            raise ValueError(f"--rename {text} must be OLD=NEW, two names of a class.")
        if pairs.setdefault(old, new) != new:
            raise ValueError(f"--rename gives {old!r} two names, {pairs[old]!r} and {new!r}. Keep one.")
    return pairs


def check_rename(given: list[str] | None) -> list[str] | None:
    """Refuse what is no pair of names as soon as the option is read: its callback."""
    renames(given)
    return given


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """Which adapter to use."""

    adapter: str = argument("ADAPTER", "Folder of an adapter, or its id on the Hub.")
    revision: str | None = option("Branch, tag or commit of an adapter on the Hub.")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(AdapterOptions):
    """How to compute with it."""

    model: str | None = option("CLIP that the adapter was trained with: id or folder. Default: the one it names.")
    precision: Precision = option(
        "Of CLIP's weights. auto: bf16 where the device multiplies it natively, else fp32.", RUN, default="auto"
    )


@dataclass(frozen=True, kw_only=True)
class AskOptions(ModelOptions):
    """What to ask it."""

    top_k: int = number("Classes to show per image, the most likely first.", default=3)
    classes: list[str] | None = option(CHOOSE, CLASSES, metavar="NAME")
    classes_file: Path | None = file("The same from a file: text with one name per line, or a JSON list.", CLASSES)
    template: list[str] | None = option(
        "Prompt with {} for the class name; repeat it for several. Default: the adapter's own.", CLASSES
    )


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which labelled images to use."""

    data: str = argument(
        "DATA",
        "Labelled images: a folder with one sub-folder per class (or with train/ and test/ that have them), "
        "a table with the columns file and label (.csv, .tsv), parquet files, or a data set on the Hub.",
    )
    data_config: str | None = option("Configuration of a data set on the Hub.", DATA)
    data_revision: str | None = option("Branch, tag or commit of a data set on the Hub.", DATA)
    image_column: str | None = option("Column with the images, or with their files, if several could be it.", DATA)
    label_column: str | None = option("Column with the labels, if several could be it.", DATA)
    on_corrupt: OnCorrupt = option("Stop at unreadable images, or skip and count them.", DATA, default="raise")
    classes_file: Path | None = file(
        "Class names to use instead of those in the data: a text file with one name per line in the order of the "
        'labels, or a JSON file with {"name in the data": "better name"}.',
        CLASSES,
    )
    rename: list[str] | None = option(
        "Another name for a class of the data; repeat it.", CLASSES, metavar="OLD=NEW", callback=check_rename
    )
    classes: list[str] | None = option(
        "Class to use, by its new name; repeat it. Default: all.", CLASSES, metavar="NAME"
    )
    without_classes: list[str] | None = option(
        "Class to leave out, by its new name; repeat it.", CLASSES, metavar="NAME"
    )


@dataclass(frozen=True, kw_only=True)
class PoolOptions(DataOptions):
    """Which of them to train on, and in which words their classes are asked for."""

    train_split: str = option("Split to train on.", DATA, default="train")
    class_names: list[str] | None = option(
        "Class name to use instead of the one in the data; repeat it for every class, in the order of the labels.",
        CLASSES,
        metavar="NAME",
    )
    template: list[str] | None = option(
        "Prompt with {} for the class name; repeat it for several. Default: a photo of a {}.",
        CLASSES,
        fills="adapter.template",
    )


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where to run."""

    device: Device = option("auto: the GPU if there is one. cpu: never the GPU.", RUN, default="auto", recorded=False)
