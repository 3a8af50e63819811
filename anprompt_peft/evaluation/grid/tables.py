"""Tables in the literature's form, as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...text import plain_markdown
from .measure import BASE_AND_NEW
from .published import Published, published_for
from .summary import AVERAGE, Difference, H, Mean, Summary, harmonic_mean_of_means, mean_of

MEAN_H = "mean H"
MISSING = "-"
CALIBRATION = ("ECE", "adaptive ECE")


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
    tables += [calibration_table(summary, data) for data in summary.data]
    tables += [
        robustness_table(summary, data, part) for data in summary.data for part in summary.perturbed_parts(data)
    ]
    if reference in summary.methods and len(summary.methods) > 1:
        tables.append(difference_table(summary, reference))
    return tables


def accuracy_table(summary: Summary, data: str) -> Table:
    """Return the accuracies of all methods on one data set: means and deviations over the seeds, in per cent."""
    rows, seeds = [], {}
    for method in summary.methods:
        if (data, method) in summary.runs:
            columns = summary.accuracies(data, method)
            means = {name: mean_of(list(values.values())) for name, values in columns.items()}
            rows.append((method, *_accuracy_cells(columns, means)))
            seeds[method] = len(summary.runs[data, method])
    head = ("method", *_accuracy_head(columns))
    notes = [_seeds_note(seeds), *_h_notes(head)]
    if summary.notes[data] or not summary.comparable[data]:
        notes.append(_data_note(summary, data))
    table = Table(data, head, tuple(rows), tuple(notes))
    return _with_published(summary, table) if len(summary.data) == 1 else table


def average_table(summary: Summary) -> Table:
    """Return the averages over all data sets of the methods that were run on all of them."""
    rows = []
    for method in summary.complete:
        per_data = [summary.accuracies(data, method) for data in summary.data]
        columns = {
            name: {at: float(np.mean(list(each[name].values()))) for at, each in enumerate(per_data)}
            for name in per_data[0]
            if all(name in each for each in per_data)
        }
        cells = [f"{np.mean(list(values.values())):.2f}" for name, values in columns.items() if name != H]
        if H in columns:
            cells += [f"{harmonic_mean_of_means(columns):.2f}", f"{np.mean(list(columns[H].values())):.2f}"]
        rows.append((method, *cells))
    head = ("method", *_accuracy_head(columns)) if rows else ("method",)
    notes = [f"Means over {len(summary.data)} data sets of the means over seeds.", *_h_notes(head)]
    if left_out := [name for name in summary.methods if name not in summary.complete]:
        notes.append(f"Not on every data set, and left out: {', '.join(left_out)}.")
    if summary.adjusted:
        notes.append(f"With other settings on some data sets: {', '.join(summary.adjusted)}.")
    return _with_published(summary, Table(AVERAGE, head, tuple(rows), tuple(notes)))


def calibration_table(summary: Summary, data: str) -> Table:
    """Return the calibration errors of all methods on one data set, means and deviations in per cent."""
    methods = [name for name in summary.methods if (data, name) in summary.runs]
    figures = next(iter(summary.runs[data, methods[0]].values())).figures
    columns = [(part, metric) for part, metric in figures if metric in CALIBRATION]
    rows = [
        (name, *(_mean(summary.mean_figure(data, name, part, metric)) for part, metric in columns)) for name in methods
    ]
    return Table(
        f"{data}: calibration",
        ("method", *(f"{part} {metric}" for part, metric in columns)),
        tuple(rows),
        ("Expected calibration error with 15 bins of equal width (ECE) or of equally many images (adaptive ECE).",),
    )


def robustness_table(summary: Summary, data: str, part: str) -> Table:
    """Return the areas below accuracy over the strength of perturbations, means and deviations over the seeds."""
    rows, families = [], []
    for method in summary.methods:
        if (data, method) in summary.runs:
            areas = summary.areas(data, method, part)
            families = list(areas)
            rows.append((method, *(_mean(mean_of(values)) for values in areas.values())))
    return Table(
        f"{data}: robustness, {part}",
        ("method", *families),
        tuple(rows),
        (
            "Area below accuracy over the strength of each perturbation, divided by the greatest strength: a mean "
            "accuracy in per cent. The accuracies themselves are in results.jsonl.",
        ),
    )


def difference_table(summary: Summary, reference: str) -> Table:
    """Return the paired differences of all methods from a reference, in points, with 95 % intervals."""
    compared = list(summary.comparisons(reference))
    rows = [
        (method, data, MEAN_H if column == H else column, *_difference(each), str(each.seeds))
        for method, data, column, each in compared
    ]
    return Table(
        f"Differences from {reference}",
        ("method", "data", "accuracy", "difference", "95 % interval", "seeds"),
        tuple(rows),
        (comparisons_note([each for *_, each in compared]),),
        words=3,
    )


def comparisons_note(shown: Sequence[Difference]) -> str:
    """Say what the intervals of differences cover, and how many there are."""
    intervals = [each for each in shown if each.low is not None]
    return (
        "Points, paired: the same data, seeds, shots and images. Student's t-interval over the seeds covers the "
        "choice of shots, halves and random weights, not that of test images; there is none for one seed, or where "
        "all seeds give the same difference. "
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


def _accuracy_head(columns: Iterable[str]) -> Iterator[str]:
    for name in columns:
        yield name
        if name == H:
            yield MEAN_H


def _accuracy_cells(columns: Mapping[str, Mapping[int, float]], means: Mapping[str, Mean]) -> Iterator[str]:
    for name, mean in means.items():
        if name == H:
            yield f"{harmonic_mean_of_means(columns):.2f}"
        yield _mean(mean)


def _mean(mean: Mean) -> str:
    return f"{mean.value:.2f} ± {mean.deviation:.2f}"


def _difference(difference: Difference) -> tuple[str, str]:
    value = f"{difference.value:+.2f}"
    return value, MISSING if difference.low is None else f"{difference.low:+.2f} to {difference.high:+.2f}"


def _with_published(summary: Summary, table: Table) -> Table:
    """Add a column of published figures, where they are about the same data, model and protocol."""
    published = published_for(summary)
    if not published:
        return table
    shown = [published.get(row[0]) for row in table.rows]
    labels: dict[str, list[str]] = {}
    for each in filter(None, shown):
        labels.setdefault(each.source, []).append(each.label)
    note = (
        f"Published figures are averages over 11 data sets, here {len(summary.data)}; not measured here. "
        + " ".join(f"{', '.join(names)}: {source}." for source, names in labels.items())
    )
    return replace(
        table,
        head=(*table.head, "published base / new / H"),
        rows=tuple((*row, _figures(each)) for row, each in zip(table.rows, shown, strict=True)),
        notes=(*table.notes, note),
    )


def _figures(published: Published | None) -> str:
    return f"{published.base:.2f} / {published.new:.2f} / {published.H:.2f}" if published else MISSING


def _seeds_note(seeds: Mapping[str, int]) -> str:
    most = max(seeds.values())
    fewer = [f"{name} {number}" for name, number in seeds.items() if number < most]
    note = f"Means and deviations (ddof 0) over {most} seeds, in per cent."
    return note + (f" Fewer seeds: {', '.join(fewer)}." if fewer else "")


def _h_notes(head: Sequence[str]) -> list[str]:
    if H not in head:
        return []
    base, new = BASE_AND_NEW
    return [
        f"{H}: harmonic mean of the mean {base} and the mean {new}, as in the published tables. {MEAN_H}: mean of the "
        "harmonic means."
    ]


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
