"""`anprompt evaluate`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from .adapters import check_data
from .options import (
    CHOOSE,
    CLASSES,
    DATA,
    ROBUSTNESS,
    RUN,
    DataOptions,
    ModelOptions,
    RunOptions,
    check_exclusive,
    command,
    file,
    flag,
    number,
    option,
)
from .text import as_csv, as_json, printable


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(RunOptions, DataOptions, ModelOptions):
    """Options of `anprompt evaluate`."""

    split: str = option("Split to measure on.", DATA, default="test")
    classes: list[str] | None = option(CHOOSE, CLASSES, metavar="NAME")
    halves: Path | None = file(
        "Measure base and new classes separately, and their harmonic mean: the JSON file that `train` wrote.", CLASSES
    )
    batch_size: int = number("Images per step.", default=100)
    workers: int = number("Worker processes that load images.", RUN, default=0, min=0)
    robustness: bool = flag("--robustness", "Measure also under perturbed class texts and images.", ROBUSTNESS)
    robustness_images: int = number("At most so many images for it.", ROBUSTNESS, default=500)
    synonyms: Path | None = file(
        'With --robustness, a JSON file with other names of classes: {"cat": ["kitten", "tabby"]}.', ROBUSTNESS
    )
    report: Path | None = option("Write a report as one HTML file.", dir_okay=False)
    confusion: Path | None = option("Write the confusion matrix as CSV.", dir_okay=False)
    as_csv: bool = flag("--csv", "Print CSV: image, truth, prediction and confidence of the adapter.")
    as_json: bool = flag("--json", "Print JSON.")


@command
def evaluate(options: EvaluateOptions) -> None:
    """Measure an adapter on labelled images, with zero-shot CLIP beside it.

    * `anprompt evaluate adapter photos`
    * `anprompt evaluate adapter photos --split validation --classes cat --classes dog`
    * `anprompt evaluate adapter photos --halves adapter/base-new.json --report report.html`
    * `anprompt evaluate adapter photos --robustness --report report.html`
    * `anprompt evaluate adapter photos --csv --confusion confusion.csv > answers.csv`

    Images of other classes are left out. Intervals are 95 % and cover the choice of images.
    """
    check_exclusive(options, ("classes", "halves"), ("without_classes", "halves"))
    if options.synonyms and not options.robustness:
        raise ValueError("--synonyms needs --robustness.")
    check_exclusive(options, ("as_csv", "as_json"))
    check_data(options.data)
    from .jobs.evaluate import evaluate_adapter

    tables, record, answers = evaluate_adapter(options)
    print(*map(printable, record["notes"]), sep="\n", file=sys.stderr, end="\n" if record["notes"] else "")
    if options.as_json:
        print(as_json(record))
    elif options.as_csv:
        print(as_csv(answers), end="")
    else:
        print(*tables, sep="\n\n")
