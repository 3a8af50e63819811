"""What `predict` and `evaluate` answer: CSV, unsure answers, several adapters, files put into folders by class."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import get_peft_model
from transformers import CLIPModel

from anprompt_cli.jobs import sorting
from anprompt_cli.jobs.sorting import Sorter, folder_name
from anprompt_peft import ANPromptConfig
from anprompt_peft.evaluation.threshold import threshold_for
from command import call, done, refused
from helpers import scatter

TINY_CLIP = Path(__file__).parents[1] / "examples" / "embedded" / "tiny_clip"
NAMES = ("one", "six", "two")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of three classes that was not trained."""
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    config = ANPromptConfig(class_names=list(NAMES), template="a photo of the digit {}.")
    model = scatter(get_peft_model(CLIPModel.from_pretrained(TINY_CLIP), config).eval(), 0.01)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture
def photos(digits: Path, tmp_path: Path) -> Path:
    """Three images of each of the three classes."""
    for name in NAMES:
        shutil.copytree(digits / "test" / name, tmp_path / "photos" / name)
    return tmp_path / "photos"


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# thresholds


def test_a_threshold_holds_the_accuracy_and_answers_the_most() -> None:
    confidence = np.array([0.9, 0.8, 0.8, 0.7, 0.6, 0.5])
    correct = np.array([True, True, True, False, True, False])
    assert threshold_for(confidence, correct, 1.0) == 0.8
    assert threshold_for(confidence, correct, 0.8) == 0.6
    assert threshold_for(confidence, correct, 0.5) == 0.5
    assert threshold_for(confidence[::-1], correct[::-1], 0.8) == 0.6
    with pytest.raises(ValueError, match=r"no threshold makes 90.0% of the answers right: 50.0% is the most"):
        threshold_for(np.array([0.9, 0.9]), np.array([True, False]), 0.9)
    with pytest.raises(ValueError, match="at least one image"):
        threshold_for(np.array([]), np.array([], dtype=bool), 0.9)


def test_answers_calibrate_a_threshold(adapter: Path, photos: Path, tmp_path: Path) -> None:
    """What `evaluate --csv` prints decides which answers of `predict` are unsure."""
    answers, confusion = tmp_path / "answers.csv", tmp_path / "confusion.csv"
    shown = done("evaluate", adapter, photos, "--split", "train", "--csv", "--confusion", confusion)
    answers.write_text(shown.out)
    rows = table(shown.out)
    assert list(rows[0]) == ["image", "truth", "prediction", "confidence"]
    assert {row["image"] for row in rows} == {str(path) for path in photos.rglob("*.png")}
    assert all(Path(row["image"]).parent.name == row["truth"] for row in rows)
    counts = {row["train: truth, by answer"]: row for row in table(confusion.read_text())}
    for truth in NAMES:
        for answer in NAMES:
            both = sum((row["truth"], row["prediction"]) == (truth, answer) for row in rows)
            assert counts[truth][answer] == str(both)
    shares = {row["image"]: float(row["confidence"]) for row in rows}
    right = [row["truth"] == row["prediction"] for row in rows]
    wanted = threshold_for(np.array(list(shares.values())), np.array(right), 0.6)
    found = done(
        "predict", adapter, photos, "--csv", "--threshold", "60%", "--calibrate", answers, "--batch-size", 100
    )
    assert f"Threshold {wanted:.4g}: 60.0% of the answers on held-out images are right above." in found.err
    for row in table(found.out):
        assert float(row["confidence"]) == pytest.approx(shares[row["image"]], abs=1e-5)
        if abs(shares[row["image"]] - wanted) > 1e-5:
            assert (row["prediction"] == "unsure") is (shares[row["image"]] < wanted)


def test_the_terminal_shows_a_small_matrix(adapter: Path, photos: Path) -> None:
    lines = done("evaluate", adapter, photos, "--split", "train").out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("train: truth, by answer"))
    assert [line.split()[0] for line in lines[at + 1 :]] == list(NAMES)
    assert [sum(map(int, line.split()[1:])) for line in lines[at + 1 :]] == [3, 3, 3]


# several adapters, and unsure answers


def test_several_adapters_answer_side_by_side(adapter: Path, photos: Path, tmp_path: Path) -> None:
    other, images = shutil.copytree(adapter, tmp_path / "other"), photos / "six"
    alone = table(done("predict", adapter, images, "--csv", "--top-k", 2).out)
    assert list(alone[0]) == ["image", "prediction", "confidence", "prediction_2", "confidence_2"]
    both = table(done("predict", adapter, images, "--adapter", other, "--csv", "--top-k", 2).out)
    assert [row.pop("adapter") for row in both] == [str(adapter), str(other)] * 3
    assert both[::2] == both[1::2] == alone
    lines = done("predict", adapter, images, "--adapter", other, "--jsonl").out.splitlines()
    assert [json.loads(line)["adapter"] for line in lines] == [str(adapter), str(other)] * 3


def test_unsure_is_an_answer(adapter: Path, photos: Path) -> None:
    shares = {row["image"]: float(row["confidence"]) for row in table(done("predict", adapter, photos, "--csv").out)}
    middle = sorted(shares.values())[4]
    unsure = {path for path, share in shares.items() if share < middle - 1e-6}
    options = ("predict", adapter, photos, "--threshold", middle - 1e-6, "--top-k", 1)
    assert {row["image"] for row in table(done(*options, "--csv").out) if row["prediction"] == "unsure"} == unsure
    records = map(json.loads, done(*options, "--jsonl").out.splitlines())
    assert {each["image"] for each in records if each["answer"] == "unsure"} == unsure
    lines = done(*options).out.splitlines()
    assert {line.split()[0] for line in lines if line.split()[1] == "unsure"} == unsure


