"""The job of `anprompt evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from anprompt_peft.data import ClassHalves, class_names_of
from anprompt_peft.provenance import provenance
from anprompt_peft.report import ReportData, read_geometry, write_report

from ..config_file import RECORD
from ..evaluate import EvaluateOptions
from .answers import answer_rows, confusion_tables, write_confusions
from .labelled import (
    check_parts,
    choose_split,
    chosen_classes,
    left_out,
    load_splits,
    print_missing,
    public_name,
    select_parts,
)
from .measuring import ADAPTED, describe, measure
from .models import load_adapter
from .robustness import robustness_of, robustness_table
from .seen import HOLD_OUT, IMAGES, MEASURED_SPLITS, Run, Seen, read_run, read_seen

READING = ("data_config", "data_revision", "image_column", "label_column", "classes_file", "rename")


def evaluate_adapter(options: EvaluateOptions) -> tuple[list[str], dict[str, Any], list[tuple[Any, ...]]]:
    """Measure an adapter, and write a report and confusions if they are asked for.

    It returns the figures as tables and as JSON values, and the answers as rows.
    """
    model, processor = load_adapter(
        options.adapter, options.revision, options.device, options.precision, options.model
    )
    folder = Path(options.adapter).expanduser()
    run, seen = read_run(folder), read_seen(folder)
    splits, origin = _load(options, run, seen)
    dataset = choose_split(splits, options.split, "--split")
    if options.halves:
        half = ClassHalves.load(options.halves)
        groups = {"base": half.base, "new": half.new}
    else:
        groups = {options.split: tuple(chosen_classes(class_names_of(dataset), options, model.class_names))}
    chosen = select_parts(dataset, groups)
    for part in chosen.values():
        print_missing(options.split, part)
    parts, corrupt = check_parts(chosen, options.on_corrupt)
    if not (options.classes or options.without_classes) and (
        others := set(class_names_of(dataset)).difference(*groups.values())
    ):
        print(f"Left out: the images of {len(others)} other classes. --classes can ask for them.", file=sys.stderr)
    measured = measure(model, parts, processor, options.batch_size, options.workers)
    tables = [measured.summary(), measured.class_table(), *confusion_tables(measured.adapted)]
    robustness: list[Any] = []
    if options.robustness:
        robustness = robustness_of(model, parts, processor, options.robustness_images, options.synonyms)
        tables += map(robustness_table, robustness)
    notes = [*origin, *measured.notes(), *left_out(corrupt), *_exposure(options.split, splits, parts, run, seen)]
    made = provenance()
    if options.confusion:
        write_confusions(measured.adapted, options.confusion)
    if options.report:
        report = ReportData(
            f"{public_name(options.adapter)} on {public_name(options.data)}",
            predictions=measured.adapted,
            zero_shot=measured.zero_shot,
            method=measured.method,
            geometry=read_geometry(model) if measured.method == ADAPTED else None,
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
        "trained_images": seen.count_trained(parts) if seen else None,
        "notes": notes,
        **made,
    }
    return tables, record, answer_rows(measured.adapted, list(parts.values()))


def _load(options: EvaluateOptions, run: Run | None, seen: Seen | None) -> tuple[dict[str, Dataset], list[str]]:
    """Return the splits of the data, with what the adapter's run held out, and notes that say so."""
    if run is None:
        return load_splits(options), []
    notes, class_names = [], None
    if run.is_of(options.data):
        unset = [name for name in READING if getattr(options, name) is None]
        given = {name: getattr(run, name) for name in unset if not (name == "rename" and options.classes_file)}
        options = replace(options, **given)
        class_names = given["class_names"] = None if options.classes_file else run.class_names
        if set_there := [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]:
            notes.append(f"The data are read as in training, with {', '.join(set_there)} of {RECORD}.")
    splits = load_splits(options, class_names)
    share = {"test": run.test_share, "validation": run.validation_share}.get(options.split)
    if options.split in splits or not share:
        return splits, notes
    pool, wanted = splits.get(run.train_split), len(seen.held_out.get(options.split, ())) if seen else 0
    found = seen.select_held_out(pool, options.split) if seen and pool is not None else ()
    if not found:
        why = "none of them is in these data" if seen else f"without {IMAGES} beside the adapter it is not known which"
        raise ValueError(
            f"--split {options.split}: the data have no such split, only {', '.join(splits)}. Training held images of "
            f"{run.data} out as {options.split}, and {why}. Measure other images with --split {next(iter(splits))}."
        )
    gone = f"; {wanted - len(found)} others are not in these data any more" if len(found) < wanted else ""
    notes.append(
        f"Measured on {len(found)} images that training held out as the split {options.split} "
        f"(--{options.split}-share {share} in {RECORD}){gone}."
    )
    return {**splits, options.split: found}, notes


def _exposure(
    split: str, splits: Mapping[str, Dataset], parts: Mapping[str, Dataset], run: Run | None, seen: Seen | None
) -> list[str]:
    """Return whether images to measure on were trained on, or that it is not known."""
    if seen is None:
        missing = RECORD if run is None else IMAGES
        return [f"Whether the adapter was trained on these images is not known: there is no {missing} beside it."]
    if run is None:
        return seen.notes(parts, "`anprompt compare`, which saved it, measured the method on photos it had not seen.")
    others = [name for name in MEASURED_SPLITS if name != split and name in {*splits, *seen.held_out}]
    cure = f"--split {others[0]} measures others." if others else HOLD_OUT
    return seen.notes(parts, cure)
