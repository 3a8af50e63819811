"""The job of `anprompt compare`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from anprompt_peft.compare import plan_comparison, run_comparison, write_comparison
from anprompt_peft.compare.files import CLASSES, METHODS, PAGE, VERDICT
from anprompt_peft.compare.save import chosen_method, save_method
from anprompt_peft.evaluation.grid import is_done
from anprompt_peft.evaluation.record import PHOTO

from ..compare import CompareOptions
from ..errors import Interrupted
from .benchmark import reasons
from .labelled import check_parts, left_out, load_splits, names_hint, public_name
from .models import choose_device, disable_progress_bars, load_clip

WRITTEN = (PAGE, METHODS, CLASSES, VERDICT)


def show(line: str) -> None:
    """Print a line on standard error."""
    print(line, file=sys.stderr)


def compare_photos(options: CompareOptions) -> tuple[list[str], list[str], bool]:
    """Measure the methods that are not measured yet, and write the report.

    Returns:
        `tuple[list[str], list[str], bool]`: the verdict, notes about what is missing, and whether a method failed.
    """
    disable_progress_bars()
    name = public_name(options.data.rstrip("/"))
    output = options.output or Path(f"compare-{name.replace('/', '-')}")
    splits, corrupt = check_parts(load_splits(options), options.on_corrupt)
    plan = plan_comparison(
        splits,
        options.model,
        output,
        name=name,
        shots=options.shots,
        draws=options.draws,
        methods=options.method,
        templates=options.template or [PHOTO],
        device=str(choose_device(options.device)),
        threads=options.threads or torch.get_num_threads(),
    )
    if hint := names_hint(plan.class_names):
        print(hint, file=sys.stderr)
    if options.save:
        chosen_method(plan, options.save)
    load_clip(options.model)  # says what is wrong with it, once
    try:
        comparison, failed = run_comparison(plan, show)
    except KeyboardInterrupt:
        cells = [cell for each in plan.cells.values() for cell in each]
        done = sum(is_done(output, cell) for cell in cells)
        raise Interrupted(
            f"interrupted: {done} of {len(cells)} measurements are done. The same command continues."
        ) from None
    lines = write_comparison(plan, comparison)
    saved = [f"Saved to {save_method(plan, comparison, options.save, show)}/."] if options.save else []
    written = f"Written to {output}/: {', '.join(WRITTEN)}."
    return [*lines, written, *saved], [*left_out(corrupt), *reasons(failed)], bool(failed)
