"""Few-shot sampling, figures with intervals, calibration, and what results carry and how they are written."""

from __future__ import annotations

import errno
import math
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from anprompt_peft.data import sample_shots
from anprompt_peft.evaluation import (
    Predictions,
    balanced_accuracy,
    base_to_new,
    class_sizes,
    gain,
    harmonic_mean,
    is_imbalanced,
    macro_f1,
)
from anprompt_peft.evaluation.calibration import adaptive_calibration_error, expected_calibration_error
from anprompt_peft.evaluation.metrics import error_by_width
from anprompt_peft.evaluation.predictions import predict_part
from anprompt_peft.evaluation.task import ClassTexts, ImageSet, Part
from anprompt_peft.files import atomic_file, atomic_folder, set_aside
from anprompt_peft.provenance import git_commit, provenance
from peers import BASE, image_set


def test_shots() -> None:
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 2])
    shots = sample_shots(labels, 2, seed=0)
    assert sorted(labels[shots]) == [0, 0, 1, 1, 2, 2]
    assert len(set(shots)) == 6
    assert shots == sample_shots(labels.tolist(), 2, seed=0)
    assert any(shots != sample_shots(labels, 2, seed=seed) for seed in range(1, 5))
    only = sample_shots(np.where(labels == 1, 1, labels + 10), 2, seed=0)
    assert [at for at in only if labels[at] == 1] == [at for at in shots if labels[at] == 1]
    with pytest.raises(ValueError, match=r"more examples than class 0 has\. Use at most 3\."):
        sample_shots(labels, 4, seed=0)
    with pytest.raises(ValueError, match="shots=0"):
        sample_shots(labels, 0, seed=0)


def test_base_to_new_figures() -> None:
    base = np.array([[True, True, True, False], [True, False, True, False]])
    new = np.array([[True, False], [False, False]])
    result = base_to_new(base, new)
    assert result.base.value == pytest.approx(62.5)
    assert result.new.value == pytest.approx(25.0)
    assert result.harmonic_mean.value == pytest.approx(100 * (2 * 0.75 * 0.5 / 1.25 + 0) / 2)
    assert harmonic_mean(np.array([0.0]), np.array([0.0])) == 0
    assert result == base_to_new(base, new)
    for wrong in (base[:1], base[:, :0], base[0]):
        with pytest.raises(ValueError, match="need"):
            base_to_new(wrong, new)


def test_interval_of_one_run_is_that_of_a_proportion() -> None:
    """With one run only images are resampled: close to the normal interval of 300 hits in 400."""
    correct = (np.arange(400) < 300)[None]
    estimate = base_to_new(correct, correct).base
    half_width = 196 * math.sqrt(0.75 * 0.25 / 400)
    assert (estimate.low, estimate.high) == pytest.approx((75 - half_width, 75 + half_width), abs=0.4)


def test_interval_covers_runs_and_images() -> None:
    """Four runs that differ widen the interval; copies of one run do not narrow it."""
    rng = np.random.default_rng(0)
    one = rng.random((1, 500)) < 0.8
    copies = base_to_new(one.repeat(4, axis=0), one.repeat(4, axis=0)).base
    single = base_to_new(one, one).base
    assert (copies.low, copies.high) == pytest.approx((single.low, single.high), abs=0.5)
    differing = rng.random((4, 500)) < np.array([[0.6], [0.7], [0.9], [1.0]])
    wide = base_to_new(differing, differing).base
    assert wide.high - wide.low > 2 * (single.high - single.low)


def test_gain_is_paired() -> None:
    """What both got right on the same images cancels: 8 more of 400 right has the interval of that 2 % alone."""
    before = np.arange(400) % 2 == 0
    runs = np.stack([before, before])
    nothing = gain(runs, runs, before, before)
    for estimate in (nothing.base, nothing.new, nothing.harmonic_mean):
        assert (estimate.value, estimate.low, estimate.high) == (0, 0, 0)
    better = before | (np.arange(400) < 16)
    gained = gain(np.stack([better, better]), runs, before, before)
    half_width = 196 * math.sqrt(0.02 * 0.98 / 400)
    assert gained.base.value == pytest.approx(2)
    assert (gained.base.low, gained.base.high) == pytest.approx((2 - half_width, 2 + half_width), abs=0.3)
    assert gained.new.value == 0
    assert gained.harmonic_mean.value == pytest.approx(100 * (2 * 0.52 * 0.5 / 1.02 - 0.5))
    assert gained == gain(np.stack([better, better]), runs, before, before)
    with pytest.raises(ValueError, match="dimension"):
        gain(runs, runs, before[:-1], before)


def read_as(labels: list[int], predicted: list[int]) -> Predictions:
    """Predictions for images of up to four classes."""
    return Predictions("test", list("abcd"), np.array(labels), np.array(predicted))


