"""`anprompt data` and the checks that it shares with `anprompt train`: prompts, names, pictures in two places."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageEnhance, ImageOps
from transformers import AutoTokenizer, CLIPModel

from anprompt_cli.jobs import train as training_job
from anprompt_peft.data import check_images, load_image_data
from anprompt_peft.data.duplicates import Duplicates, Looks, find_duplicates
from anprompt_peft.data.names import foreign, same_meaning
from anprompt_peft.data.prompts import read_prompts
from command import call, done, refused
from photographs import photograph

TINY_CLIP = Path(__file__).parents[1] / "examples" / "embedded" / "tiny_clip"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight pictures of two classes to train on, and two to measure on."""
    folder, seed = tmp_path / "photos", 0
    for split, count in (("train", 4), ("test", 1)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                photograph(seed := seed + 1).save(folder / split / name / f"{number}.png")
    return folder


def found_in(folder: Path, compared: bool = True) -> Duplicates:
    """The pictures that are in several places of a folder."""
    parts = []
    for split, dataset in load_image_data(folder).items():
        looks = Looks()
        parts.append((split, check_images(dataset, look=looks.add).dataset, looks if compared else None))
    return find_duplicates(parts, folder)


def names(groups: Any) -> list[list[str]]:
    return [[copy.name for copy in group] for group in groups]


# pictures in two places


def test_other_pictures_are_not_taken_for_copies(photos: Path, digits: Path) -> None:
    """Nor are digits, of which some are much alike, nor surfaces of other colours or brightness."""
    for number, colour in enumerate(("red", "green", "black", "white")):
        Image.new("RGB", (40, 40), colour).save(photos / "train" / "cat" / f"{colour}{number}.png")
    assert found_in(photos).groups == found_in(digits).groups == []


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((320, 240)),
        lambda image: image.resize((80, 60)),
        lambda image: ImageEnhance.Brightness(image).enhance(1.05),
        lambda image: ImageEnhance.Contrast(image).enhance(0.9),
    ],
    ids=["larger", "smaller", "brighter", "paler"],
)
def test_pictures_that_were_saved_again_are_found(change: Callable[[Image.Image], Image.Image], photos: Path) -> None:
    with Image.open(photos / "train" / "cat" / "0.png") as image:
        change(image.convert("RGB")).save(photos / "test" / "dog" / "again.jpg", quality=80)
    found = found_in(photos)
    same = [["train/cat/0.png", "test/dog/again.jpg"]]
    assert names(found.in_two_classes()) == names(found.in_two_splits()) == same
    assert found.in_one_class() == []
    assert found_in(photos, compared=False).groups == []


def test_a_mirrored_picture_is_another_one(photos: Path) -> None:
    with Image.open(photos / "train" / "cat" / "0.png") as image:
        ImageOps.mirror(image).save(photos / "test" / "cat" / "mirrored.png")
    assert found_in(photos).groups == []


@pytest.mark.parametrize("compared", [True, False])
def test_copies_of_a_file_are_one_group(compared: bool, photos: Path) -> None:
    for place in ("train/cat/copy.png", "train/dog/copy.png", "test/cat/copy.png"):
        shutil.copy(photos / "train" / "cat" / "1.png", photos / place)
    shutil.copy(photos / "train" / "dog" / "2.png", photos / "train" / "dog" / "twice.png")
    found = found_in(photos, compared)
    group = ["train/cat/1.png", "train/cat/copy.png", "train/dog/copy.png", "test/cat/copy.png"]
    assert names(found.in_two_classes()) == names(found.in_two_splits()) == [group]
    assert names(found.in_one_class()) == [["train/dog/2.png", "train/dog/twice.png"]]


