"""What a comparison leaves in its folder beside its cells."""

from __future__ import annotations

from ..evaluation.grid.store import collect
from ..evaluation.grid.summary import summarise
from ..files import atomic_file, to_json
from ..report.benchmark import write_benchmark
from .advice import advise
from .methods import ZERO_SHOT
from .run import Plan
from .verdict import Comparison

VERDICT, METHODS, CLASSES, PAGE = "verdict.json", "methods.csv", "classes.csv", "page.html"


def write_comparison(plan: Plan, comparison: Comparison) -> list[str]:
    """Write the verdict, the tables of methods and of classes, and the report, each in one step.

    Returns:
        `list[str]`: the verdict, with advice.
    """
    output, lines = plan.place.output, [*comparison.verdict(), *advise(comparison)]
    collect(output)
    record = {
        "verdict": lines,
        "chosen": comparison.chosen,
        "best": comparison.best,
        "methods": comparison.table().to_dict("records"),
        "setup": plan.cells[ZERO_SHOT][0].configuration,
        "folds": comparison.folds,
    }
    texts = {
        VERDICT: to_json(record),
        METHODS: comparison.table().to_csv(index=False),
        CLASSES: comparison.classes().to_csv(index=False),
    }
    for name, text in texts.items():
        with atomic_file(output / name) as fresh:
            fresh.write_text(text, encoding="utf-8")
    (data,) = plan.place.loaded.values()
    rankings = [[comparison.ranking(data.name)]]
    write_benchmark(summarise(plan.records()), ZERO_SHOT, output / PAGE, lines, rankings)
    return lines
