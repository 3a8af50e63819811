"""The handwritten digits, their job end to end at reduced size, and the command that classifies with its adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import AutoPeftModel
from PIL import Image
from sklearn.datasets import load_digits

import base_to_new
import classify
from anprompt_peft.evaluation import BaseToNew, Estimate
from handwriting import CLASS_NAMES, SPLITS, load_split, select_classes, split_indices

SPLIT_ROWS = {"recipe": [3, 5, 7, 9, 13], "train": [6, 15, 24, 25, 28], "test": [0, 1, 2, 4, 8]}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One seed and few epochs of the real job, on the real data."""
    folder = tmp_path_factory.mktemp("digits") / "out"
    return folder, base_to_new.main(["--seeds", "1", "--epochs", "5", "--output", str(folder)])


def test_splits_are_disjoint_stratified_and_deterministic() -> None:
    labels = load_digits().target
    parts = split_indices(labels)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(labels)))
    for name, share in zip(SPLITS, (0.4, 0.2, 0.4), strict=True):
        counts = np.bincount(labels[parts[name]], minlength=10)
        np.testing.assert_allclose(counts, share * np.bincount(labels), atol=1.5)
        np.testing.assert_array_equal(parts[name], split_indices(labels)[name])


def test_split_rows_are_the_ones_reported_figures_were_taken_on() -> None:
    first = {name: rows[:5].tolist() for name, rows in split_indices(load_digits().target).items()}
    assert first == SPLIT_ROWS


def test_images_keep_the_ink() -> None:
    images, labels = load_split("train")
    assert len(images) == len(labels) == 359
    assert labels.dtype == np.int64
    assert {(image.mode, image.size) for image in images} == {("RGB", (32, 32))}
    counts = load_digits().images[split_indices(load_digits().target)["train"]]
    means = np.array([np.asarray(image).mean() / 255 for image in images])
    np.testing.assert_allclose(means, counts.mean(axis=(1, 2)) / 16, atol=0.03)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'valid'.*recipe, train, test"):
        load_split("valid")


def test_select_classes_renumbers() -> None:
    images, labels = load_split("train")
    kept, renumbered = select_classes(images, labels, [7, 3])
    assert len(kept) == (labels == 7).sum() + (labels == 3).sum()
    np.testing.assert_array_equal(renumbered, (labels[np.isin(labels, [3, 7])] == 3).astype(np.int64))
    with pytest.raises(ValueError, match="repeat"):
        select_classes(images, labels, [1, 1])


@pytest.mark.parametrize("split", base_to_new.SPLITS)
def test_training_lowers_the_loss_and_beats_zero_shot_on_base(split: str, job: tuple[Path, dict[str, Any]]) -> None:
    record = job[1]["splits"][split]
    (log,) = record["loss_terms"]
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert record["difference_percentage_points"]["base"]["value"] > 5


def test_record_is_complete(job: tuple[Path, dict[str, Any]]) -> None:
    folder, record = job
    written = json.loads((folder / "results.json").read_text())
    assert written == record
    assert {"seeds", "versions", "git_commit", "hardware", "settings"} <= set(record)
    assert "rendered glyphs" in record["notes"][0]
    terms = {"cross_entropy_class", "cross_entropy_prototype", "similarity_image", "similarity_text", "waloss"}
    for split in record["splits"].values():
        assert split["adapter_config"]["class_names"] == split["classes"]["base"]
        assert all(terms <= set(epoch) for epoch in split["loss_terms"][0])
        accuracy, difference = split["accuracy_percent"], split["difference_percentage_points"]
        for measure in ("base", "new", "harmonic_mean"):
            for method in accuracy.values():
                assert 0 <= method[measure]["low"] <= method[measure]["value"] <= method[measure]["high"] <= 100
            change = accuracy["ANPrompt"][measure]["value"] - accuracy["zero-shot CLIP"][measure]["value"]
            assert difference[measure]["value"] == pytest.approx(change)
            assert difference[measure]["low"] <= change <= difference[measure]["high"]


