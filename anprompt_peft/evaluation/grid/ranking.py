"""The answer of a grid: which methods are the most accurate on a data set, as text and for a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from ..robustness.curves import mean
from .measure import H_UNDER_PHRASING
from .summary import AVERAGE, TARGETS, Difference, H, Summary

ZERO_SHOT = "zero-shot"
NAMED = 3
"""Methods that a sentence names beside the best."""


@dataclass(frozen=True)
class Ranked:
    """A method in a ranking.

    Args:
        method (`str`): its name.
        value (`float`): in per cent.
        gain (`Difference`, *optional*): over zero-shot CLIP, paired; `None` where there is none to compare with.
        leads (`bool`): whether it is the best, or not told apart from it.
    """

    method: str
    value: float
    gain: Difference | None
    leads: bool


@dataclass(frozen=True)
class Ranking:
    """Methods by one accuracy on one data set, the most accurate first."""

    data: str
    column: str
    methods: tuple[Ranked, ...]

    @property
    def zero_shot(self) -> float | None:
        """What zero-shot CLIP has, if it was measured."""
        return next((each.value for each in self.methods if each.method == ZERO_SHOT), None)

    @property
    def leaders(self) -> list[str]:
        """The best method, and all that are not told apart from it."""
        return [each.method for each in self.methods if each.leads]

    def words(self, has: str = "") -> str:
        """Return the best method, a text, and its accuracy, with those that are not told apart from it."""
        best, *others = self.leaders
        facts = [] if self.zero_shot is None else [f"zero-shot CLIP {self.zero_shot:.1f} %"]
        if others:
            more = [f"{len(others) - NAMED} more"] if len(others) > NAMED else []
            facts.append(f"not told apart: {', '.join([*others[:NAMED], *more])}")
        beside = f" ({'; '.join(facts)})" if facts else ""
        return f"{best}{has}, {self.methods[0].value:.1f} %{beside}"


def rank(data: str, column: str, values: pd.Series, difference: Callable[[str, str], Difference | None]) -> Ranking:
    """Return the ranking of an accuracy.

    Args:
        data (`str`): the data set.
        column (`str`): the accuracy.
        values (`pd.Series`): per cent by method.
        difference (`Callable`): of two methods, paired; `None` where they share no seed.
    """
    values = values.sort_values(ascending=False, kind="stable")
    best, is_there = str(values.index[0]), ZERO_SHOT in values.index

    def leads(method: str) -> bool:
        apart = difference(best, method)
        return method == best or (apart is not None and not apart.told_apart)

    ranked = (
        Ranked(name, value, difference(name, ZERO_SHOT) if is_there and name != ZERO_SHOT else None, leads(name))
        for name, value in values.items()
    )
    return Ranking(data, column, tuple(ranked))


def rank_all(summary: Summary) -> list[list[Ranking]]:
    """Return, for each data set, a ranking by its main accuracy and, if that was measured, under phrasing."""
    return [_rank(summary, data, summary.means.loc[data]) for data in summary.data]


def rank_average(summary: Summary) -> list[Ranking]:
    """Return the same of the averages over all data sets."""
    return _rank(summary, AVERAGE, summary.means.groupby(level="method").agg(mean).loc[summary.complete])


def sentence(rankings: Sequence[Ranking]) -> str:
    """Return a data set's answer."""
    first, *phrased = rankings
    accuracy = H if first.column == H else f"accuracy ({first.column})"
    parts = [first.words(f" has the highest {accuracy}"), *(f"under phrasing {each.words()}" for each in phrased)]
    return f"{first.data}: {'; '.join(parts)}."


def _rank(summary: Summary, data: str, means: pd.DataFrame) -> list[Ranking]:
    def difference(ours: str, theirs: str) -> Difference | None:
        if data == AVERAGE:
            return summary.average_differences(ours, theirs).get(column)
        return summary.differences(ours, theirs).get((data, column))

    found, means = [], means.dropna(axis="columns", how="all")
    main = next((each for each in (H, TARGETS) if each in means), means.columns[0])
    for column in (main, *({H_UNDER_PHRASING} & {*means.columns})):
        found.append(rank(data, column, means[column].dropna(), difference))
    return found