@pytest.mark.parametrize(
    ("labels", "predicted", "accuracy", "recall", "f1"),
    [
        # a: 3 of 4 right, and all that was read as a is a; b: 1 of 1 right, of 2 read as b
        ([0, 0, 0, 0, 1], [0, 0, 0, 1, 1], 4 / 5, (3 / 4 + 1) / 2, (6 / 7 + 2 / 3) / 2),
        # always the larger class: b is never read
        ([0] * 9 + [1], [0] * 10, 9 / 10, 1 / 2, (18 / 19 + 0) / 2),
        # c and d have no images; an image of a read as d lowers a's recall and nothing else
        ([0, 0, 1, 1], [0, 3, 1, 1], 3 / 4, (1 / 2 + 1) / 2, (2 / 3 + 1) / 2),
        ([2, 2, 3], [3, 3, 2], 0, 0, 0),
    ],
)
def test_every_class_counts_the_same(
    labels: list[int], predicted: list[int], accuracy: float, recall: float, f1: float
) -> None:
    part = read_as(labels, predicted)
    assert part.accuracy == pytest.approx(100 * accuracy)
    assert part.balanced_accuracy == balanced_accuracy(part) == pytest.approx(100 * recall)
    assert part.macro_f1 == macro_f1(part) == pytest.approx(100 * f1)
    with pytest.raises(ValueError, match="'test' have no probabilities, which calibration needs"):
        part.ece  # noqa: B018


@pytest.mark.parametrize(
    ("sizes", "expected"), [((2, 3, 0, 0), False), ((2, 4, 0, 0), True), ((5, 5, 5, 5), False), ((0, 0, 0, 7), False)]
)
def test_imbalance(sizes: tuple[int, ...], expected: bool) -> None:
    """1.5 times the smallest class is balanced, more is not; absent classes do not count."""
    labels = np.arange(4).repeat(sizes).tolist()
    part = read_as(labels, labels)
    assert is_imbalanced(part) == expected
    assert class_sizes(part) == (min(filter(None, sizes)), max(sizes))


@dataclass(frozen=True)
class Fixed:
    """A method that always gives the same logits."""

    given: torch.Tensor

    def logits(self, images: ImageSet, classes: ClassTexts) -> torch.Tensor:
        return self.given


