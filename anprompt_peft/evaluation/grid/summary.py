"""Records of cells as numbers: which runs belong to one table, their means, and their paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from ..intervals import LEVEL, harmonic_mean
from ..robustness.curves import area_below
from .cells import canonical
from .measure import BASE_AND_NEW

H, TARGETS, AVERAGE = "H", "targets", "average"
TOLERANCE = 1e-9
VARYING = ("data", "method", "seed")


@dataclass(frozen=True)
class Mean:
    """The mean of a figure over S seeds, and its deviation with ddof 0, as the published tables state it."""

    value: float
    deviation: float
    seeds: int


@dataclass(frozen=True)
class Difference:
    """The mean difference of two methods over the same S seeds, in the figure's unit.

    The 95 % interval is Student's, over the seeds. It covers the choice of shots, halves and random weights, and not
    that of the test images. There is none for one seed, nor where all seeds give the same difference: methods that
    draw nothing from the seed.
    """

    value: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and it lies on one side of 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


@dataclass(frozen=True, eq=False)
class Run:
    """One cell's figures.

    Args:
        images (`str`): the canonical text of what was measured: parts with their numbers of images and classes.
        figures (`Mapping`): by part and metric.
        areas (`Mapping`): areas below accuracy over the strength of perturbations, by part and family.
        settings (`str`): the canonical text of the method.
    """

    images: str
    figures: Mapping[tuple[str, str], float]
    areas: Mapping[tuple[str, str], float]
    settings: str

    @property
    def accuracies(self) -> dict[str, float]:
        """Accuracies by part in per cent; H for base and new; the mean of the targets of cross-data."""
        parts = {part: value for (part, metric), value in self.figures.items() if metric == "accuracy"}
        if tuple(parts) == BASE_AND_NEW:
            return {**parts, H: self.figures[" and ".join(BASE_AND_NEW), H]}
        if len(parts) > 1:
            return {**parts, TARGETS: float(np.mean(list(parts.values())[1:]))}
        return parts


@dataclass(frozen=True, eq=False)
class Summary:
    """All runs of one setup.

    Args:
        setup (`Mapping`): what they have in common.
        runs (`Mapping`): by data set and method, the runs by seed.
        comparable (`Mapping[str, bool]`): by data set, whether its test set is that of the published tables.
        notes (`Mapping[str, str]`): by data set, what to say beside the figures.
        provenance (`Sequence[Mapping]`): the different versions, commits and machines of the runs.
    """

    setup: Mapping[str, Any]
    runs: Mapping[tuple[str, str], Mapping[int, Run]]
    comparable: Mapping[str, bool]
    notes: Mapping[str, str]
    provenance: Sequence[Mapping[str, Any]]

    @property
    def data(self) -> list[str]:
        """The data sets."""
        return sorted({data for data, _ in self.runs})

    @property
    def methods(self) -> list[str]:
        """The methods, zero-shot ones first."""
        return sorted({method for _, method in self.runs}, key=lambda name: (not name.startswith("zero-shot"), name))

    @property
    def complete(self) -> list[str]:
        """The methods that were run on every data set."""
        return [name for name in self.methods if all((data, name) in self.runs for data in self.data)]

    @property
    def adjusted(self) -> list[str]:
        """The methods whose settings are not the same on all data sets."""
        settings: dict[str, set[str]] = {}
        for (_, method), by_seed in self.runs.items():
            settings.setdefault(method, set()).update(run.settings for run in by_seed.values())
        return [name for name in self.methods if len(settings[name]) > 1]

    def accuracies(self, data: str, method: str) -> dict[str, dict[int, float]]:
        """Return accuracies by column and seed."""
        by_seed = {seed: run.accuracies for seed, run in sorted(self.runs[data, method].items())}
        columns = next(iter(by_seed.values()))
        return {name: {seed: values[name] for seed, values in by_seed.items()} for name in columns}

    def averages(self, method: str) -> dict[str, dict[int, float]]:
        """Return accuracies averaged over all data sets, by column, for the seeds that every data set has.

        The average H of a seed is the mean of the data sets' H.
        """
        per_data = [self.accuracies(data, method) for data in self.data]
        seeds = sorted(set.intersection(*(set(next(iter(each.values()))) for each in per_data)))
        columns = [name for name in per_data[0] if all(name in each for each in per_data)]
        return {
            name: {seed: float(np.mean([each[name][seed] for each in per_data])) for seed in seeds} for name in columns
        }

    def mean_figure(self, data: str, method: str, part: str, metric: str) -> Mean:
        """Return the mean of one figure over the seeds."""
        return mean_of([run.figures[part, metric] for run in self.runs[data, method].values()])

    def perturbed_parts(self, data: str) -> list[str]:
        """Return the parts of a data set that were measured under perturbations."""
        runs = (run for (name, _), by_seed in self.runs.items() if name == data for run in by_seed.values())
        return list(dict.fromkeys(part for run in runs for part, _ in run.areas))

    def areas(self, data: str, method: str, part: str) -> dict[str, list[float]]:
        """Return the areas below accuracy over strength, by family, one for each seed."""
        found: dict[str, list[float]] = {}
        for run in self.runs[data, method].values():
            for (where, family), area in run.areas.items():
                if where == part:
                    found.setdefault(family, []).append(area)
        return found

    def differences(self, method: str, reference: str) -> dict[tuple[str, str], Difference]:
        """Return the paired differences of a method from another, by data set and column, over the seeds of both.

        The difference in H is the mean of the seeds' differences.

        Raises:
            ValueError: if runs of one seed were measured on other images or classes.
        """
        found = {}
        for data in self.data:
            if (data, method) in self.runs and (data, reference) in self.runs:
                self._check_images(data, method, reference)
                ours, theirs = self.accuracies(data, method), self.accuracies(data, reference)
                found.update({(data, name): paired(ours[name], theirs[name]) for name in ours})
        return {key: difference for key, difference in found.items() if difference}

    def average_differences(self, method: str, reference: str) -> dict[str, Difference]:
        """Return the paired differences of the averages over all data sets, by column."""
        if len(self.data) < 2 or not {method, reference} <= set(self.complete):
            return {}
        ours, theirs = self.averages(method), self.averages(reference)
        return {name: each for name in ours if (each := paired(ours[name], theirs[name]))}

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

    def _check_images(self, data: str, *methods: str) -> None:
        first, second = (self.runs[data, method] for method in methods)
        if other := [seed for seed in first.keys() & second.keys() if first[seed].images != second[seed].images]:
            raise ValueError(
                f"{data}: {' and '.join(methods)} were measured on different images or classes for seeds {other}. "
                "The data have changed between the runs: remove the older cells and run them again."
            )


def summarise(records: Iterable[Mapping[str, Any]]) -> list[Summary]:
    """Put records of cells together by what they have in common.

    Args:
        records (`Iterable[Mapping]`): of [`~anprompt_peft.evaluation.grid.store.read_results`].

    Raises:
        ValueError: if one name stands for a method with different settings on one data set.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        setup = {name: value for name, value in record["configuration"].items() if name not in VARYING}
        groups.setdefault(canonical(setup), []).append(record)
    return [_summary(groups[setup]) for setup in sorted(groups)]