# sorting


@pytest.mark.parametrize("move", [True, False])
def test_files_are_sorted_by_class(move: bool, adapter: Path, photos: Path, tmp_path: Path) -> None:
    """Files of one name are kept apart; a second call leaves what is there; an unreadable file stays."""
    (photos / "broken.png").write_text("no image")
    before, target = contents(photos), tmp_path / "sorted"
    option = "--move-to" if move else "--copy-to"
    first = call("predict", adapter, photos, option, target, "--csv")
    assert first.code == 1
    rows = table(first.out)
    assert len(rows) == 9
    for row in rows:
        assert Path(row["file"]).parent == target / row["prediction"]
        assert Path(row["file"]).read_bytes() == before[str(Path(row["image"]).relative_to(photos))]
    assert len(contents(target)) == 9
    assert contents(photos) == ({"broken.png": b"no image"} if move else before)
    (photos / "broken.png").unlink()
    if move:
        assert "There are no images in the folder" in refused("predict", adapter, photos, option, target)
    else:
        assert [row["file"] for row in table(done("predict", adapter, photos, option, target, "--csv").out)] == [
            row["file"] for row in rows
        ]
    own = done("predict", adapter, target, option, target)
    assert (own.out, len(contents(target))) == ("", 9)
    assert f"Left out, as they are in {target} already: 9." in own.err


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.tar.png").write_text(name)
    sorter = Sorter(tmp_path / "out", ["cat"], move=True)
    places = [sorter.put(str(tmp_path / name / "x.tar.png"), "cat") for name in ("a", "b")]
    assert [path.name for path in places] == ["x.tar.png", "x.tar-2.png"]
    assert [path.read_text() for path in places] == ["a", "b"]


@pytest.mark.parametrize("fails", ["copy2", "replace", "unlink"])
def test_an_interruption_loses_nothing(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a move to another disk stops, the file is whole in one place or in both, and no part of it is left."""

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    rename = os.replace

    def other_disk(source: Any, target: Any) -> None:
        if Path(source) == tmp_path / "x.png":
            raise OSError(errno.EXDEV, "another disk")
        rename(source, target)

    (tmp_path / "x.png").write_text("picture")
    sorter = Sorter(tmp_path / "out", ["cat"], move=True)
    with monkeypatch.context() as patch:
        patch.setattr(sorting.os, "replace", other_disk)
        patch.setattr(
            *{"copy2": (shutil, "copy2"), "replace": (Path, "replace"), "unlink": (Path, "unlink")}[fails], interrupt
        )
        with pytest.raises(KeyboardInterrupt):
            sorter.put(str(tmp_path / "x.png"), "cat")
    assert (tmp_path / "x.png").read_text() == "picture"
    assert set(contents(tmp_path / "out").values()) <= {b"picture"}
    assert sorter.put(str(tmp_path / "x.png"), "cat").read_text() == "picture"
    assert not (tmp_path / "x.png").exists()


def test_a_linked_file_is_moved_with_its_content(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_text("picture")
    (tmp_path / "link.png").symlink_to("real.png")
    target = Sorter(tmp_path / "out", ["cat"], move=True).put(str(tmp_path / "link.png"), "cat")
    assert (target.read_text(), target.is_symlink()) == ("picture", False)
    assert (tmp_path / "real.png").exists()
    assert not os.path.lexists(tmp_path / "link.png")


def test_class_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    assert [folder_name(name) for name in ("../up", "/etc", "a\\b", "..", "c:", "x\n", "cat")] == [
        "_up", "_etc", "a_b", "_", "c_", "x_", "cat",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="would share a folder"):
        Sorter(tmp_path, ["a/b", "A\\B"], move=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        Sorter(tmp_path / "file", ["a", "b"], move=False)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--threshold", "1.5"], "--threshold 1.5 must be a probability such as 0.8, or a share such as 95%."),
        (["--threshold", "95%"], "--threshold 95% needs --calibrate FILE with answers on held-out images."),
        (["--calibrate", TINY_CLIP / "config.json"], "--calibrate needs a share of right answers to hold"),
        (["--threshold", "95%", "--calibrate", TINY_CLIP / "config.json"], "must be what `anprompt evaluate"),
        (["--move-to", "x", "--copy-to", "y"], "--move-to and --copy-to exclude each other."),
        (["--jsonl", "--csv"], "--jsonl and --csv exclude each other."),
        (["--adapter", "other", "--move-to", "x"], "--move-to is for one adapter. Leave --adapter out."),
        (["--threshold", "0.5", "--classes", "unsure", "--classes", "cat"], "and a class is called so."),
        (["--copy-to", TINY_CLIP / "config.json"], "config.json' is a file."),
    ],
)  # fmt: skip
def test_wrong_options_of_predict(options: list[Any], wanted: str, adapter: Path, photos: Path) -> None:
    assert wanted in refused("predict", adapter, photos, *options)


def test_answers_for_other_classes_calibrate_nothing(adapter: Path, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    path.write_text("image,truth,prediction,confidence\na.png,cat,cat,0.9\n")
    line = refused("predict", adapter, photos, "--threshold", "90%", "--calibrate", path)
    assert "has answers for other classes than are asked for: ['cat']." in line
