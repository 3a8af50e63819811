"""Calibration errors: by hand, against a plain statement of the formula, and against libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from anprompt_peft.evaluation.calibration import adaptive_calibration_error, expected_calibration_error

NETCAL_ECE, NETCAL_ADAPTIVE = 20.92215285976452, 23.48975566736093
"""`netcal.metrics.ECE(15)`, and the same with `equal_intervals=False`, of netcal 1.4.0 for `draw(60, 0)`."""


def draw(images: int, seed: int, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and labels that are less certain than they say."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(classes) * 0.4, size=images)
    softer = probabilities**0.5 / (probabilities**0.5).sum(axis=1, keepdims=True)
    return probabilities, np.array([rng.choice(classes, p=row) for row in softer])


def answers(confidence: list[float], correct: list[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Two classes, the first of which is always the answer."""
    first = np.array(confidence)
    return np.stack([first, 1 - first], axis=1), np.where(correct, 0, 1)


def plainly(probabilities: np.ndarray, labels: np.ndarray, groups: list[list[int]]) -> float:
    total = 0.0
    for group in groups:
        if group:
            accuracy = sum(int(probabilities[row].argmax() == labels[row]) for row in group) / len(group)
            confidence = sum(float(probabilities[row].max()) for row in group) / len(group)
            total += len(group) / len(labels) * abs(accuracy - confidence)
    return 100 * total


def test_by_hand() -> None:
    case = answers([0.6, 0.7, 0.95, 0.85], [True, False, True, True])
    # width: (0.5, 0.75] has 1/2 right at 0.65, (0.75, 1] has 2/2 at 0.9
    assert expected_calibration_error(*case, bins=4) == pytest.approx(100 * (0.5 * 0.15 + 0.5 * 0.1))
    # mass: 0.6, 0.7 and 0.85 are one bin of three: 2/3 right at 0.71666; the other has 0.95
    assert adaptive_calibration_error(*case[:2], bins=1) == pytest.approx(100 * abs(3 / 4 - 3.1 / 4))
    third = answers([0.6, 0.7, 0.95], [True, False, True])
    assert adaptive_calibration_error(*third, bins=2) == pytest.approx(100 * (2 / 3 * 0.15 + 1 / 3 * 0.05))


def test_a_bin_holds_its_upper_edge_and_not_its_lower_one() -> None:
    together = answers([0.75, 0.6], [True, False])
    assert expected_calibration_error(*together, bins=4) == pytest.approx(100 * abs(0.5 - 0.675))
    apart = answers([0.75, 0.8], [True, False])
    assert expected_calibration_error(*apart, bins=4) == pytest.approx(100 * (0.5 * 0.25 + 0.5 * 0.8))
    certain = answers([1.0, 0.9], [True, True])
    assert expected_calibration_error(*certain, bins=4) == pytest.approx(5)


def test_certain_and_right_is_calibrated_and_certain_and_wrong_is_not() -> None:
    for measure in (expected_calibration_error, adaptive_calibration_error):
        assert measure(*answers([1.0, 1.0], [True, True])) == 0
        assert measure(*answers([1.0, 1.0], [False, False])) == 100


@pytest.mark.parametrize(("images", "bins"), [(7, 15), (100, 15), (333, 10)])
def test_against_the_formula(images: int, bins: int) -> None:
    probabilities, labels = draw(images, images)
    confidence = probabilities.max(axis=1)
    by_width = [[row for row in range(images) if at / bins < confidence[row] <= (at + 1) / bins] for at in range(bins)]
    expected = plainly(probabilities, labels, by_width)
    assert abs(expected_calibration_error(probabilities, labels, bins) - expected) < 1e-10
    order, by_mass = sorted(range(images), key=lambda row: confidence[row]), []
    for at in range(bins):
        size = images // bins + (at < images % bins)
        by_mass.append(order[:size])
        order = order[size:]
    expected = plainly(probabilities, labels, by_mass)
    assert abs(adaptive_calibration_error(probabilities, labels, bins) - expected) < 1e-10


def test_against_torchmetrics() -> None:
    probabilities, labels = draw(1000, 3)
    theirs = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(labels), 5, n_bins=15)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(100 * theirs.item(), abs=1e-4)


def test_against_netcal() -> None:
    case = draw(60, 0)
    assert expected_calibration_error(*case) == pytest.approx(NETCAL_ECE, abs=1e-10)
    assert adaptive_calibration_error(*case) == pytest.approx(NETCAL_ADAPTIVE, abs=1e-10)


@pytest.mark.parametrize("measure", [expected_calibration_error, adaptive_calibration_error])
def test_wrong_input_is_refused(measure: type) -> None:
    probabilities, labels = draw(4, 0)
    for wrong in ((probabilities[:0], labels[:0]), (probabilities, labels[:3]), (probabilities[:, 0], labels)):
        with pytest.raises(ValueError, match="at least one image"):
            measure(*wrong)
    with pytest.raises(ValueError, match="bins=0"):
        measure(probabilities, labels, 0)
