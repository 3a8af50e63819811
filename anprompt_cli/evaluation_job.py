"""The job of `anprompt evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anprompt_peft.data import ClassHalves, class_names_of
from anprompt_peft.provenance import provenance
from anprompt_peft.report import ReportData, describe_adapter, read_geometry, write_report

from .labelled import check_parts, choose_split, load_splits, select_parts
from .measuring import Measured, measure
from .models import load_adapter


def evaluate_adapter(options: Mapping[str, Any]) -> tuple[Measured, dict[str, Any]]:
    """Measure an adapter and zero-shot CLIP, and write a report if one is asked for.

    Args:
        options (`Mapping`): the command's, by name.

    Returns:
        `tuple`: the figures, and the record of them as JSON values.

    Raises:
        ValueError: if adapter, split or classes are not there.
        Failure: if images or the base model cannot be read.
    """
    model, processor = load_adapter(options["adapter"], options["revision"], options["device"])
    dataset = choose_split(load_splits(options), options["split"], "--split")
    if options["halves"]:
        half = ClassHalves.load(options["halves"])
        groups = {"base": half.base, "new": half.new}
    else:
        groups = {options["split"]: tuple(options["classes"] or model.class_names)}
    parts, corrupt = check_parts(select_parts(dataset, groups), options["on_corrupt"])
    if others := set(class_names_of(dataset)).difference(*groups.values()):
        print(f"Left out: the images of {len(others)} other classes. --classes can ask for them.", file=sys.stderr)
    measured = measure(model, parts, processor, options["batch_size"], options["workers"])
    made = provenance()
    if options["report"]:
        left_out = [f"{len(corrupt)} images could not be read and were left out."] if corrupt else []
        title = f"{Path(options['adapter']).name} on {Path(options['data']).name}"
        report = ReportData(
            title,
            predictions=measured.adapted,
            zero_shot=measured.zero_shot,
            geometry=read_geometry(model),
            settings=describe_adapter(model),
            provenance=made,
            notes=left_out,
        )
        write_report(report, options["report"])
    record = {
        "adapter": str(options["adapter"]),
        "data": options["data"],
        "split": options["split"],
        **measured.to_dict(),
        "left_out": corrupt,
        **made,
    }
    return measured, record
