"""The job of `anprompt evaluate`."""

from __future__ import annotations

import sys
from typing import Any

from anprompt_peft.data import ClassHalves, class_names_of
from anprompt_peft.provenance import provenance
from anprompt_peft.report import ReportData, read_geometry, write_report

from ..options import EvaluateOptions
from .labelled import check_parts, choose_split, left_out, load_splits, public_name, select_parts, tell_missing
from .measuring import describe, measure
from .models import load_adapter
from .robustness import robustness_of, robustness_table


def evaluate_adapter(options: EvaluateOptions) -> tuple[list[str], dict[str, Any]]:
    """Measure an adapter and zero-shot CLIP, and write a report if one is asked for.

    Returns:
        `tuple`: the figures as tables, and the record of them as JSON values.

    Raises:
        ValueError: if adapter, split or classes are not there.
        Failure: if images or the base model cannot be read.
    """
    model, processor = load_adapter(
        options.adapter, options.revision, options.device, options.precision, options.model
    )
    dataset = choose_split(load_splits(options), options.split, "--split")
    if options.halves:
        half = ClassHalves.load(options.halves)
        groups = {"base": half.base, "new": half.new}
    else:
        groups = {options.split: tuple(options.classes or model.class_names)}
    chosen = select_parts(dataset, groups)
    for part in chosen.values():
        tell_missing(options.split, part)
    parts, corrupt = check_parts(chosen, options.on_corrupt)
    if others := set(class_names_of(dataset)).difference(*groups.values()):
        print(f"Left out: the images of {len(others)} other classes. --classes can ask for them.", file=sys.stderr)
    measured = measure(model, parts, processor, options.batch_size, options.workers)
    tables, robustness = [measured.summary(), measured.class_table()], []
    if options.robustness:
        robustness = robustness_of(model, parts, processor, options.robustness_images, options.synonyms)
        tables += map(robustness_table, robustness)
    made, notes = provenance(), [*measured.notes(), *left_out(corrupt)]
    if options.report:
        report = ReportData(
            f"{public_name(options.adapter)} on {public_name(options.data)}",
            predictions=measured.adapted,
            zero_shot=measured.zero_shot,
            geometry=read_geometry(model),
            robustness=robustness,
            settings=describe(model),
            provenance=made,
            notes=notes,
        )
        write_report(report, options.report)
    record = {
        "adapter": options.adapter,
        "data": options.data,
        "split": options.split,
        **measured.to_dict(),
        **({"robustness": [each.to_dict() for each in robustness]} if robustness else {}),
        "left_out": corrupt,
        "notes": notes,
        **made,
    }
    return tables, record
