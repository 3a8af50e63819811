"""The job of `anprompt compare`."""

from __future__ import annotations

from pathlib import Path

import torch

from anprompt_peft.compare import plan_comparison, run_comparison, write_comparison
from anprompt_peft.compare.files import CLASSES, METHODS, PAGE, VERDICT
from anprompt_peft.compare.run import MEASURED_SPLITS, Plan
from anprompt_peft.compare.save import check_name, save_method
from anprompt_peft.evaluation.grid import is_done
from anprompt_peft.evaluation.record import PHOTO

from ..compare import CompareOptions
from ..errors import Interrupted
from .advice import about_duplicates, about_names, duplicates_in, new_looks
from .benchmark import reasons
from .labelled import check_parts, choose_classes, choose_split, left_out, load_splits, on_stderr, public_name
from .models import choose_device, disable_progress_bars, load_clip

WRITTEN = (PAGE, METHODS, CLASSES, VERDICT)


def compare_photos(options: CompareOptions) -> tuple[list[str], list[str], bool]:
    """Measure the methods that are not measured yet, and write the report.

    Returns:
        `tuple[list[str], list[str], bool]`: the verdict, notes about what is missing, and whether a method failed.
    """
    disable_progress_bars()
    plan, notes = _plan(options)
    if options.save:
        check_name(plan, options.save)
    output = plan.place.output
    try:
        comparison, failed = run_comparison(plan, on_stderr)
        lines = write_comparison(plan, comparison)
        saved = save_method(plan, comparison, options.save, on_stderr) if options.save else None
    except KeyboardInterrupt:
        cells = [cell for each in plan.cells.values() for cell in each]
        done = sum(is_done(output, cell) for cell in cells)
        raise Interrupted(
            f"interrupted: {done} of {len(cells)} measurements are done. The same command continues."
        ) from None
    lines.append(f"Written to {output}/: {', '.join(WRITTEN)}.")
    lines += [f"Saved to {saved}/: `anprompt predict {saved} IMAGE` uses it."] if saved else []
    return lines, [*notes, *reasons(failed)], bool(failed)


def _plan(options: CompareOptions) -> tuple[Plan, list[str]]:
    """Read and check the photos; return what to measure, and a note about what was left out."""
    splits = choose_classes(load_splits(options, options.class_names), options)
    parts = {"train": choose_split(splits, options.train_split, "--train-split")}
    measured = next((name for name in MEASURED_SPLITS if name in splits and name != options.train_split), None)
    if measured:
        parts[measured] = splits[measured]
    looks = new_looks(parts)
    parts, corrupt = check_parts(parts, options.on_corrupt, looks)
    load_clip(options.model)  # says what is wrong with it, once
    name = public_name(options.data.rstrip("/"))
    plan = plan_comparison(
        parts,
        options.model,
        options.output or Path(f"compare-{name.replace('/', '-')}"),
        name=name,
        shots=options.shots,
        draws=options.draws,
        methods=options.method,
        templates=options.template or [PHOTO],
        device=str(choose_device(options.device)),
        threads=options.threads or torch.get_num_threads(),
    )
    copies = duplicates_in([(split, part, looks.get(split)) for split, part in parts.items()], options.data)
    for line in [*about_names(plan.class_names), *about_duplicates(copies)]:
        on_stderr(line)
    return plan, left_out(corrupt)
