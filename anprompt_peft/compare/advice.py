"""What to do next: more shots for which classes, what is confused, and names that CLIP reads badly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..data.names import codes
from ..evaluation.predictions import Predictions
from ..evaluation.tables import confused_pairs, count_confusions
from .methods import COMPARED, ENSEMBLE, PROBE, ZERO_SHOT
from .verdict import Comparison, points

NAMED = 3
"""Most classes, or pairs of them, that a sentence names."""
READ_BADLY = 0.5
"""Share of a classifier's accuracy on a class below which zero-shot CLIP's says that its name is read badly."""
ENOUGH = 1.0  # point that twice the shots may gain at most where more will hardly help
WORTH_NAMING = 0.02  # of a class's images that are taken for one other


def advise(comparison: Comparison) -> list[str]:
    """Return at most three sentences; where nothing is to be said, fewer."""
    return [*_more_shots(comparison), *_confused(comparison), *_names(comparison)]


def _more_shots(comparison: Comparison) -> Iterator[str]:
    if not comparison.half:
        return
    gained = comparison.over_half()
    after = _recalls(comparison.pooled(PROBE))
    before = _recalls(comparison.pool(comparison.half))
    names = comparison.class_names
    most = [at for at in np.argsort(before - after, kind="stable") if after[at] - before[at] > 0][:NAMED]
    told = ", ".join(f"{names[at]} ({100 * (after[at] - before[at]):+.0f})" for at in most)
    text = f"With {comparison.shots} shots in place of {comparison.shots // 2} the linear probe gains {points(gained)}"
    if gained.told_apart and gained.value > 0:
        yield f"{text}: label more, first of {told}." if told else f"{text}: label more."
    elif gained.high is not None and gained.high > ENOUGH:
        yield f"{text}: whether more would help is open."
    else:
        yield f"{text}: more alone will hardly help."


def _confused(comparison: Comparison) -> Iterator[str]:
    counts, names = count_confusions(comparison.pooled(comparison.chosen)), comparison.class_names
    shares = [(true, read, counts[true, read] / counts[true].sum()) for true, read in confused_pairs(counts)]
    shown = [f"{names[true]} for {names[read]} ({share:.0%})" for true, read, share in shares if share >= WORTH_NAMING]
    if shown:
        yield f"Most often it takes {_first(shown)} of the images."


def _names(comparison: Comparison) -> Iterator[str]:
    """Say which names or templates CLIP reads badly: those by which it does not find what can be told apart."""
    names = comparison.class_names
    others = [name for name in comparison.methods if name not in (ZERO_SHOT, ENSEMBLE)]
    best = max(others, key=lambda name: comparison.methods[name].accuracy, default=None)
    if found := codes(names):
        yield f"CLIP reads class names, and {_first(found)} say nothing to it: give others with --rename."
    elif best is not None:
        learned, read = (_recalls(comparison.pooled(name)) for name in (best, ZERO_SHOT))
        badly = [at for at in np.argsort(read - learned, kind="stable") if read[at] < READ_BADLY * learned[at]]
        shown = [f"{names[at]} ({100 * read[at]:.0f} % against {100 * learned[at]:.0f} %)" for at in badly]
        if shown:
            yield (
                f"By name alone CLIP hardly finds {_first(shown)}: try other names (--rename) or "
                "templates (--template)."
            )
            return
    if ENSEMBLE in comparison.methods:
        gained = comparison.difference(ENSEMBLE, ZERO_SHOT)
        if gained.told_apart and gained.value > 0:
            yield f"{COMPARED[ENSEMBLE].title} gains {points(gained)} over yours: give several with --template."


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED])


def _recalls(part: Predictions) -> np.ndarray:
    """Return the accuracy on each class, 0..1; 0 for one without images."""
    counts = count_confusions(part)
    return counts.diagonal() / np.maximum(1, counts.sum(axis=1))
