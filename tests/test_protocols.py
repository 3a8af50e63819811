"""The protocols: which images are drawn and learned from, which are measured, and among which classes."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import CLIPImageProcessorPil

from anprompt_peft.data import ShotsError
from anprompt_peft.evaluation.benchmarks import BenchmarkData, Shots, draw_shots
from anprompt_peft.evaluation.protocols import PROTOCOLS, class_halves, make_task
from anprompt_peft.evaluation.task import ImageSet, Task
from pictures import assert_refused, labelled, photo_tree

NAMES = ("zebra", "ant", "missile (1)", "cow", "missile (2)")
TRAIN = [3, 0, 4, 3, 1, 2, 0, 0, 1, 2, 4, 3, 2, 1, 4]
TEST = [4, 0, 3, 1, 2, 2, 0]
PROCESSOR = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


def split(labels: Sequence[int], names: Sequence[str], blue: int) -> Dataset:
    """Images whose colour is (row, label, split)."""
    return labelled(labels, names, [Image.new("RGB", (8, 8), (row, label, blue)) for row, label in enumerate(labels)])


def make_data(
    name: str = "five", names: Sequence[str] = NAMES, train: Sequence[int] = TRAIN, test: Sequence[int] = TEST
) -> BenchmarkData:
    written = {each: each.partition(" (")[0] for each in names if "(" in each}
    return BenchmarkData(name, split(train, names, 1), split(test, names, 2), ("a {}.", "the {}."), written=written)


def task_of(protocol: str, shots: int = 1, seed: int = 1, data: BenchmarkData | None = None, **options: Any) -> Task:
    if protocol == "cross-data":
        options = {"targets": [make_data("other")], **options}
    return make_task(data or make_data(), PROCESSOR, protocol, shots, seed, **options)


def content(images: ImageSet) -> list[tuple[int, int]]:
    """Rows in the split and labels there, as the pictures say."""
    return [example["image"].getpixel((0, 0))[:2] for example in images.dataset]


def drawn_by_hand(labels: Sequence[int], shots: int, stream: random.Random) -> list[int]:
    """CoOp's draw: classes by their first image, from one stream; all images of a class that has fewer."""
    rows = []
    for label in dict.fromkeys(labels):
        items = [row for row, each in enumerate(labels) if each == label]
        rows += stream.sample(items, shots) if shots <= len(items) else items
    return rows


# --- shots

TRAIN_LABELS = [2, 0, 2, 1, 0, 0, 2, 2, 0, 2, 0, 2]
VAL_LABELS = [1, 2, 0, 0, 2, 0, 2, 0, 0, 2, 2]
ABC = BenchmarkData("x", labelled(TRAIN_LABELS), labelled([0]), validation=labelled(VAL_LABELS))


@pytest.mark.parametrize("seed", [1, 2, 3, 17])
@pytest.mark.parametrize("shots", [1, 2, 4, 5, 16])
def test_shots_are_coops(shots: int, seed: int) -> None:
    """From train, then at most four of each class from validation, from the same stream."""
    stream = random.Random(seed)
    expected = [drawn_by_hand(labels, n, stream) for labels, n in ((TRAIN_LABELS, shots), (VAL_LABELS, min(shots, 4)))]
    assert draw_shots(ABC, shots, seed) == Shots(*map(tuple, expected))


def test_a_class_with_fewer_images_gives_all_it_has() -> None:
    drawn = draw_shots(replace(ABC, validation=None), 6, 1)
    assert [TRAIN_LABELS[row] for row in drawn.train] == [2] * 6 + [0] * 5 + [1]
    assert drawn.train[6:] == (1, 4, 5, 8, 10, 3)
    assert drawn.validation == ()


def test_the_state_of_the_random_numbers_does_not_matter() -> None:
    random.seed(5)
    first, state = draw_shots(ABC, 2, 1), random.getstate()
    random.seed(6)
    assert draw_shots(ABC, 2, 1) == first
    random.seed(5)
    assert random.getstate() == state, "nor is it changed"


def test_wrong_draws_are_refused() -> None:
    assert_refused("sampling='dassl' must be one of coop, seeded", draw_shots, ABC, 1, 1, "dassl")
    for data, shots, sampling, message in [
        (ABC, 0, "coop", "shots=0 must be at least 1"),
        (replace(ABC, train=labelled([])), 1, "coop", "x has no images to train on"),
        (ABC, 2, "seeded", "class 1 has"),
    ]:
        with pytest.raises(ShotsError, match=message):
            draw_shots(data, shots, 1, sampling)


