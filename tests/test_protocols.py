"""The protocols: which images are learned from, which are measured, and among which classes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from PIL import Image
from transformers import CLIPImageProcessorPil

from anprompt_peft.data import RGBImage, ShotsError
from anprompt_peft.evaluation.benchmarks import BenchmarkData, draw_shots
from anprompt_peft.evaluation.protocols import PROTOCOLS, class_halves, make_task
from anprompt_peft.evaluation.task import ImageSet, Task

NAMES = ("zebra", "ant", "missile (1)", "cow", "missile (2)")
TRAIN = [3, 0, 4, 3, 1, 2, 0, 0, 1, 2, 4, 3, 2, 1, 4]
TEST = [4, 0, 3, 1, 2, 2, 0]


@pytest.fixture
def processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


def split(labels: Sequence[int], names: Sequence[str], blue: int) -> Dataset:
    """Images whose colour is (row, label, split)."""
    images = [Image.new("RGB", (8, 8), (row, label, blue)) for row, label in enumerate(labels)]
    features = Features({"image": RGBImage(), "label": ClassLabel(names=list(names))})
    return Dataset.from_dict({"image": images, "label": list(labels)}, features=features)


def make_data(
    name: str = "five", names: Sequence[str] = NAMES, train: Sequence[int] = TRAIN, test: Sequence[int] = TEST
) -> BenchmarkData:
    written = {each: each.partition(" (")[0] for each in names if "(" in each}
    return BenchmarkData(name, split(train, names, 1), split(test, names, 2), ("a {}.", "the {}."), written=written)


def content(images: ImageSet) -> list[tuple[int, int]]:
    """Rows in the split and labels there, as the pictures say."""
    return [example["image"].getpixel((0, 0))[:2] for example in images.dataset]


def drawn_by_hand(shots: int, seed: int) -> list[int]:
    stream = random.Random(seed)
    rows = []
    for label in dict.fromkeys(TRAIN):
        rows += stream.sample([row for row, each in enumerate(TRAIN) if each == label], shots)
    return rows


# --- base to new


def test_base_to_new_cuts_the_label_ids_in_halves(processor: CLIPImageProcessorPil) -> None:
    task = make_task(make_data(), processor, "base-to-new", 2, 1)
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
def test_shots_are_drawn_over_all_classes_before_the_cut(seed: int, processor: CLIPImageProcessorPil) -> None:
    rows = drawn_by_hand(2, seed)
    for protocol, kept in (("base-to-new", (0, 1, 2)), ("all-classes", (0, 1, 2)), ("few-shot", (0, 1, 2, 3, 4))):
        shots = make_task(make_data(), processor, protocol, 2, seed).shots
        assert content(shots) == [(row, TRAIN[row]) for row in rows if TRAIN[row] in kept], protocol
        assert shots.labels.tolist() == [TRAIN[row] for row in rows if TRAIN[row] in kept]


def test_the_order_is_that_of_the_label_ids_and_not_alphabetical() -> None:
    assert class_halves(["b", "a", "d", "c"], 1).base == ("b", "a")
    assert class_halves(["c", "b", "a"], 1).base == ("c", "b")
    assert class_halves(["c", "b", "a"], 1).new == ("a",)


def test_random_halves_follow_from_the_seed() -> None:
    names = [f"class {number}" for number in range(9)]
    cuts = {seed: class_halves(names, seed, "random") for seed in range(20)}
    for cut in cuts.values():
        assert len(cut.base) == 5
        assert sorted(cut.base + cut.new) == names
        assert list(cut.base) == sorted(cut.base)
    assert len({cut.base for cut in cuts.values()}) > 15
    assert {name for cut in cuts.values() for name in cut.new} == set(names)
    assert class_halves(names, 3, "random") == cuts[3]


def test_random_halves_keep_the_shots_of_each_class(processor: CLIPImageProcessorPil) -> None:
    seed = 3
    task = make_task(make_data(), processor, "base-to-new", 2, seed, halves="random")
    assert task.classes.names != NAMES[:3]
    kept = [NAMES.index(name) for name in task.classes.names]
    assert kept == sorted(kept)
    rows = [row for row in drawn_by_hand(2, seed) if TRAIN[row] in kept]
    assert content(task.shots) == [(row, TRAIN[row]) for row in rows]
    assert task.shots.labels.tolist() == [kept.index(TRAIN[row]) for row in rows]


# --- the other protocols


def test_all_classes_compete_in_the_generalised_protocol(processor: CLIPImageProcessorPil) -> None:
    task = make_task(make_data(), processor, "all-classes", 2, 1)
    base, new = task.parts
    assert task.classes.names == NAMES[:3]
    assert base.classes.names == new.classes.names == NAMES
    assert base.images.labels.tolist() == [0, 1, 2, 2, 0]
    assert new.images.labels.tolist() == [4, 3]
    assert content(new.images) == [(0, 4), (2, 3)]


def test_few_shot_learns_and_measures_all_classes(processor: CLIPImageProcessorPil) -> None:
    task = make_task(make_data(), processor, "few-shot", 1, 1)
    (part,) = task.parts
    assert (part.name, part.classes.names, task.classes.names) == ("test", NAMES, NAMES)
    assert part.images.labels.tolist() == TEST
    assert len(task.shots) == 5


def test_targets_have_classes_of_their_own(processor: CLIPImageProcessorPil) -> None:
    other = make_data("other", ("x", "y"), [], [1, 0, 1])
    task = make_task(make_data(), processor, "cross-data", 1, 1, targets=[other, make_data("more")])
    assert [part.name for part in task.parts] == ["test", "other", "more"]
    assert task.parts[0].images.labels.tolist() == TEST
    assert task.parts[1].classes.names == ("x", "y")
    assert task.parts[1].images.labels.tolist() == [1, 0, 1]
    assert [part.classes.other_data for part in task.parts] == [False, True, True]
    assert not task.classes.other_data


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_part_has_its_own_datas_ensemble(protocol: str, processor: CLIPImageProcessorPil) -> None:
    data = replace(make_data(), ensemble=("art of the {}.", "itap of a {}."))
    targets = [make_data("other")] if protocol == "cross-data" else []
    task = make_task(data, processor, protocol, 1, 1, targets=targets)
    assert task.classes.in_ensemble().texts[:2] == ["art of the zebra.", "itap of a zebra."]
    assert task.classes.in_ensemble(False) is task.classes
    for part in task.parts:
        expected = () if part.name == "other" else data.ensemble
        assert (part.classes.ensemble, part.classes.templates) == (expected, ("a {}.", "the {}."))
    with pytest.raises(ValueError, match="template 'art' must contain"):
        replace(data, ensemble=("art",))


def test_images_are_prepared_as_clip_does_and_only_shots_are_augmented(processor: CLIPImageProcessorPil) -> None:
    task = make_task(make_data(), processor, "base-to-new", 1, 1)
    shot = task.shots.dataset[0]["image"]
    expected = processor(shot, return_tensors="pt")["pixel_values"]
    assert torch.equal(task.shots.pixels()[:1], expected)
    assert task.shots.augmentation is not None
    assert task.shots.augmentation.augment
    assert all(part.images.augmentation is None for part in task.parts)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_seed_decides_everything(protocol: str, processor: CLIPImageProcessorPil) -> None:
    targets = [make_data("other")] if protocol == "cross-data" else []

    def shots(seed: int) -> list[tuple[int, int]]:
        random.seed(torch.initial_seed())
        task: Task = make_task(make_data(), processor, protocol, 2, seed, targets=targets)
        return content(task.shots)

    assert shots(1) == shots(1)
    assert shots(1) != shots(2)


def test_shots_can_be_given_or_come_from_a_file(tmp_path: Path, processor: CLIPImageProcessorPil) -> None:
    data = make_data()
    drawn = draw_shots(data, 1, 7)
    drawn.save(tmp_path / "shots.json", data)
    for sampling in (drawn, tmp_path / "shots.json"):
        task = make_task(data, processor, "few-shot", 1, 1, sampling=sampling)
        assert content(task.shots) == [(row, TRAIN[row]) for row in drawn.train]
    assert draw_shots(data, 1, 1) != drawn


def test_seeded_shots_of_a_class_do_not_depend_on_other_classes(processor: CLIPImageProcessorPil) -> None:
    few = make_task(make_data(), processor, "few-shot", 2, 1, sampling="seeded")
    base = make_task(make_data(), processor, "base-to-new", 2, 1, sampling="seeded")
    assert content(base.shots) == [each for each in content(few.shots) if each[1] < 3]
    assert content(few.shots) == sorted(content(few.shots))


# --- what does not fit


def test_wrong_tasks_are_refused(processor: CLIPImageProcessorPil) -> None:
    data, other = make_data(), make_data("other")
    with pytest.raises(
        ValueError, match="protocol='zero-shot' must be one of base-to-new, few-shot, all-classes, cross"
    ):
        make_task(data, processor, "zero-shot", 1, 1)
    with pytest.raises(ValueError, match="halves='first' must be one of order, random"):
        make_task(data, processor, "base-to-new", 1, 1, halves="first")
    three = make_data(train=[0, 1, 2], test=[0, 1, 2], names=NAMES[:3])
    for how in ("order", "random"):
        with pytest.raises(ValueError, match=r"each half needs two classes, got base .* and new "):
            make_task(three, processor, "base-to-new", 1, 1, halves=how)
    with pytest.raises(ValueError, match="sampling='dassl' must be one of coop, seeded"):
        make_task(data, processor, "base-to-new", 1, 1, sampling="dassl")
    with pytest.raises(ValueError, match="the protocol cross-data needs targets"):
        make_task(data, processor, "cross-data", 1, 1)
    with pytest.raises(ValueError, match="targets are for the protocol cross-data, not for few-shot"):
        make_task(data, processor, "few-shot", 1, 1, targets=[other])
    with pytest.raises(ValueError, match="targets need different names, and none may be 'test', got other, other"):
        make_task(data, processor, "cross-data", 1, 1, targets=[other, other])
    with pytest.raises(FileNotFoundError):
        make_task(data, processor, "few-shot", 1, 1, sampling="absent.json")


def test_a_base_class_without_images_is_named(processor: CLIPImageProcessorPil) -> None:
    with pytest.raises(ShotsError, match="five: these classes have no image to train on: ant"):
        make_task(make_data(train=[0, 2, 3, 4]), processor, "base-to-new", 1, 1)
    with pytest.raises(ValueError, match="no images of the classes cow, missile"):
        make_task(make_data(test=[0, 1]), processor, "base-to-new", 1, 1)