def test_what_a_method_says_of_a_part() -> None:
    drawn, part = torch.randn(9, 3), Part("new", image_set([0, 1, 2] * 3), BASE)
    found, probabilities = predict_part(Fixed(drawn), part), drawn.double().softmax(-1).numpy()
    assert (found.name, found.class_names) == ("new", BASE.names)
    assert found.labels.tolist() == [0, 1, 2] * 3
    assert found.predicted.tolist() == drawn.argmax(-1).tolist()
    assert found.accuracy == 100 * float((found.labels == found.predicted).mean())
    assert (found.confidence == probabilities.max(1)).all()
    assert found.ece == expected_calibration_error(probabilities, found.labels)
    assert found.adaptive_ece == adaptive_calibration_error(probabilities, found.labels)
    assert replace(found, probabilities=None).ece == found.ece
    for wrong, message in (
        (drawn[:, :2], r"the logits for part 'new' have shape \(9, 2\), not \(9, 3\)"),
        (drawn / 0, "the logits for images of new hold NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            predict_part(Fixed(wrong), part)


# --- calibration


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
    lowest = np.array([0.2, 0.3]), np.array([True, False])
    assert error_by_width(*lowest, bins=4) == pytest.approx(100 * (0.5 * 0.8 + 0.5 * 0.3))
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


# --- provenance and files


def test_provenance_names_versions_and_commit() -> None:
    record = provenance()
    assert record["versions"]["torch"] == torch.__version__
    assert record["hardware"]["cpu_count"] >= 1
    assert record["git_commit"] is None or len(record["git_commit"].removesuffix("-dirty")) == 40


def run_git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=alice", "-c", "user.email=alice@localhost")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def make_repository(folder: Path, name: str) -> Path:
    """A repository whose own file monitor and hook write a file; return that file."""
    folder.mkdir(parents=True)
    trace, spy = folder.parent / "ran", folder.parent / "spy.sh"
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    run_git(folder, "init", "--quiet")
    run_git(folder, "add", ".")
    run_git(folder, "commit", "--quiet", "--message", "First")
    spy.write_text(f"#!/bin/sh\necho run >> '{trace}'\n")
    spy.chmod(0o755)
    hook = folder / ".git" / "hooks" / "post-index-change"
    hook.parent.mkdir(exist_ok=True)
    hook.write_bytes(spy.read_bytes())
    hook.chmod(0o755)
    run_git(folder, "config", "core.fsmonitor", str(spy))
    return trace


def test_no_repository_around_the_package_is_asked(tmp_path: Path) -> None:
    """Its commit says nothing about this package, and its file monitor is a program of anybody's."""
    trace = make_repository(tmp_path / "users", "users-project")
    package = tmp_path / "users" / "env" / "site-packages" / "anprompt_peft"
    package.mkdir(parents=True)
    assert git_commit(package) is None
    assert git_commit(tmp_path / "users" / "anprompt_peft") is None
    (package.parent / "pyproject.toml").write_text('[project]\nname = "anprompt-peft"\n')
    assert git_commit(package) is None
    (package.parent / ".git").mkdir()  # it is no repository, so git would look above
    assert git_commit(package) is None
    assert not trace.exists()


def test_the_commit_of_the_own_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever variables say; neither hooks nor the file monitor run."""
    trace = make_repository(tmp_path / "clone", "anprompt-peft")
    make_repository(tmp_path / "elsewhere" / "users", "users-project")
    head = run_git(tmp_path / "clone", "-c", "core.fsmonitor=false", "rev-parse", "HEAD")
    package = tmp_path / "clone" / "anprompt_peft"
    for name, value in {"GIT_DIR": ".git", "GIT_WORK_TREE": ".", "GIT_CONFIG_COUNT": "1"}.items():
        monkeypatch.setenv(name, str(tmp_path / "elsewhere" / "users" / value))
    (tmp_path / "clone" / "pyproject.toml").touch()
    assert git_commit(package) == head
    (tmp_path / "clone" / "pyproject.toml").write_text('# changed\n[project]\nname = "anprompt-peft"\n')
    assert git_commit(package) == f"{head}-dirty"
    assert not trace.exists()


def interrupted_write(folder: Path) -> None:
    with atomic_folder(folder, replaces="a") as fresh:
        (fresh / "a").write_text("two")
        raise KeyboardInterrupt


def test_folders_are_written_atomically(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    with atomic_folder(folder) as fresh:
        (fresh / "a").write_text("one")
        assert not folder.exists()
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(folder)
    assert (folder / "a").read_text() == "one"
    with atomic_folder(folder, replaces="a") as fresh:
        (fresh / "b").write_text("three")
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    assert [path.name for path in folder.iterdir()] == ["b"]


def fill(folder: Path) -> None:
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")


@pytest.mark.parametrize("replaces", [None, "results.json"])
@pytest.mark.parametrize("at_last", [False, True], ids=["in the block", "before the renaming"])
@pytest.mark.parametrize("put", [fill, lambda folder: folder.write_text("mine")], ids=["folder", "file"])
def test_what_another_process_puts_in_the_place_meanwhile_stays(
    put: Callable[[Path], Any], at_last: bool, replaces: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename = tmp_path / "results", Path.rename
    if at_last:
        monkeypatch.setattr(Path, "rename", lambda path, target: (put(target), rename(path, target)))
    with pytest.raises(FileExistsError), atomic_folder(folder, replaces) as fresh:  # noqa: PT012
        (fresh / "a").write_text("late")
        if not at_last:
            put(folder)
    assert (folder.read_text() if folder.is_file() else (folder / "mine.txt").read_text()) == "mine"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_result_that_could_not_be_replaced_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rename = tmp_path / "results", Path.rename
    fill(folder)

    def fail(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output"), atomic_folder(folder, replaces="mine.txt") as fresh:
        (fresh / "mine.txt").write_text("new")
    assert (folder / "mine.txt").read_text() == "mine"


def test_all_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the name is, before the block ends: files, folders and the folder that holds them."""
    events: list[tuple[str, str]] = []
    sync, rename, replace = os.fsync, Path.rename, Path.replace

    def synced(handle: int) -> None:
        events.append(("sync", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        sync(handle)

    def naming(original: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def named(path: Path, target: Path) -> Path:
            events.append(("name", target.name))
            return original(path, target)

        return named

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", naming(rename))
    monkeypatch.setattr(Path, "replace", naming(replace))
    with atomic_folder(tmp_path / "folder") as fresh:
        (fresh / "sub").mkdir()
        (fresh / "sub" / "a").write_text("1")
    assert set(events[:3]) == {("sync", "new"), ("sync", "sub"), ("sync", "a")}
    assert events[3:] == [("name", "folder"), ("sync", tmp_path.name)]
    events.clear()
    with atomic_file(tmp_path / "file") as path:
        path.write_text("1")
    assert events[0] == ("sync", "file")
    assert events[-2:] == [("name", "file"), ("sync", tmp_path.name)]
    (tmp_path / "folder").mkdir(exist_ok=True)
    events.clear()
    assert set_aside(tmp_path / "folder") == tmp_path / "damaged-folder"
    assert events == [("name", "damaged-folder"), ("sync", tmp_path.name)]


@pytest.mark.parametrize(("target", "message"), [("full", "is not empty"), ("full/mine.txt", "is a file")])
def test_nothing_else_is_replaced(target: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=message), atomic_folder(tmp_path / target, replaces="results.json"):
        pass
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
