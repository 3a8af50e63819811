"""`anprompt evaluate`."""

from __future__ import annotations

import sys

from .adapters import check_data
from .options import EvaluateOptions, command
from .text import as_json, printable


@command
def evaluate(options: EvaluateOptions) -> None:
    """Measure an adapter on labelled images, with zero-shot CLIP beside it.

    * `anprompt evaluate adapter photos`
    * `anprompt evaluate adapter photos --split validation --classes cat --classes dog`
    * `anprompt evaluate adapter photos --halves adapter/base-new.json --report report.html`
    * `anprompt evaluate adapter photos --robustness --report report.html`

    Images of other classes are left out. Intervals are 95 % and cover the choice of images.
    """
    if options.classes and options.halves:
        raise ValueError("--classes and --halves exclude each other.")
    if options.synonyms and not options.robustness:
        raise ValueError("--synonyms needs --robustness.")
    check_data(options.data)
    from .jobs.evaluate import evaluate_adapter

    tables, record = evaluate_adapter(options)
    print(*map(printable, record["notes"]), sep="\n", file=sys.stderr, end="\n" if record["notes"] else "")
    if options.as_json:
        print(as_json(record))
    else:
        print(*tables, sep="\n\n")