def test_many_pictures_are_compared_in_blocks(monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    shutil.copy(photos / "train" / "cat" / "0.png", photos / "test" / "dog" / "last.png")
    with Image.open(photos / "train" / "cat" / "2.png") as image:
        image.save(photos / "train" / "dog" / "again.jpg", quality=90)
    whole = found_in(photos)
    assert len(whole.groups) == 2
    monkeypatch.setattr("anprompt_peft.data.duplicates.BLOCK", 2)
    assert found_in(photos) == whole


# prompts and names


def test_a_prompt_is_shown_as_the_tokenizer_splits_it() -> None:
    """The pieces are those of its own tokens, and what does not fit into the context is cut off."""
    tokenizer = AutoTokenizer.from_pretrained(TINY_CLIP)
    texts = ["Black footed Albatross", "Übergröße", "n01440764"]
    for name, prompt in zip(texts, read_prompts(texts, ["a photo of a {}."], tokenizer, 77), strict=True):
        assert (prompt.class_name, prompt.text, prompt.cut) == (name, f"a photo of a {name}.", "")
        assert prompt.read.replace("·", "") == prompt.text
        assert prompt.tokens == len(tokenizer(prompt.text)["input_ids"])
    assert prompt.read == "a photo of a n·0·1·4·4·0·7·6·4."
    (cut,) = read_prompts(["horse"], ["a photo of a {} in the dark"], tokenizer, 8)
    assert (cut.read + cut.cut).replace("·", "") == cut.text
    assert len(tokenizer(cut.read.replace("·", ""))["input_ids"]) == 8 < cut.tokens


def test_names_that_mean_the_same_are_told() -> None:
    listed = ["cat", "Cats", "ice cream", "ice-creams", "icecream", "red rose", "rose, red", "glass", "boeing 737"]
    assert same_meaning([*listed, "boeing 747", "glas"]) == [
        ["cat", "Cats"],
        ["ice cream", "ice-creams", "icecream"],
        ["ice cream", "ice-creams"],
        ["red rose", "rose, red"],
    ]
    assert foreign(["chien", "Über", "猫", "кот", "3", "cat 猫"]) == ["猫", "кот", "cat 猫"]


# the command


def test_the_dry_run_of_good_data_has_nothing_to_change(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No CLIP is loaded: its folder may lack the weights."""
    monkeypatch.setattr(CLIPModel, "from_pretrained", None)
    answer = done("data", photos, "--model", TINY_CLIP, "--template", "a photo of my {}.")
    assert answer.out.splitlines() == [
        f"Read {photos}: train 8 images of 2 classes (4 each); test 2 images of 2 classes (1 each).",
        "",
        "class      train  test",
        "cat            4     1",
        "dog            4     1",
        "2 classes      8     2",
        "",
        "class  tokens  prompt (· splits a word)",
        "cat    10      a photo of m·y c·at.",
        "dog    9       a photo of m·y dog.",
        "",
        "Nothing to change.",
    ]


def test_the_dry_run_tells_all_that_is_wrong(photos: Path) -> None:
    train = photos / "train"
    (train / "cat" / "broken.png").write_text("no image")
    (train / "cat" / "note.txt").write_text("a note")
    shutil.copy(train / "cat" / "0.png", train / "dog" / "copy.png")
    shutil.copy(train / "cat" / "1.png", photos / "test" / "cat" / "copy.png")
    shutil.copy(train / "cat" / "2.png", train / "cat" / "copy.png")
    for name in ("cats", "n0144"):
        (train / name).mkdir()
        photograph(50 + len(name)).save(train / name / "0.png")
    (photos / "test" / "owl").mkdir()
    photograph(60).save(photos / "test" / "owl" / "0.png")
    answer = call("data", photos, "--model", TINY_CLIP)
    assert answer.code == 1
    head, _, rest = answer.out.partition("A training would refuse:\n")
    refusals, _, others = rest.partition("\nTo look at:\n")
    assert f"Left out of {photos}: .txt 1." in head.splitlines()
    assert "owl            0     1" in head.splitlines()
    assert "test has images of classes that train has none of to train on: owl." in refusals
    assert "broken.png cannot be decoded" in refusals
    assert "Classes are called n0144: CLIP reads class names" in others
    assert "names that CLIP hardly tells apart: 'cat' and 'cats'." in others
    two = "1 picture is in two {}, the same or nearly the same: {}. Keep each in one"
    assert two.format("classes", "train/cat/0.png (cat) = train/dog/copy.png (dog)") in others
    assert two.format("splits", "train/cat/1.png (cat) = test/cat/copy.png (cat)") in others
    assert "1 picture is in one class several times" in others
    record = json.loads(call("data", photos, "--model", TINY_CLIP, "--json", "--on-corrupt", "skip").out)
    assert record["counts"]["train"] == {"cat": 6, "cats": 1, "dog": 5, "n0144": 1, "owl": 0}
    assert [len(record[kind]) for kind in ("errors", "warnings")] == [1, 6]
    assert record["prompts"][0]["read"] == "a photo of a c·at."


def test_a_prompt_that_is_cut_is_marked(photos: Path) -> None:
    answer = call("data", photos, "--model", TINY_CLIP, "--template", f"a photo of a {{}} {'in the dark ' * 40}")
    assert answer.code == 1
    assert "[cut: " in answer.out
    assert "tokens, more than the 32 of CLIP's context. Shorten it." in answer.out


def test_the_dry_run_needs_no_tokenizer_unless_it_is_named(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anprompt_cli.jobs.data.CLIP", str(photos))
    answer = done("data", photos)
    assert f"The tokenizer of {photos} cannot be loaded: " in answer.out
    assert "tokens" not in answer.out.partition("To look at")[0]
    answer = call("data", photos, "--model", photos)
    assert (answer.code, answer.out) == (1, "")
    assert f"error: The tokenizer of {photos} cannot be loaded: " in answer.err


def test_without_the_extra_only_content_is_compared(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagehash", None)
    shutil.copy(photos / "train" / "cat" / "0.png", photos / "train" / "dog" / "copy.png")
    answer = done("data", photos, "--model", TINY_CLIP)
    assert "train/cat/0.png (cat) = train/dog/copy.png (dog)" in answer.out
    assert "Only files of the same content were compared." in answer.out
    assert "pip install 'anprompt-peft[duplicates]'" in answer.out


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["./nowhere"], "There is no folder ./nowhere"),
        (["{photos}", "--train-split", "dev"], "--train-split dev: the data have no such split, only train, test."),
        (["{photos}", "--template", "no place"], "template 'no place' must contain {} exactly once"),
        (["{photos}", "--class-names", "a"], "--class-names needs at least two classes"),
        (["{photos}", "--label-column", "kind"], "there is no column kind, only image, label."),
    ],
)
def test_wrong_input_of_the_dry_run(options: list[str], wanted: str, photos: Path) -> None:
    assert wanted in refused("data", *(each.replace("{photos}", str(photos)) for each in options))


# before a training


def test_training_tells_the_same_of_what_it_draws(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it begins; pictures that are trained on and measured by choice are not told as copies of themselves."""
    monkeypatch.setattr(training_job, "set_seed", None)  # what follows the checks
    (photos / "train" / "dog").rename(photos / "train" / "cats")
    (photos / "test" / "dog").rename(photos / "test" / "cats")
    shutil.copy(photos / "train" / "cat" / "0.png", photos / "train" / "cats" / "copy.png")
    with Image.open(photos / "train" / "cat" / "1.png") as image:
        image.save(photos / "test" / "cat" / "again.jpg", quality=90)
    command = ("train", photos, "--output", tmp_path / "out", "--model", TINY_CLIP)
    shown = done("data", photos, "--model", TINY_CLIP).out
    told = [line.removeprefix("- ") for line in shown.partition("To look at:\n")[2].splitlines()]
    assert len(told) == 3
    assert "train/cat/1.png (cat) = test/cat/again.jpg (cat)" in told[2]
    assert [line for line in call(*command).err.splitlines() if line in told] == told
    assert [line for line in call(*command, "--eval-split", "train").err.splitlines() if line in told] == told[:2]
