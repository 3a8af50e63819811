"""Few-shot sampling: the same shots from the same seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class ShotsError(ValueError):
    """More shots were asked for than there are, or none."""


def sample_shots(labels: Sequence[int] | np.ndarray, shots: int, seed: int) -> list[int]:
    """Return the positions of `shots` examples of every class, drawn without replacement.

    Each class has a random stream of its own, so leaving out other classes does not change its shots.

    Args:
        labels (sequence of `int`): the class of every example.
        shots (`int`): examples per class.
        seed (`int`): names the draw.

    Raises:
        ShotsError: if `shots` is below 1 or a class has fewer examples.
    """
    if shots < 1:
        raise ShotsError(f"shots={shots} must be at least 1.")
    array = np.asarray(labels)
    chosen: list[int] = []
    for label in np.unique(array):
        positions = np.flatnonzero(array == label)
        if len(positions) < shots:
            raise ShotsError(f"shots={shots} asks for more examples than class {label} has ({len(positions)}).")
        rng = np.random.default_rng([seed, int(label)])
        chosen.extend(rng.choice(positions, shots, replace=False).tolist())
    return sorted(chosen)