def test_every_split_has_its_own_halves(job: tuple[Path, dict[str, Any]]) -> None:
    """All 720 test images are in each split, and zero-shot CLIP differs between the splits."""
    low, high = CLASS_NAMES[:5], CLASS_NAMES[5:]
    expected = [(low, high), (high, low), (CLASS_NAMES[::2], CLASS_NAMES[1::2])]
    splits = list(job[1]["splits"].values())
    assert [(split["classes"]["base"], split["classes"]["new"]) for split in splits] == expected
    assert [sum(split["test_images"].values()) for split in splits] == [720] * 3
    first, swapped, _ = (split["accuracy_percent"]["zero-shot CLIP"] for split in splits)
    assert (first["base"], first["new"]) != (swapped["base"], swapped["new"])
    assert (first["base"]["value"], first["new"]["value"]) == (swapped["new"]["value"], swapped["base"]["value"])


def test_table_shows_every_split_with_its_difference() -> None:
    def estimates(*values: float) -> BaseToNew:
        return BaseToNew(*(Estimate(value, value - 1, value + 1) for value in values))

    methods = {
        "zero-shot CLIP": estimates(70, 80, 75),
        "ANPrompt": estimates(90, 76, 82),
        "difference": estimates(20, -4, 7),
    }
    shown = base_to_new.table({"base even, new odd": methods})
    assert "70.0 [69.0, 71.0]" in shown
    assert "-4.0 [-5.0, -3.0]" in shown
    assert "+20.0 [+19.0, +21.0]" in shown


def test_picture_is_drawn(job: tuple[Path, dict[str, Any]]) -> None:
    picture = Image.open(job[0] / "results.png")
    assert picture.width > 1000
    assert len(picture.convert("RGB").getcolors(maxcolors=10**6) or []) > 50


def test_the_saved_adapter_is_the_first_splits_first_seeds(job: tuple[Path, dict[str, Any]]) -> None:
    folder, record = job
    model = AutoPeftModel.from_pretrained(folder / "adapter").eval()
    processor = base_to_new.CLIPProcessor.from_pretrained(base_to_new.TINY_CLIP)
    (split, base), *_ = base_to_new.SPLITS.items()
    task = base_to_new.make_task(*base_to_new.load_data(False), base, processor, shots=1, seeds=1)
    for half in ("base", "new"):
        measured = 100 * base_to_new.hits(model, task.tests[half]).mean()
        assert measured == record["splits"][split]["per_seed_percent"][half][0]


def test_classify(job: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder, _ = job
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    images = sorted((folder / "images").iterdir())
    assert [image.stem for image in images] == sorted(CLASS_NAMES)
    code = classify.main([*map(str, images), str(broken), "--adapter", str(folder / "adapter")])
    out, err = capsys.readouterr()
    assert code == 1
    assert f"error: {broken} cannot be decoded: no known image format" in err
    right = sum(
        line.split(": ")[1].startswith(image.stem) for line, image in zip(out.splitlines(), images, strict=True)
    )
    assert right >= 5
    assert classify.main([str(images[0]), "--adapter", str(folder / "adapter"), "--classes", "eight", "one"]) == 0
    assert capsys.readouterr().out.count("%") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.png", "--adapter", "nowhere"], "no adapter in nowhere"),
        ([], "required: IMAGE"),
    ],
)
def test_classify_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        classify.main(arguments)
    assert message in capsys.readouterr().err


def test_wrong_options_leave_an_old_result_alone(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("old")
    for wrong in (["--shots", "0"], ["--seeds", "x"], ["--shots", "500"], ["--recipe", "x"]):
        with pytest.raises(SystemExit):
            base_to_new.main([*wrong, "--output", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "old"


def test_a_folder_that_is_no_result_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="is not empty"):
        base_to_new.main(["--output", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