def areas_of(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """Return the area below the mean accuracy of the draws over the strength, by part and family.

    Args:
        rows (`Iterable[Mapping]`): part, family, strength, metric and value of each draw.
    """
    curves: dict[tuple[str, str], dict[float, list[float]]] = {}
    for row in rows:
        if row["metric"] == "accuracy":
            levels = curves.setdefault((row["part"], row["family"]), {})
            levels.setdefault(row["strength"], []).append(row["value"])
    return {
        key: area_below(sorted(levels), [float(np.mean(levels[strength])) for strength in sorted(levels)])
        for key, levels in curves.items()
    }


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean and the deviation (ddof 0) of one figure for each seed."""
    return Mean(float(np.mean(values)), float(np.std(values)), len(values))


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Return the mean difference over the seeds of both, with its t-interval; `None` if they share no seed.

    Args:
        ours (`Mapping[int, float]`): a figure by seed.
        theirs (`Mapping[int, float]`): the reference's.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    differences = np.array([ours[seed] - theirs[seed] for seed in seeds])
    value = float(differences.mean())
    if np.ptp(differences) < TOLERANCE:
        return Difference(value, None, None, len(seeds))
    error = differences.std(ddof=1) / np.sqrt(len(seeds))
    half = float(student.ppf((1 + LEVEL) / 2, len(seeds) - 1) * error)
    return Difference(value, value - half, value + half, len(seeds))


def harmonic_mean_of_means(columns: Mapping[str, Mapping[int, float]]) -> float:
    """Return the harmonic mean of the mean base and the mean new, the H of the published tables."""
    base, new = (np.array(np.mean(list(columns[name].values()))) for name in BASE_AND_NEW)
    return float(harmonic_mean(base, new))


def _summary(records: Sequence[Mapping[str, Any]]) -> Summary:
    names = _names(records)
    runs: dict[tuple[str, str], dict[int, Run]] = {}
    settings: dict[tuple[str, str], str] = {}
    for record in records:
        configuration = record["configuration"]
        data, method = names[configuration["data"]], configuration["method"]
        run = Run(
            canonical(record["parts"]),
            {(row["part"], row["metric"]): row["value"] for row in record["rows"]},
            areas_of(record["robustness"]),
            canonical(method),
        )
        first = settings.setdefault((data, method["name"]), run.settings)
        if first != run.settings:
            raise ValueError(
                f"{data}: the method {method['name']!r} was run with different settings: {first} and {run.settings}. "
                "Give each a name of its own under `methods:`, or remove the folders of one."
            )
        runs.setdefault((data, method["name"]), {})[configuration["seed"]] = run
    return Summary(
        {name: value for name, value in records[0]["configuration"].items() if name not in VARYING},
        runs,
        {names[record["configuration"]["data"]]: record["data"]["comparable"] for record in records},
        {names[record["configuration"]["data"]]: record["data"]["note"] for record in records},
        list({canonical(record["provenance"]): record["provenance"] for record in records}.values()),
    )


def _names(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return what to call each data set: its own name, or what was asked for where two have the same."""
    own = {record["configuration"]["data"]: record["data"]["name"] for record in records}
    return {asked: name if list(own.values()).count(name) == 1 else asked for asked, name in own.items()}
