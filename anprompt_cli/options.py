"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

DATA, CLASSES, RUN = "Data", "Classes", "Running"


class Device(StrEnum):
    """Where to compute: on the GPU if there is one, or on the CPU in any case."""

    AUTO = "auto"
    CPU = "cpu"


class Precision(StrEnum):
    """Arithmetic of training: full precision, or autocast to half."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class OnCorrupt(StrEnum):
    """What to do about images that cannot be read."""

    RAISE = "raise"
    SKIP = "skip"


AdapterOption = Annotated[
    str, Argument(metavar="ADAPTER", help="Folder of an adapter, or its id on the Hub.", show_default=False)
]
RevisionOption = Annotated[
    str | None, Option("--revision", help="Branch, tag or commit of an adapter on the Hub.", show_default=False)
]
DataOption = Annotated[
    str,
    Argument(
        metavar="DATA",
        help="Labelled images: a folder with one sub-folder per class (or with train/ and test/ that have them), "
        "parquet files, or a data set on the Hub.",
        show_default=False,
    ),
]
DataConfigOption = Annotated[
    str | None, Option(help="Configuration of a data set on the Hub.", rich_help_panel=DATA, show_default=False)
]
DataRevisionOption = Annotated[
    str | None,
    Option(help="Branch, tag or commit of a data set on the Hub.", rich_help_panel=DATA, show_default=False),
]
ImageColumnOption = Annotated[
    str | None,
    Option(help="Column of the images, if several could be.", rich_help_panel=DATA, show_default=False),
]
LabelColumnOption = Annotated[
    str | None,
    Option(help="Column of the labels, if several could be.", rich_help_panel=DATA, show_default=False),
]
OnCorruptOption = Annotated[
    OnCorrupt,
    Option(help="Stop at images that cannot be read, or leave them out and count them.", rich_help_panel=DATA),
]
ClassesFileOption = Annotated[
    Path | None,
    Option(
        exists=True,
        dir_okay=False,
        help="Better names for the data's classes: a text file with one name per line in the order of the labels, or "
        'a JSON file with {"name in the data": "better name"}.',
        rich_help_panel=CLASSES,
        show_default=False,
    ),
]
ClassesOption = Annotated[
    list[str] | None,
    Option(
        metavar="NAME",
        help="A class to tell apart; repeat it. Default: those that the adapter was trained on.",
        rich_help_panel=CLASSES,
        show_default=False,
    ),
]
DeviceOption = Annotated[
    Device, Option(help="Use the GPU if there is one, or the CPU in any case.", rich_help_panel=RUN)
]
WorkersOption = Annotated[int, Option(metavar="N", min=0, help="Processes that read images.", rich_help_panel=RUN)]
JsonOption = Annotated[bool, Option("--json", help="Print JSON.")]
