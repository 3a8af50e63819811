"""The picture of a base-to-new result: accuracies with intervals, and the loss terms over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from anprompt_peft.evaluation import BaseToNew
from anprompt_peft.report.data import loss_table

MEASURES = {"base": "base", "new": "new", "harmonic_mean": "harmonic mean"}
COLOURS = {"zero-shot CLIP": "#7d8996", "ANPrompt": "#1f6fb2"}
BAR = 0.38


def save_chart(path: Path, results: dict[str, dict[str, BaseToNew]], logs: list[list[dict[str, Any]]]) -> None:
    """Draw the accuracies of three splits, and the loss terms of the first one.

    Args:
        path: PNG file to write.
        results: figures by split and method.
        logs: of the first split: per seed, one record of loss terms per epoch.
    """
    figure = Figure((11, 8.4), layout="constrained")
    *bars, curves = figure.subplots(2, 2).flat
    for axes, (split, methods) in zip(bars, results.items(), strict=True):
        draw_accuracies(axes, methods)
        axes.set_title(split, fontsize=11)
    draw_loss_terms(curves, logs)
    curves.set_title(f"Loss terms, {next(iter(results))}: mean over seeds, band: all", fontsize=11)
    figure.suptitle(f"Handwritten digits, {len(logs)} shot seeds; error bars: 95 % intervals", fontsize=12)
    figure.savefig(path, dpi=110)


def draw_accuracies(axes: Any, results: dict[str, BaseToNew]) -> None:
    """One group of bars per measure, one bar per method."""
    for at, (method, colour) in enumerate(COLOURS.items()):
        places = np.arange(len(MEASURES)) + (at - (len(COLOURS) - 1) / 2) * BAR
        estimates = [getattr(results[method], measure) for measure in MEASURES]
        values = [estimate.value for estimate in estimates]
        errors = [[e.value - e.low for e in estimates], [e.high - e.value for e in estimates]]
        axes.bar(places, values, BAR * 0.94, yerr=errors, capsize=4, label=method, color=colour)
        for place, estimate in zip(places, estimates, strict=True):
            axes.text(place, 2, f"{estimate.value:.1f}", ha="center", color="white", fontweight="bold")
    axes.set_xticks(range(len(MEASURES)), MEASURES.values())
    axes.set_ylim(0, 115)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("accuracy (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", ncols=len(COLOURS), frameon=False)


def draw_loss_terms(axes: Any, logs: list[list[dict[str, Any]]]) -> None:
    """One curve per term over the epochs."""
    epochs = [record["epoch"] for record in logs[0]]
    losses = loss_table(logs[0])
    assert losses is not None
    for term in losses.terms:
        runs = np.array([[record[term] for record in log] for log in logs])
        (line,) = axes.plot(epochs, runs.mean(axis=0), label=term, linewidth=2.5 if term == "loss" else 1.4)
        axes.fill_between(epochs, runs.min(axis=0), runs.max(axis=0), color=line.get_color(), alpha=0.12)
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean over the epoch, unweighted terms")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, ncols=2)
