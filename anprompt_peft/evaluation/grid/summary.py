"""Records of cells as data frames: which runs belong to one table, their means, and their paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from ..metrics import LEVEL
from ..protocols import PAIRED, draw_of
from ..robustness import FORMS, PHRASING, UNDECIDED, UNDECIDED_FORMS
from ..robustness.curves import areas, at_greatest, mean
from .cells import canonical
from .measure import BASE_AND_NEW, H_UNDER_PHRASING, PHRASING_METRICS

H, TARGETS, AVERAGE = "H", "targets", "average"
ACCURACY, CALIBRATION, ROBUSTNESS = "accuracy", "calibration", "robustness"
LOST, LOST_UNDECIDED = "points lost under phrasing", "points lost, class undecided"
MEAN_LOSS = "mean"
ORDERS = 2  # of a draw of paired halves
TOLERANCE = 1e-9
VARYING = ["data", "method", "seed"]


@dataclass(frozen=True)
class Mean:
    """The mean of a figure over S seeds, and its deviation with ddof 0, as the published tables state it."""

    value: float
    deviation: float
    seeds: int

    @classmethod
    def of(cls, values: pd.Series) -> Mean:
        """Summarise one figure for each seed."""
        return cls(mean(values), float(np.std(values.to_numpy())), len(values))

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.deviation:.2f}"


@dataclass(frozen=True)
class Difference:
    """The mean difference of two methods over the same S seeds, or draws of paired halves, in the figure's unit.

    The 95 % interval is Student's, over the seeds. It covers the choice of shots, halves and random weights, and not
    that of the test images. There is none for one seed, nor where all seeds give the same difference: methods that
    draw nothing from the seed.
    """

    value: float
    low: float | None
    high: float | None
    seeds: int

    @classmethod
    def of(cls, values: pd.Series) -> Difference:
        """Summarise one difference for each seed."""
        value, seeds, differences = mean(values), len(values), values.to_numpy()
        if np.ptp(differences) < TOLERANCE:
            return cls(value, None, None, seeds)
        error = differences.std(ddof=1) / np.sqrt(seeds)
        half = float(student.ppf((1 + LEVEL) / 2, seeds - 1) * error)
        return cls(value, value - half, value + half, seeds)

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and it lies on one side of 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    @property
    def told_apart(self) -> bool:
        """Whether the two are clearly not the same: the interval excludes 0, or there is none and they differ."""
        return self.excludes_zero or (self.low is None and abs(self.value) > TOLERANCE)


@dataclass(frozen=True, eq=False)
class Summary:
    """All runs of one setup.

    Args:
        setup (`Mapping`): what they have in common.
        runs (`pd.DataFrame`): a row for each run, by data, method and seed: `images`, the canonical text of the parts
            with their numbers of images and classes, and `settings`, that of the method.
        figures (`pd.DataFrame`): a row for each figure that tables show: data, method, seed, table, column and value.
        comparable (`Mapping[str, bool]`): by data set, whether its test set is that of the published tables.
        notes (`Mapping[str, str]`): by data set, what to say beside the figures.
        provenance (`Sequence[Mapping]`): the different versions, commits and machines of the runs.
    """

    setup: Mapping[str, Any]
    runs: pd.DataFrame
    figures: pd.DataFrame
    comparable: Mapping[str, bool]
    notes: Mapping[str, str]
    provenance: Sequence[Mapping[str, Any]]

    @property
    def data(self) -> list[str]:
        """The data sets."""
        return sorted(self.runs.index.unique("data"))

    @property
    def methods(self) -> list[str]:
        """The methods, zero-shot ones first."""
        return sorted(self.runs.index.unique("method"), key=lambda name: (not name.startswith("zero-shot"), name))

    @property
    def complete(self) -> list[str]:
        """The methods that were run on every data set."""
        there = set(self.runs.index.droplevel("seed"))
        return [name for name in self.methods if all((data, name) in there for data in self.data)]

    @property
    def adjusted(self) -> list[str]:
        """The methods whose settings are not the same on all data sets."""
        settings = self.runs.groupby("method")["settings"].nunique()
        return [name for name in self.methods if settings[name] > 1]

    @property
    def has_pairs(self) -> bool:
        """Whether two seeds are the two orders of one draw of halves, which is then the unit of intervals."""
        return bool(self.setup.get("halves") == PAIRED)

    @property
    def unit(self) -> str:
        """What means and intervals are over: `seeds`, or `draws`, whose two orders are averaged first."""
        return "draws" if self.has_pairs else "seeds"

    @property
    def lone_draws(self) -> dict[str, list[int]]:
        """Draws of paired halves that have one order only on some data set, by method: no interval counts them."""
        if not self.has_pairs:
            return {}
        runs = self.runs.index.to_frame(index=False)
        orders = runs.assign(draw=runs["seed"].map(draw_of)).groupby(["method", "data", "draw"]).size()
        lone = orders[orders < ORDERS].index.to_frame(index=False)
        return {str(method): sorted(set(draws)) for method, draws in lone.groupby("method")["draw"]}

    def by_unit(self, values: pd.DataFrame, whole: bool = False) -> pd.DataFrame:
        """Return values by [`unit`]: those of the two orders of a draw of paired halves averaged, others as they are.

        Args:
            values (`pd.DataFrame`): with an index level `seed`.
            whole (`bool`): leave out draws of which one order is missing.
        """
        if not self.has_pairs:
            return values
        keys = [values.index.get_level_values(name) for name in values.index.names]
        groups = values.groupby([key.map(draw_of) if key.name == "seed" else key for key in keys])
        found = groups.agg(mean)
        return found[groups.size() == ORDERS] if whole else found

    @cached_property
    def accuracies(self) -> pd.DataFrame:
        """Accuracies in per cent, by data, method and seed: of each part; H for base and new, also under phrasing; the
        mean of the targets of cross-data."""
        rows = self.figures[self.figures["table"] == ACCURACY]
        return rows.pivot(index=VARYING, columns="column", values="value")[rows["column"].unique()]

    @cached_property
    def means(self) -> pd.DataFrame:
        """Their means over the seeds or draws, by data and method."""
        return self.by_unit(self.accuracies).groupby(level=["data", "method"]).agg(mean)

    def averages(self, method: str) -> pd.DataFrame:
        """Return accuracies averaged over all data sets, by seed, for the seeds that every data set has.

        The average H of a seed is the mean of the data sets' H.
        """
        runs = _of(self.accuracies, method)
        whole = runs.groupby(level="seed").filter(lambda seed: len(seed) == len(self.data))
        return whole.groupby(level="seed").agg(mean).dropna(axis="columns")

    def differences(self, method: str, reference: str) -> dict[tuple[str, str], Difference]:
        """Return the paired differences of a method from another, by data set and column, over the seeds of both.

        The difference in H is the mean of the seeds' differences. Of paired halves only whole draws count.

        Raises:
            ValueError: if runs of one seed were measured on other images or classes.
        """
        images = self.runs["images"]
        ours, theirs = _of(images, method).align(_of(images, reference), join="inner")
        for data, seeds in ours[ours != theirs].groupby(level="data"):
            raise ValueError(
                f"{data}: {method} and {reference} were measured on different images or classes for seeds "
                f"{sorted(seeds.index.unique('seed'))}. The data have changed between the runs: remove the older "
                "cells and run them again."
            )
        apart = _of(self.accuracies, method) - _of(self.accuracies, reference)
        return {
            (data, column): each
            for data, runs in self.by_unit(apart, whole=True).groupby(level="data")
            for column, each in _differences(runs).items()
        }

    def average_differences(self, method: str, reference: str) -> dict[str, Difference]:
        """Return the paired differences of the averages over all data sets, by column."""
        if len(self.data) < 2 or not {method, reference} <= set(self.complete):
            return {}
        apart = self.averages(method) - self.averages(reference)
        return _differences(self.by_unit(apart, whole=True))

    def comparisons(self, reference: str) -> Iterator[tuple[str, str, str, Difference]]:
        """Yield method, data set, column and paired difference from a reference, the averages as data set `average`.

        Without runs of the reference there are none.
        """
        for method in self.methods:
            if method != reference:
                for (data, column), difference in self.differences(method, reference).items():
                    yield method, data, column, difference
                for column, difference in self.average_differences(method, reference).items():
                    yield method, AVERAGE, column, difference


def summarise(records: Iterable[Mapping[str, Any]]) -> list[Summary]:
    """Put records of cells together by what they have in common.

    Args:
        records (`Iterable[Mapping]`): of [`~anprompt_peft.evaluation.grid.store.read_results`].

    Raises:
        ValueError: if one name stands for a method with different settings on one data set.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(canonical(_setup(record)), []).append(record)
    return [_summary(groups[setup]) for setup in sorted(groups)]


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Return the mean difference over the seeds of both, with its t-interval; `None` if they share no seed.

    Args:
        ours (`Mapping[int, float]`): a figure by seed.
        theirs (`Mapping[int, float]`): the reference's.
    """
    first, second = pd.Series(ours, dtype=float).align(pd.Series(theirs, dtype=float), join="inner")
    return Difference.of((first - second).sort_index()) if len(first) else None


def _of(frame: pd.DataFrame | pd.Series, method: str) -> pd.DataFrame | pd.Series:
    """Return the rows of one method, by data and seed; none if it was not run."""
    return frame[frame.index.get_level_values("method") == method].droplevel("method")


def _differences(apart: pd.DataFrame) -> dict[str, Difference]:
    """Summarise the columns of differences by seed; a seed or column that only one side has is NaN."""
    return {column: Difference.of(values.dropna()) for column, values in apart.items() if values.notna().any()}


def _setup(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record["configuration"].items() if name not in VARYING}


def _summary(records: Sequence[Mapping[str, Any]]) -> Summary:
    names = _names(records)
    runs: dict[tuple[str, str, int, str], Mapping[str, Any]] = {}
    for record in records:
        asked = record["configuration"]
        runs[names[asked["data"]], asked["method"]["name"], asked["seed"], canonical(asked["method"])] = record
    frame = pd.DataFrame(list(runs), columns=[*VARYING, "settings"])
    for (data, method), settings in frame.groupby(["data", "method"], sort=False)["settings"].unique().items():
        if len(settings) > 1:
            raise ValueError(
                f"{data}: the method {method!r} was run with different settings: {settings[0]} and {settings[1]}. "
                "Give each a name of its own under `methods:`, or remove the folders of one."
            )
    figures = [(*run, *figure) for (*run, _), record in runs.items() for figure in _figures(record)]
    return Summary(
        _setup(records[0]),
        frame.assign(images=[canonical(record["parts"]) for record in runs.values()]).set_index(VARYING),
        pd.concat([pd.DataFrame(figures, columns=[*VARYING, "table", "column", "value"]), *_robustness(runs)]),
        {names[record["configuration"]["data"]]: record["data"]["comparable"] for record in records},
        {names[record["configuration"]["data"]]: record["data"]["note"] for record in records},
        list({canonical(record["provenance"]): record["provenance"] for record in records}.values()),
    )


def _figures(record: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Yield table, column and value of each accuracy and calibration error of a run."""
    values = {(row["part"], row["metric"]): row["value"] for row in record["rows"]}
    accuracies = {part: value for (part, metric), value in values.items() if metric == "accuracy"}
    if tuple(accuracies) == BASE_AND_NEW:
        both = " and ".join(BASE_AND_NEW)
        accuracies |= {name: values[both, name] for name in (H, H_UNDER_PHRASING) if (both, name) in values}
    elif len(accuracies) > 1:
        accuracies[TARGETS] = float(np.mean(list(accuracies.values())[1:]))
    yield from ((ACCURACY, column, value) for column, value in accuracies.items())
    for (part, metric), value in values.items():
        if metric.endswith("ECE"):
            yield CALIBRATION, f"{part} {metric}", value
        if metric == PHRASING_METRICS[PHRASING]:
            yield f"{LOST}, {part}", MEAN_LOSS, values[part, "accuracy"] - value


