"""Tables in the literature's form, as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ...text import plain_markdown
from ..metrics import harmonic_mean
from ..protocols import draw_of
from ..robustness.curves import mean
from .measure import BASE_AND_NEW, H_UNDER_PHRASING
from .published import Published, published_for
from .summary import (
    ACCURACY,
    AVERAGE,
    CALIBRATION,
    LOST,
    LOST_UNDECIDED,
    MEAN_LOSS,
    ROBUSTNESS,
    Difference,
    H,
    Mean,
    Summary,
)

MEAN_H = "mean H"
MISSING = "-"
CALIBRATION_NOTE = (
    "Expected calibration error with 15 bins of equal width (ECE) or of equally many images (adaptive ECE)."
)
AREA_NOTE = (
    "Area below accuracy over the strength of each perturbation, divided by the greatest strength: a mean accuracy in "
    "per cent. The accuracies themselves are in results.jsonl."
)
LOST_NOTE = (
    f"Points of accuracy lost against the clean texts: of each form the mean over its draws. {MEAN_LOSS}: over the "
    "forms, each of the same weight."
)
UNDECIDED_NOTE = (
    "Points of accuracy lost where another thing is named before the class: the text leaves open which is meant, so "
    "no method can be asked to lose nothing. In no mean, and not in H under phrasing."
)


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        title (`str`): above it.
        head (`tuple[str, ...]`): c names of columns.
        rows (`tuple[tuple[str, ...], ...]`): of c cells.
        notes (`tuple[str, ...]`): sentences below it.
        words (`int`): how many columns, from the first on, hold words.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    words: int = 1

    @classmethod
    def of(cls, title: str, cells: pd.DataFrame, *notes: str) -> Table:
        """Return a table of the cells of methods, which are the index."""
        return cls(title, ("method", *cells.columns), tuple(cells.itertuples(name=None)), notes)

    def markdown(self) -> str:
        """Return it as Markdown that is aligned, so that it reads well in a terminal too."""
        left = [at < self.words for at in range(len(self.head))]
        head = [*map(plain_markdown, self.head)]
        rows = [[*map(plain_markdown, row[: self.words]), *row[self.words :]] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        rules = "|".join(_rule(*each) for each in zip(widths, left, strict=True))
        lines = [_line(head, widths, left), f"|{rules}|", *(_line(row, widths, left) for row in rows)]
        notes = [f"\n{plain_markdown(note)}" for note in self.notes]
        return "\n".join([f"### {plain_markdown(self.title)}", "", *lines, *notes])


def make_tables(summary: Summary, reference: str) -> list[Table]:
    """Return all tables of one setup.

    Args:
        summary (`Summary`): its runs.
        reference (`str`): the method that others are compared with. Without runs of it there are no differences.
    """
    tables = [accuracy_table(summary, data) for data in summary.data]
    if len(summary.data) > 1:
        tables.append(average_table(summary))
    kinds = {
        CALIBRATION: CALIBRATION_NOTE,
        ROBUSTNESS: AREA_NOTE,
        LOST: LOST_NOTE,
        LOST_UNDECIDED: UNDECIDED_NOTE,
    }
    tables += [
        Table.of(f"{data}: {name}", _cells(summary, rows), note)
        for kind, note in kinds.items()
        for data in summary.data
        for name, rows in summary.figures[summary.figures["data"] == data].groupby("table", sort=False)
        if name.startswith(kind)
    ]
    if reference in summary.methods and len(summary.methods) > 1:
        tables.append(difference_table(summary, reference))
    return tables


def accuracy_table(summary: Summary, data: str) -> Table:
    """Return the accuracies of all methods on one data set: means and deviations over the seeds, in per cent."""
    rows = summary.figures[(summary.figures["data"] == data) & (summary.figures["table"] == ACCURACY)]
    cells = _with_both_h(_cells(summary, rows.sort_values("seed", kind="stable")), summary.means.loc[data])
    notes = [_seeds_note(summary, data, cells.index), *_h_notes(summary, cells)]
    if summary.notes[data] or not summary.comparable[data]:
        notes.append(_data_note(summary, data))
    if len(summary.data) == 1:
        notes += _add_published(summary, cells)
    return Table.of(data, cells, *notes)


def average_table(summary: Summary) -> Table:
    """Return the averages over all data sets of the methods that were run on all of them."""
    averages = summary.means.groupby(level="method").agg(mean).loc[summary.complete]
    averages = averages.dropna(axis="columns", how="any" if summary.complete else "all")
    cells = _with_both_h(averages.map("{:.2f}".format), averages)
    notes = [f"Means over {len(summary.data)} data sets of the means over {summary.unit}.", *_h_notes(summary, cells)]
    if left_out := [name for name in summary.methods if name not in summary.complete]:
        notes.append(f"Not on every data set, and left out: {', '.join(left_out)}.")
    if summary.adjusted:
        notes.append(f"With other settings on some data sets: {', '.join(summary.adjusted)}.")
    notes += _add_published(summary, cells)
    return Table.of(AVERAGE, cells, *notes)


def difference_table(summary: Summary, reference: str) -> Table:
    """Return the paired differences of all methods from a reference, in points, with 95 % intervals."""
    compared = list(summary.comparisons(reference))
    rows = [
        (method, data, MEAN_H if column == H else column, *_difference(each), str(each.seeds))
        for method, data, column, each in compared
    ]
    return Table(
        f"Differences from {reference}",
        ("method", "data", "accuracy", "difference", "95 % interval", summary.unit),
        tuple(rows),
        (comparisons_note([each for *_, each in compared], summary.unit), *_pairs_notes(summary)),
        words=3,
    )


def comparisons_note(shown: Sequence[Difference], unit: str = "seeds") -> str:
    """Say what the intervals of differences cover, and how many there are; `unit` is that of [`Summary.unit`]."""
    intervals = [each for each in shown if each.low is not None]
    return (
        "Points, paired: the same data, seeds, shots and images. "
        f"Student's t-interval over the {unit} covers the choice of shots, halves and random weights, not that of "
        f"test images; there is none for one {unit.removesuffix('s')}, or where all {unit} give the same difference. "
        f"{len(shown)} comparisons, {len(intervals)} with an interval, of which "
        f"{sum(each.excludes_zero for each in intervals)} exclude 0; were all differences 0, about "
        f"{0.05 * len(intervals):.1f} would by chance."
    )


def title_of(summary: Summary) -> str:
    """Return what the runs of a setup have in common, in one line."""
    setup = summary.setup
    words = [
        str(setup["protocol"]),
        f"{setup['shots']} shots",
        str(setup["model"]).rstrip("/").rpartition("/")[2],
        f"halves {setup['halves']}",
        f"sampling {setup['sampling']}",
    ]
    return ", ".join(words)


def _cells(summary: Summary, rows: pd.DataFrame) -> pd.DataFrame:
    """Return means and deviations of the rows' values over the seeds as text, by method and column."""
    values = summary.by_unit(rows.set_index(["method", "column", "seed"])[["value"]])["value"]
    cells = values.groupby(["method", "column"]).agg(lambda values: str(Mean.of(values))).unstack()
    methods = [name for name in summary.methods if name in cells.index]
    return cells.reindex(methods, columns=rows["column"].unique()).fillna(MISSING)


