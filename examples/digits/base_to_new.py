"""Base-to-new generalisation on handwritten digits: what ANPrompt gains over zero-shot CLIP, and what it loses.

    python examples/digits/base_to_new.py [--output outputs/digits] [--seeds 5] [--shots 16] [--jobs 2]

A tiny CLIP that has seen only icons and rendered characters is adapted to a few handwritten digits of five classes
(base). It is measured on other handwritten digits of these and, as unseen classes, of the other five (new). Base is
0-4, then 5-9, then the even digits. Writes results.json, results.png, the cells of the grid, the adapter of the first
split and seed, and a few test images.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from transformers import CLIPModel, CLIPProcessor

from anprompt_peft.evaluation import BaseToNew, Estimate, base_to_new, gain
from anprompt_peft.evaluation.backbone import Backbone
from anprompt_peft.evaluation.benchmarks import load_benchmark_data
from anprompt_peft.evaluation.grid import Cell, RunEnvironment, Setup, Table, make_cells, read_predictions, run_grid
from anprompt_peft.evaluation.peers import Method, make_method
from anprompt_peft.evaluation.protocols import make_task
from anprompt_peft.files import atomic_folder, to_json
from anprompt_peft.provenance import provenance
from handwriting import CLASS_NAMES, load_split

EMBEDDED = Path(__file__).resolve().parents[1] / "embedded"
TINY_CLIP = EMBEDDED / "tiny_clip"
RECORD = "results.json"
SPLITS = {
    "base 0-4, new 5-9": "data:digits",
    "base 5-9, new 0-4": "data:digits_high",
    "base even, new odd": "data:digits_even",
}
ZERO_SHOT, ADAPTED, GAIN = "zero-shot CLIP", "ANPrompt", "difference"
METHODS: dict[str, Method] = {
    ZERO_SHOT: make_method("zero-shot"),
    ADAPTED: make_method("anprompt", recipe={"augment": False}),
}
CAVEAT = (
    "The tiny CLIP was pre-trained on rendered glyphs of all ten digits, among others, and on no handwriting: it was "
    "not adapted to the 'new' classes, but has seen their glyphs."
)

Results = dict[str, dict[str, BaseToNew]]
"""Figures by split and method."""


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the grid, print the table, write the output folder and return the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/digits"), help="folder to write or replace")
    parser.add_argument("--seeds", type=int, default=5, help="draws of the shots for each split (default 5)")
    parser.add_argument("--shots", type=int, default=16, help="images per class (default 16)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    options = parser.parse_args(arguments)
    sys.path.append(str(EMBEDDED))
    os.environ["PYTHONPATH"] = str(EMBEDDED)  # where every process finds the data sets
    torch.set_num_threads(1)  # as in the grid: the same results on any machine
    try:
        setup = Setup(str(TINY_CLIP), shots=options.shots, sampling="seeded")
        cells = make_cells(setup, list(SPLITS.values()), METHODS, range(1, options.seeds + 1))
    except ValueError as error:
        parser.error(str(error))
    try:
        with atomic_folder(options.output, replaces=RECORD) as folder:
            record = run(cells, folder, options.jobs)
    except FileExistsError as error:
        sys.exit(f"error: {error}")
    print(f"{CAVEAT}\nWritten to {options.output}/: {RECORD}, results.png, grid/, adapter/, images/")
    return record


def run(cells: Sequence[Cell], folder: Path, jobs: int) -> dict[str, Any]:
    """Run the cells, print the table, write everything to a folder and return the record."""
    grid = folder / "grid"
    if failed := run_grid(cells, RunEnvironment(grid), jobs):
        sys.exit(f"error: {failed[0].cell}: {failed[0].error}")
    hits = {split: read_hits(grid, cells, data) for split, data in SPLITS.items()}
    results = {split: estimate(*each[ZERO_SHOT], *each[ADAPTED]) for split, each in hits.items()}
    seeds = sorted({cell.seed for cell in cells})
    record = {
        "task": "base-to-new generalisation on scikit-learn's handwritten digits",
        "notes": [CAVEAT],
        "splits": {split: to_record(results[split], hits[split][ADAPTED]) for split in SPLITS},
        "shots": cells[0].setup.shots,
        "seeds": seeds,
        **provenance(),
    }
    (folder / RECORD).write_text(to_json(record))
    save_chart(folder / "results.png", results, len(seeds))
    save_adapter(folder / "adapter", next(cell for cell in cells if cell.name == ADAPTED))
    save_images(folder / "images")
    print(table(results))
    return record


def read_hits(grid: Path, cells: Sequence[Cell], data: str) -> dict[str, list[np.ndarray]]:
    """Which images each method classified right, on base and on new classes: bool `[seeds, images]`."""
    hits = {}
    for method in METHODS:
        runs = [read_predictions(grid, cell.key) for cell in cells if (cell.data, cell.name) == (data, method)]
        hits[method] = [np.stack([run[half].hits for run in runs]) for half in runs[0]]
    return hits


def estimate(
    base_before: np.ndarray, new_before: np.ndarray, base: np.ndarray, new: np.ndarray
) -> dict[str, BaseToNew]:
    """Accuracies and paired differences, with intervals over shots and test images; zero-shot CLIP draws no shots."""
    return {
        ZERO_SHOT: base_to_new(base_before[:1], new_before[:1]),
        ADAPTED: base_to_new(base, new),
        GAIN: gain(base, new, base_before[0], new_before[0]),
    }


def to_record(results: dict[str, BaseToNew], hits: Sequence[np.ndarray]) -> dict[str, Any]:
    """The figures of a split as JSON values."""
    return {
        "accuracy_percent": {method: results[method].to_dict() for method in METHODS},
        "difference_percentage_points": results[GAIN].to_dict(),
        "per_seed_percent": {
            half: (100 * each.mean(axis=1)).tolist() for half, each in zip(("base", "new"), hits, strict=True)
        },
    }


def table(results: Results) -> str:
    """The results as Markdown, with a row for each split and method."""
    rows = [
        (split, method, *(signed(each) if method == GAIN else str(each) for each in vars(figures).values()))
        for split, methods in results.items()
        for method, figures in methods.items()
    ]
    head = ("split", "method", "base", "new", "harmonic mean")
    return Table(
        "Accuracy in %, and differences in points, with 95 % intervals", head, tuple(rows), words=2
    ).markdown()


def signed(difference: Estimate) -> str:
    """A difference with its interval, each with its sign."""
    return f"{difference.value:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]"


def save_chart(path: Path, results: Results, seeds: int) -> None:
    """Draw the accuracies of all splits, with their intervals."""
    figure = Figure((12, 4), layout="constrained")
    figure.suptitle(f"Accuracy in % on handwritten digits, {seeds} draws of the shots; error bars: 95 % intervals")
    for axes, (split, methods) in zip(figure.subplots(1, len(results), sharey=True), results.items(), strict=True):
        figures = {method: methods[method].to_dict() for method in METHODS}
        value, low, high = (
            pd.DataFrame({name: {part: each[part][key] for part in each} for name, each in figures.items()})
            for key in ("value", "low", "high")
        )
        errors = np.stack([(value - low).T, (high - value).T], axis=1)  # [methods, 2, parts]
        value.rename(index={"harmonic_mean": "harmonic mean"}).plot.bar(
            ax=axes, yerr=errors, title=split, color=["#7d8996", "#1f6fb2"], width=0.8, rot=0, ylim=(0, 115), capsize=4
        )
        for bars in axes.containers[1::2]:
            axes.bar_label(bars, fmt="%.1f", label_type="center", color="white")
        axes.legend(loc="upper center", ncols=2, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def save_adapter(folder: Path, cell: Cell) -> None:
    """Train the adapter of a cell again, which gives the same one, and save it."""
    backbone = Backbone(CLIPModel.from_pretrained(TINY_CLIP), CLIPProcessor.from_pretrained(TINY_CLIP))
    data, setup = load_benchmark_data(cell.data), cell.setup
    task = make_task(data, backbone.processor, setup.protocol, setup.shots, cell.seed, sampling=setup.sampling)
    fitted: Any = cell.method.fit(backbone, task.shots, task.classes, cell.seed)
    fitted.model.save_pretrained(str(folder))


def save_images(folder: Path) -> None:
    """Save the first test image of every class, for the classify command."""
    images, labels = load_split("test")
    folder.mkdir()
    for label, name in enumerate(CLASS_NAMES):
        images[int(np.flatnonzero(labels == label)[0])].save(folder / f"{name}.png")


if __name__ == "__main__":
    main()