def _robustness(runs: Mapping[tuple[str, str, int, str], Mapping[str, Any]]) -> Iterator[pd.DataFrame]:
    """Yield the areas below the accuracies under perturbations, and what each form of phrasing costs, in points.

    The part stands in the name of the table.
    """
    rows = pd.DataFrame(
        {"data": data, "method": method, "seed": seed, **row, "phrased": _phrased(record)}
        for (data, method, seed, _), record in runs.items()
        for row in record["robustness"]
    )
    if rows.empty:
        return
    by, forms = [*VARYING, "part", "family"], {form.name: PHRASING for form in FORMS}
    forms |= {form.name: UNDECIDED for form in UNDECIDED_FORMS}
    if len(graded := rows[~rows["family"].isin(forms)]):
        found = areas(graded, by).reset_index()
        yield found.assign(table=f"{ROBUSTNESS}, " + found.pop("part")).rename(columns={"family": "column"})
    phrased = rows[rows["family"].isin(forms) | (rows["phrased"] & (rows["family"] == "synonyms"))]
    if len(phrased):
        lost = (at_greatest(phrased[phrased["strength"] == 0], by) - at_greatest(phrased, by)).reset_index()
        undecided = lost["family"].map(forms) == UNDECIDED
        tables = undecided.map({True: LOST_UNDECIDED, False: LOST}) + ", " + lost.pop("part")
        yield lost.assign(table=tables).rename(columns={"family": "column"})


def _phrased(record: Mapping[str, Any]) -> bool:
    """Whether a run was measured under the whole group `phrasing`, of which synonyms are then a form."""
    return any(row["metric"] == PHRASING_METRICS[PHRASING] for row in record["rows"])


def _names(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return what to call each data set: its own name, or what was asked for where two have the same."""
    own = {record["configuration"]["data"]: record["data"]["name"] for record in records}
    return {asked: name if list(own.values()).count(name) == 1 else asked for asked, name in own.items()}