def test_shots_are_stored_as_json(tmp_path: Path) -> None:
    photo_tree(tmp_path, "a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg")
    train, validation = (
        labelled([0, 0, 1, 1][at:], "ab", [str(path) for path in sorted(tmp_path.rglob("*.jpg"))][at:])
        for at in (0, 1)
    )
    data = BenchmarkData("letters", train, train, validation=validation)
    drawn, path = draw_shots(data, 1, 1), tmp_path / "shots.json"
    drawn.save(path, data)
    record = json.loads(path.read_text())
    assert record["data"] == "letters"
    assert record["train"] == [[row, f"{'ab'[row // 2]}/{row + 1}.jpg", "ab"[row // 2]] for row in drawn.train]
    assert len(record["validation"]) == 2
    assert Shots.load(path, data) == drawn
    record["train"][0][1] = "c/9.jpg"
    message = r"shots\.json does not hold shots of letters: "
    path.write_text(json.dumps(record))
    assert_refused(message + r".*c/9\.jpg.* is not what the data have", Shots.load, path, data)
    path.write_text("[]")
    assert_refused(message, Shots.load, path, data)


# --- base to new


def test_base_to_new_cuts_the_label_ids_in_halves() -> None:
    task = task_of("base-to-new", 2)
    base, new = task.parts
    assert (base.name, new.name) == ("base", "new")
    assert task.classes.names == base.classes.names == NAMES[:3], "of 5 classes 3 are base"
    assert new.classes.names == NAMES[3:]
    assert base.images.labels.tolist() == [0, 1, 2, 2, 0]
    assert content(base.images) == [(1, 0), (3, 1), (4, 2), (5, 2), (6, 0)]
    assert new.images.labels.tolist() == [1, 0], "new classes are numbered from 0"
    assert content(new.images) == [(0, 4), (2, 3)]
    assert task.classes.templates == ("a {}.", "the {}.")
    assert base.classes.written == ("zebra", "ant", "missile")
    assert new.classes.written == ("cow", "missile")


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("protocol", "learned"), [("base-to-new", 3), ("all-classes", 3), ("few-shot", 5)])
def test_shots_are_drawn_over_all_classes_before_the_cut(protocol: str, learned: int, seed: int) -> None:
    shots = task_of(protocol, 2, seed).shots
    rows = drawn_by_hand(TRAIN, 2, random.Random(seed))
    assert content(shots) == [(row, TRAIN[row]) for row in rows if TRAIN[row] < learned]
    assert shots.labels.tolist() == [TRAIN[row] for row in rows if TRAIN[row] < learned]


def test_halves_are_in_the_order_of_the_label_ids_or_follow_from_the_seed() -> None:
    assert class_halves(["b", "a", "d", "c"], 1).base == ("b", "a")
    assert class_halves(["c", "b", "a"], 1).base == ("c", "b")
    assert class_halves(["c", "b", "a"], 1).new == ("a",)
    names = [f"class {number}" for number in range(9)]
    cuts = {seed: class_halves(names, seed, "random") for seed in range(20)}
    for cut in cuts.values():
        assert (len(cut.base), sorted(cut.base + cut.new)) == (5, names)
        assert list(cut.base) == sorted(cut.base)
    assert len({cut.base for cut in cuts.values()}) > 15
    assert {name for cut in cuts.values() for name in cut.new} == set(names)
    assert class_halves(names, 3, "random") == cuts[3]


@pytest.mark.parametrize("count", [4, 7])
def test_paired_halves_come_in_both_orders(count: int) -> None:
    names = [f"class {number:02}" for number in range(count)]
    cuts = [class_halves(names, seed, "paired") for seed in range(1, 9)]
    for odd, even in zip(cuts[::2], cuts[1::2], strict=True):
        assert (odd.base, odd.new) == (even.new, even.base)
        assert sorted(odd.base + odd.new) == names
        assert [*odd.base] == sorted(odd.base)
    assert cuts[0] == class_halves(names, 1, "random")
    assert len({cut.base for cut in cuts}) > 3


def test_random_halves_keep_the_shots_of_each_class() -> None:
    task = task_of("base-to-new", 2, 3, halves="random")
    assert task.classes.names != NAMES[:3]
    base = [NAMES.index(name) for name in task.classes.names]
    assert base == sorted(base)
    rows = [row for row in drawn_by_hand(TRAIN, 2, random.Random(3)) if TRAIN[row] in base]
    assert content(task.shots) == [(row, TRAIN[row]) for row in rows]
    assert task.shots.labels.tolist() == [base.index(TRAIN[row]) for row in rows]


# --- the other protocols


def test_all_classes_compete_in_the_generalised_protocol() -> None:
    task = task_of("all-classes", 2)
    base, new = task.parts
    assert task.classes.names == NAMES[:3]
    assert base.classes.names == new.classes.names == NAMES
    assert base.images.labels.tolist() == [0, 1, 2, 2, 0]
    assert new.images.labels.tolist() == [4, 3]
    assert content(new.images) == [(0, 4), (2, 3)]


def test_few_shot_learns_and_measures_all_classes() -> None:
    task = task_of("few-shot")
    (part,) = task.parts
    assert (part.name, part.classes.names, task.classes.names) == ("test", NAMES, NAMES)
    assert part.images.labels.tolist() == TEST
    assert len(task.shots) == 5


def test_targets_have_classes_of_their_own() -> None:
    other = make_data("other", ("x", "y"), [], [1, 0, 1])
    task = task_of("cross-data", targets=[other, make_data("more")])
    assert [part.name for part in task.parts] == ["test", "other", "more"]
    assert task.parts[0].images.labels.tolist() == TEST
    assert task.parts[1].classes.names == ("x", "y")
    assert task.parts[1].images.labels.tolist() == [1, 0, 1]
    assert [part.classes.other_data for part in task.parts] == [False, True, True]
    assert not task.classes.other_data


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_part_has_its_own_datas_ensemble(protocol: str) -> None:
    data = replace(make_data(), ensemble=("art of the {}.", "itap of a {}."))
    task = task_of(protocol, data=data)
    assert task.classes.in_ensemble().texts[:2] == ["art of the zebra.", "itap of a zebra."]
    assert task.classes.in_ensemble(False) is task.classes
    for part in task.parts:
        expected = () if part.name == "other" else data.ensemble
        assert (part.classes.ensemble, part.classes.templates) == (expected, ("a {}.", "the {}."))


def test_images_are_prepared_as_clip_does_and_only_shots_are_augmented() -> None:
    task = task_of("base-to-new")
    expected = PROCESSOR(task.shots.dataset[0]["image"], return_tensors="pt")["pixel_values"]
    assert torch.equal(task.shots.pixels()[:1], expected)
    assert task.shots.augmentation is not None
    assert task.shots.augmentation.augment
    assert all(part.images.augmentation is None for part in task.parts)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_seed_decides_everything(protocol: str) -> None:
    def shots(seed: int) -> list[tuple[int, int]]:
        random.seed(torch.initial_seed())
        return content(task_of(protocol, 2, seed).shots)

    assert shots(1) == shots(1)
    assert shots(1) != shots(2)


def test_shots_can_be_given_or_come_from_a_file(tmp_path: Path) -> None:
    data = make_data()
    drawn = draw_shots(data, 1, 7)
    drawn.save(tmp_path / "shots.json", data)
    for sampling in (drawn, tmp_path / "shots.json"):
        assert content(task_of("few-shot", data=data, sampling=sampling).shots) == [(r, TRAIN[r]) for r in drawn.train]
    assert draw_shots(data, 1, 1) != drawn


def test_seeded_shots_of_a_class_do_not_depend_on_other_classes() -> None:
    few, base = (content(task_of(each, 2, sampling="seeded").shots) for each in ("few-shot", "base-to-new"))
    assert base == [each for each in few if each[1] < 3]
    assert few == sorted(few)


# --- what does not fit

THREE = make_data(train=[0, 1, 2], test=[0, 1, 2], names=NAMES[:3])


@pytest.mark.parametrize(
    ("protocol", "options", "message"),
    [
        ("zero-shot", {}, "protocol='zero-shot' must be one of base-to-new, few-shot, all-classes, cross"),
        ("base-to-new", {"halves": "first"}, "halves='first' must be one of order, random, paired"),
        ("base-to-new", {"data": THREE}, "each half needs two classes, got base .* and new "),
        ("base-to-new", {"data": THREE, "halves": "random"}, "each half needs two classes, got base .* and new "),
        ("base-to-new", {"sampling": "dassl"}, "sampling='dassl' must be one of coop, seeded"),
        ("cross-data", {"targets": []}, "the protocol cross-data needs targets"),
        ("few-shot", {"targets": [THREE]}, "targets are for the protocol cross-data, not for few-shot"),
        ("cross-data", {"targets": [THREE, THREE]}, "need different names, and none may be 'test', got five, five"),
        ("base-to-new", {"data": make_data(test=[0, 1])}, "no images of the classes cow, missile"),
    ],
)
def test_wrong_tasks_are_refused(protocol: str, options: dict[str, Any], message: str) -> None:
    assert_refused(message, task_of, protocol, **options)


def test_shots_that_are_not_there_are_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        task_of("few-shot", sampling="absent.json")
    with pytest.raises(ShotsError, match="five: these classes have no image to train on: ant"):
        task_of("base-to-new", data=make_data(train=[0, 2, 3, 4]))
