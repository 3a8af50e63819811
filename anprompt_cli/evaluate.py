"""`anprompt evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from .options import (
    CLASSES,
    DATA,
    AdapterOption,
    ClassesFileOption,
    ClassesOption,
    DataConfigOption,
    DataOption,
    DataRevisionOption,
    Device,
    DeviceOption,
    ImageColumnOption,
    JsonOption,
    LabelColumnOption,
    OnCorrupt,
    OnCorruptOption,
    RevisionOption,
    WorkersOption,
)


def evaluate(
    context: typer.Context,
    adapter: AdapterOption,
    data: DataOption,
    split: Annotated[str, Option(help="Split to measure on.", rich_help_panel=DATA)] = "test",
    data_config: DataConfigOption = None,
    data_revision: DataRevisionOption = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    on_corrupt: OnCorruptOption = OnCorrupt.RAISE,
    classes: ClassesOption = None,
    halves: Annotated[
        Path | None,
        Option(
            exists=True,
            dir_okay=False,
            help="Measure base and new classes apart, and their harmonic mean: the JSON file that `train` wrote.",
            rich_help_panel=CLASSES,
            show_default=False,
        ),
    ] = None,
    classes_file: ClassesFileOption = None,
    revision: RevisionOption = None,
    batch_size: Annotated[int, Option(metavar="N", min=1, help="Images per step.")] = 100,
    workers: WorkersOption = 0,
    device: DeviceOption = Device.AUTO,
    report: Annotated[
        Path | None, Option(dir_okay=False, help="Write a report as one HTML file.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure an adapter on labelled images, with zero-shot CLIP beside it.

    * `anprompt evaluate adapter photos`
    * `anprompt evaluate adapter photos --split validation --classes cat --classes dog`
    * `anprompt evaluate adapter photos --halves adapter/base-new.json --report report.html`

    Images of other classes than those asked for are left out. Intervals are 95 % and cover the choice of images.
    """
    if classes and halves:
        raise ValueError("--classes and --halves exclude each other.")
    from .evaluation_job import evaluate_adapter

    measured, record = evaluate_adapter(context.params)
    if as_json:
        print(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        print(measured.table(), measured.class_table(), sep="\n\n")
