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
from transformers import CLIPProcessor

import base_to_new
import classify
from anprompt_peft.evaluation import BaseToNew, Estimate
from anprompt_peft.evaluation.adapter import FittedAdapter
from anprompt_peft.evaluation.benchmarks import load_benchmark_data
from anprompt_peft.evaluation.grid import read_results
from anprompt_peft.evaluation.peers import make_method
from anprompt_peft.evaluation.protocols import make_task
from handwriting import CLASS_NAMES, SPLITS, load_split, split_indices

Job = tuple[Path, dict[str, Any]]

SPLIT_ROWS = {"recipe": [3, 5, 7, 9, 13], "train": [6, 15, 24, 25, 28], "test": [0, 1, 2, 4, 8]}
LOW, HIGH = CLASS_NAMES[:5], CLASS_NAMES[5:]
HALVES = {"digits": (LOW, HIGH), "digits_high": (HIGH, LOW), "digits_even": (CLASS_NAMES[::2], CLASS_NAMES[1::2])}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """One seed and few epochs of the real job, on the real data: its folder and its record."""
    folder = tmp_path_factory.mktemp("digits") / "out"
    few = make_method("anprompt", recipe={"augment": False, "epochs": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(base_to_new.METHODS, base_to_new.ADAPTED, few)
        patch.setenv("PYTHONPATH", "")
        return folder, base_to_new.main(["--seeds", "1", "--jobs", "1", "--output", str(folder)])


def test_splits_are_disjoint_stratified_and_those_of_the_reported_figures() -> None:
    labels = load_digits().target
    parts = split_indices(labels)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(labels)))
    assert {name: rows[:5].tolist() for name, rows in parts.items()} == SPLIT_ROWS
    for name, share in zip(SPLITS, (0.4, 0.2, 0.4), strict=True):
        np.testing.assert_allclose(np.bincount(labels[parts[name]]), share * np.bincount(labels), atol=1.5)


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


@pytest.mark.slow
def test_record_is_complete_and_training_beats_zero_shot_on_base(job: Job) -> None:
    folder, record = job
    assert json.loads((folder / "results.json").read_text()) == record
    assert {"seeds", "shots", "versions", "git_commit", "hardware"} <= set(record)
    assert "rendered glyphs" in record["notes"][0]
    assert list(record["splits"]) == list(base_to_new.SPLITS)
    for split in record["splits"].values():
        accuracy, difference = split["accuracy_percent"], split["difference_percentage_points"]
        assert difference["base"]["value"] > 5
        for measure in ("base", "new", "harmonic_mean"):
            for method in accuracy.values():
                assert 0 <= method[measure]["low"] <= method[measure]["value"] <= method[measure]["high"] <= 100
            change = accuracy["ANPrompt"][measure]["value"] - accuracy["zero-shot CLIP"][measure]["value"]
            assert difference[measure]["value"] == pytest.approx(change)
            assert difference[measure]["low"] <= change <= difference[measure]["high"]


@pytest.mark.slow
def test_every_split_has_its_own_halves(job: Job) -> None:
    """All 720 test images are in each split; swapped halves swap the accuracies of zero-shot CLIP."""
    folder, record = job
    cells = read_results(folder / "grid")
    assert len(cells) == 6
    for cell in cells:
        halves = HALVES[cell["configuration"]["data"].removeprefix("data:")]
        assert [part["classes"] for part in cell["parts"]] == list(halves)
        assert sum(part["images"] for part in cell["parts"]) == 720
    first, swapped, _ = (split["accuracy_percent"]["zero-shot CLIP"] for split in record["splits"].values())
    assert (first["base"]["value"], first["new"]["value"]) == (swapped["new"]["value"], swapped["base"]["value"])
    assert first["base"]["value"] != swapped["base"]["value"]


def test_table_shows_every_split_with_its_difference() -> None:
    def estimates(*values: float) -> BaseToNew:
        return BaseToNew(*(Estimate(value, value - 1, value + 1) for value in values))

    methods = {"zero-shot CLIP": (70, 80, 75), "ANPrompt": (90, 76, 82), "difference": (20, -4, 7)}
    shown = base_to_new.table({"base even, new odd": {name: estimates(*each) for name, each in methods.items()}})
    for figure in ("70.0 [69.0, 71.0]", "-4.0 [-5.0, -3.0]", "+20.0 [+19.0, +21.0]"):
        assert figure in shown


@pytest.mark.slow
def test_picture_is_drawn(job: Job) -> None:
    picture = Image.open(job[0] / "results.png")
    assert picture.width > 1000
    assert len(picture.convert("RGB").getcolors(maxcolors=10**6) or []) > 50


@pytest.mark.slow
def test_the_saved_adapter_is_the_first_splits_first_seeds(job: Job) -> None:
    folder, record = job
    fitted = FittedAdapter(AutoPeftModel.from_pretrained(folder / "adapter").eval())
    processor = CLIPProcessor.from_pretrained(base_to_new.TINY_CLIP)
    (split, data), *_ = base_to_new.SPLITS.items()
    for part in make_task(load_benchmark_data(data), processor, "base-to-new", shots=1, seed=1).parts:
        right = fitted.logits(part.images, part.classes).argmax(dim=1) == part.images.labels
        assert 100 * right.double().mean() == pytest.approx(record["splits"][split]["per_seed_percent"][part.name][0])


@pytest.mark.slow
def test_classify(job: Job, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder, _ = job
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    images = sorted((folder / "images").iterdir())
    assert [image.stem for image in images] == sorted(CLASS_NAMES)
    code = classify.main([*map(str, images), str(broken), "--adapter", str(folder / "adapter")])
    out, err = capsys.readouterr()
    assert code == 1
    assert f"error: {broken} cannot be decoded: no known image format" in err
    lines = zip(out.splitlines(), images, strict=True)
    assert sum(line.split(": ")[1].startswith(image.stem) for line, image in lines) >= 5
    assert classify.main([str(images[0]), "--adapter", str(folder / "adapter"), "--classes", "eight", "one"]) == 0
    assert capsys.readouterr().out.count("%") == 2


@pytest.mark.parametrize(
    ("arguments", "message"), [(["x.png", "--adapter", "nowhere"], "no adapter in nowhere"), ([], "required: IMAGE")]
)
def test_classify_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        classify.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("present", "options"),
    [
        ("results.json", ["--shots", "0"]),
        ("results.json", ["--seeds", "x"]),
        ("results.json", ["--seeds", "0"]),
        ("results.json", ["--shots", "500", "--seeds", "1", "--jobs", "1"]),
        ("mine.txt", []),
    ],
)
def test_wrong_options_and_other_folders_leave_what_is_there(
    present: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "")
    (tmp_path / present).write_text("old")
    with pytest.raises(SystemExit) as stop:
        base_to_new.main([*options, "--output", str(tmp_path)])
    assert stop.value.code == 2 or "error: " in str(stop.value.code)
    assert [path.name for path in tmp_path.iterdir()] == [present]
    assert (tmp_path / present).read_text() == "old"