def _with_both_h(cells: pd.DataFrame, means: pd.DataFrame) -> pd.DataFrame:
    """Put the harmonic mean of the means before the mean of the harmonic means."""
    if H not in cells:
        return cells
    base, new = (means.loc[cells.index, part].to_numpy() for part in BASE_AND_NEW)
    cells = cells.rename(columns={H: MEAN_H})
    cells.insert(len(BASE_AND_NEW), H, [f"{each:.2f}" for each in harmonic_mean(base, new)])
    return cells


def _difference(difference: Difference) -> tuple[str, str]:
    value = f"{difference.value:+.2f}"
    return value, MISSING if difference.low is None else f"{difference.low:+.2f} to {difference.high:+.2f}"


def _add_published(summary: Summary, cells: pd.DataFrame) -> list[str]:
    """Add a column of published figures, where they are about the same data, model and protocol; return its note."""
    published = published_for(summary)
    if not published:
        return []
    shown = [published.get(method) for method in cells.index]
    cells["published base / new / H"] = [_figures(each) for each in shown]
    labels: dict[str, list[str]] = {}
    for each in filter(None, shown):
        labels.setdefault(each.source, []).append(each.label)
    return [
        f"Published figures are averages over 11 data sets, here {len(summary.data)}; not measured here. "
        + " ".join(f"{', '.join(names)}: {source}." for source, names in labels.items())
    ]


def _figures(published: Published | None) -> str:
    return f"{published.base:.2f} / {published.new:.2f} / {published.H:.2f}" if published else MISSING


def _seeds_note(summary: Summary, data: str, methods: pd.Index) -> str:
    runs = summary.runs.loc[data].index.to_frame(index=False)
    if summary.has_pairs:
        runs["seed"] = runs["seed"].map(draw_of)
    numbers, unit = runs.groupby("method")["seed"].nunique()[methods], summary.unit
    over = f"{numbers.max()} {unit}{', both orders' if summary.has_pairs else ''}"
    fewer = [f"{name} {number}" for name, number in numbers[numbers < numbers.max()].items()]
    notes = [f"Means and deviations (ddof 0) over {over}, in per cent."]
    notes += [f"Fewer {unit}: {', '.join(fewer)}."] if fewer else []
    return " ".join([*notes, *_pairs_notes(summary)])


def _pairs_notes(summary: Summary) -> list[str]:
    """Say of paired halves that a draw's orders are averaged, and which draws lack one."""
    if not summary.has_pairs:
        return []
    lone = "; ".join(f"{method} {', '.join(map(str, draws))}" for method, draws in summary.lone_draws.items())
    return ["The two orders of a draw are averaged first."] + (
        [f"Draws with one order only, which do not count in differences: {lone}."] if lone else []
    )


def _h_notes(summary: Summary, cells: pd.DataFrame) -> list[str]:
    if H not in cells:
        return []
    base, new = BASE_AND_NEW
    notes = [
        f"{H}: harmonic mean of the mean {base} and the mean {new}, as in the published tables. {MEAN_H}: mean of the "
        "harmonic means."
    ]
    if H_UNDER_PHRASING in cells:
        notes.append(
            f"{H_UNDER_PHRASING}: mean over the {summary.unit} of the harmonic means of {base} and {new}, each the "
            "mean accuracy over the forms of phrasing that leave the class decided."
        )
    return notes


def _data_note(summary: Summary, data: str) -> str:
    parts = ["" if summary.comparable[data] else "Not comparable with the published tables", summary.notes[data]]
    return ": ".join(part for part in parts if part).rstrip(".") + "."


def _rule(width: int, left: bool) -> str:
    return f":{'-' * (width + 1)}" if left else f"{'-' * (width + 1)}:"


def _line(cells: Sequence[str], widths: Sequence[int], left: Sequence[bool]) -> str:
    padded = (
        cell.ljust(width) if is_left else cell.rjust(width)
        for cell, width, is_left in zip(cells, widths, left, strict=True)
    )
    return f"| {' | '.join(padded)} |"
