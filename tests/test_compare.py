"""`anprompt compare`: methods on the user's photos, the verdict in words, and what it saves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file
from scipy.stats import ttest_1samp
from transformers import CLIPModel, pipeline

from anprompt_peft.classifier import load_classifier
from anprompt_peft.compare import COMPARED, Comparison, advise, compare
from anprompt_peft.compare.verdict import Measured
from anprompt_peft.evaluation.paired import over_draws_and_images, over_folds
from anprompt_peft.evaluation.peers.prolip import ProLIP
from anprompt_peft.evaluation.predictions import Predictions
from command import call, done, refused
from helpers import TINY_CLIP

CLASSES = ("one", "seven", "zero")
TEMPLATE = "a photo of the digit {}."


@pytest.fixture(scope="module")
def photos(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of each of three digits in the splits train and test."""
    folder = tmp_path_factory.mktemp("compare") / "numerals"
    for split in ("train", "test"):
        for name in CLASSES:
            shutil.copytree(digits / split / name, folder / split / name)
    return folder


def options(photos: Path, output: Path, *more: Any) -> tuple[Any, ...]:
    return ("compare", photos, "--output", output, "--model", TINY_CLIP, "--draws", 2, "--threads", 1,
            "--template", TEMPLATE, "--shots", 2, *more)  # fmt: skip


@pytest.fixture(scope="module")
def compared(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A comparison of all methods, which saves the linear probe; with what it printed."""
    output = tmp_path_factory.mktemp("compared") / "out"
    answer = done(*options(photos, output, "--save", "linear-probe"))
    return output, answer.out, answer.err


def test_all_methods_are_measured_and_the_answer_is_short(compared: tuple[Path, str, str]) -> None:
    output, out, err = compared
    assert len(out.splitlines()) <= 10
    record, table = json.loads((output / "verdict.json").read_text()), pd.read_csv(output / "methods.csv")
    assert list(table["method"]) == list(COMPARED)
    assert out.startswith(f"Take {COMPARED[record['chosen']].title}: ")
    assert out.splitlines()[: len(record["verdict"])] == record["verdict"]
    chosen = table[table["chosen"]]
    assert list(chosen["method"]) == [record["chosen"]]
    best = table["accuracy"].max()
    assert record["best"] == table["method"][table["accuracy"] == best].iloc[0]
    assert "to go on this machine (features" in err
    lines = [line.partition(":")[0] for line in err.splitlines() if " %" in line and "over zero-shot" in line]
    assert lines == list(COMPARED)[1:]  # the cheapest first
    assert list(pd.read_csv(output / "classes.csv")["images"]) == [6, 6, 6]  # in both draws
    assert record["verdict"][0] in (output / "page.html").read_text()


def test_the_same_command_measures_nothing_again_and_saves_any_method(
    compared: tuple[Path, str, str], photos: Path
) -> None:
    output, out, _ = compared
    cells = {path: path.stat().st_mtime_ns for path in output.glob("*/result.json")}
    again = done(*options(photos, output, "--save", "tip-adapter-f"))
    assert again.out.splitlines()[:-1] == out.splitlines()[:-1]
    assert again.out.splitlines()[-1].startswith(f"Saved to {output / 'tip-adapter-f'}/")
    assert {path: path.stat().st_mtime_ns for path in output.glob("*/result.json")} == cells
    assert "to go on this machine" not in again.err


def test_an_interrupted_comparison_continues(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ("--method", "linear-probe", "--method", "prolip")
    whole, output = tmp_path / "whole", tmp_path / "out"
    done(*options(photos, whole, *few))
    with monkeypatch.context() as patch:
        patch.setattr(ProLIP, "fit", Mock(side_effect=KeyboardInterrupt))
        answer = call(*options(photos, output, *few))
    assert answer.code == 130
    assert "interrupted: 2 of 6 measurements are done. The same command continues." in answer.err
    assert not list(output.glob(".running-*"))
    before = {path: path.stat().st_mtime_ns for path in output.glob("*/result.json")}
    done(*options(photos, output, *few))
    assert before.items() <= {path: path.stat().st_mtime_ns for path in output.glob("*/result.json")}.items()
    tables = [pd.read_csv(folder / "methods.csv")[["method", "accuracy"]] for folder in (whole, output)]
    pd.testing.assert_frame_equal(*tables)


def test_a_method_that_fails_leaves_the_others(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProLIP, "fit", Mock(side_effect=RuntimeError("the disk is full")))
    answer = call(*options(photos, tmp_path / "out", "--method", "linear-probe", "--method", "prolip"))
    assert answer.code == 1
    assert "prolip: failed" in answer.err
    assert "the disk is full" in answer.err
    assert list(pd.read_csv(tmp_path / "out" / "methods.csv")["method"]) == ["zero-shot", "linear-probe"]
    assert answer.out.startswith("Take ")


@pytest.mark.parametrize("method", ["linear-probe", "tip-adapter-f", "prolip", "lora", "anprompt", "zero-shot"])
def test_what_is_saved_is_what_commands_and_pipelines_take(
    method: str, compared: tuple[Path, str, str], photos: Path
) -> None:
    """One answer for an image, by three ways; and it was trained on all photos, as `evaluate` says."""
    output, folder = compared[0], compared[0] / method
    if not folder.exists():
        done(*options(photos, output, "--save", method))
    image = photos / "test" / "one" / "000.png"
    predicted = done("predict", folder, image, "--jsonl", "--precision", "fp32").out
    answers = {each["class"]: each["probability"] for each in json.loads(predicted)["predictions"]}
    assert set(answers) == set(CLASSES)
    classify = pipeline("image-classification", model=str(folder), image_processor=str(folder))
    for each in classify(str(image)):
        assert each["score"] == pytest.approx(answers[each["label"]], abs=1e-4)
    evaluated = done("evaluate", folder, photos, "--json", "--precision", "fp32")
    figures = json.loads(evaluated.out)["accuracy_percent"]
    assert next(iter(figures)) == "zero-shot CLIP"
    assert list(figures)[-1] == ("ANPrompt" if method == "anprompt" else method)
    assert "trained on 9 of the 9 images" in evaluated.err


def test_other_classes_are_zero_shot_clips(compared: tuple[Path, str, str], photos: Path) -> None:
    image = photos / "test" / "one" / "000.png"
    asked = ("--classes", "two", "--classes", "three", "--precision", "fp32", "--jsonl")
    answers = (done("predict", compared[0] / name, image, *asked).out for name in ("linear-probe", "tip-adapter-f"))
    (first, *_), (second, *_) = (json.loads(each)["predictions"] for each in answers)
    assert first["class"] == second["class"]
    assert first["probability"] == pytest.approx(second["probability"], abs=1e-6)


@pytest.fixture
def saved(compared: tuple[Path, str, str], tmp_path: Path) -> Path:
    """A copy of the saved probe."""
    return shutil.copytree(compared[0] / "linear-probe", tmp_path / "probe")


def test_the_card_of_a_classifier_names_its_task(saved: Path) -> None:
    card = ModelCard.load(saved / "README.md")
    assert (card.data.pipeline_tag, card.data.library_name) == ("image-classification", "transformers")


def change(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (lambda each: {"weight": each["weight"]}, "the tensor 'bias' is missing"),
        (lambda each: {**each, "other": each["bias"].clone()}, "the tensor 'other' must not be there"),
        (lambda each: {**each, "weight": each["weight"][:, 1:].contiguous()}, "'weight' has the shape"),
        (lambda each: {**each, "bias": each["bias"].long()}, "'bias' has the type I64"),
        (lambda each: {**each, "bias": each["bias"] * torch.nan}, "bias is not finite"),
    ],
    ids=["missing", "extra", "shape", "type", "not finite"],
)
def test_weights_that_do_not_fit_are_refused(tensors: Any, reason: str, saved: Path) -> None:
    path = saved / "model.safetensors"
    save_file(tensors(load_file(path)), path)
    with pytest.raises(ValueError, match=reason):
        load_classifier(saved)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"method": "pickle"}, "the method 'pickle' is not one of"),
        ({"class_names": ["one"]}, "at least two classes"),
        ({"class_names": "one"}, "the field 'class_names' must be of type"),
        ({"templates": ["a photo"]}, "must contain {} exactly once"),
        ({"settings": {"alpha": "x"}}, "the field 'settings' must be of type"),
        ({"method": "tip-adapter-f"}, "the field 'settings' has no alpha, beta, which tip-adapter-f needs"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(fields: dict[str, Any], reason: str, saved: Path) -> None:
    change(saved, **fields)
    assert reason in refused("predict", saved, saved / "config.json")


def test_a_folder_without_safetensors_is_refused(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"holds no model.safetensors. Weights in a pickle"):
        load_classifier(saved)


def test_info_shows_a_classifier_and_push_refuses_it(saved: Path) -> None:
    assert "linear-probe" in done("info", saved).out
    assert "hf upload" in refused("push", saved, "someone/probe")


def test_lora_is_an_adapter_that_stock_peft_loads(compared: tuple[Path, str, str]) -> None:
    folder = compared[0] / "lora"
    assert "lora" in json.loads((folder / "adapter_config.json").read_text())["peft_type"].lower()
    clip = CLIPModel.from_pretrained(TINY_CLIP)
    assert type(PeftModel.from_pretrained(clip, folder)).__name__ == "PeftModel"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--method", "lorra"), "--method lorra must be one of zero-shot"),
        (("--save", "lorra"), "--save lorra must be best"),
        (("--draws", 1), "greater than or equal to 2"),
    ],
)
def test_wrong_input_is_one_line(arguments: tuple[Any, ...], reason: str, photos: Path, tmp_path: Path) -> None:
    assert reason in refused("compare", photos, "--output", tmp_path / "out", "--model", TINY_CLIP, *arguments)
    assert not (tmp_path / "out").exists()


def test_folds_take_the_place_of_held_out_photos(photos: Path, tmp_path: Path) -> None:
    """Each photo is measured once, by what the others teach; photos that are added are measured."""
    folder = shutil.copytree(photos / "train", tmp_path / "photos")
    settings = {"shots": 4, "draws": 3, "methods": ["linear-probe"], "templates": [TEMPLATE]}
    found = compare(folder, str(TINY_CLIP), tmp_path / "out", **settings)
    assert found.folds == 3
    assert found.shots == 2
    assert [len(each.labels) for each in found.methods["linear-probe"].predictions] == [3, 3, 3]
    assert "9 images right, each by what the other folds of 3 teach" in found.verdict()[0]
    shutil.copy(photos / "test" / "one" / "000.png", folder / "one" / "new.png")
    again = compare(folder, str(TINY_CLIP), tmp_path / "out", **settings)
    assert sum(len(each.labels) for each in again.methods["linear-probe"].predictions) == 8


# intervals and words


def test_an_interval_over_draws_and_images() -> None:
    """With one image that decides nothing it is Student's over the draws; with one draw it is that over the images."""
    rng = np.random.default_rng(0)
    draws = rng.integers(-1, 2, 6).astype(float)
    found = over_draws_and_images(np.tile(draws[:, None], (1, 50)))
    low, high = 100 * np.array(ttest_1samp(draws, 0).confidence_interval())
    assert (found.low, found.high) == pytest.approx((low, high))
    images = rng.integers(-1, 2, 40).astype(float)
    found = over_draws_and_images(images[None])
    low, high = 100 * np.array(ttest_1samp(images, 0).confidence_interval())
    assert (found.low, found.high) == pytest.approx((low, high))
    assert over_draws_and_images(np.zeros((3, 5))).low is None


def test_an_interval_over_draws_and_images_covers_the_truth() -> None:
    rng, covered = np.random.default_rng(1), 0
    for _ in range(300):
        chance = 0.2 + 0.1 * rng.standard_normal((5, 1)) + 0.3 * rng.standard_normal((1, 60))
        found = over_draws_and_images((rng.random((5, 60)) < chance).astype(float))
        assert found.low is not None
        assert found.high is not None
        truth = 100 * np.clip(0.2 + np.hypot(0.1, 0.3) * rng.standard_normal(2000), 0, 1).mean()
        covered += found.low <= truth <= found.high
    assert covered / 300 > 0.9


def test_an_interval_over_folds_is_corrected_for_what_they_share() -> None:
    folds = [np.array([1.0, 0.0]), np.array([1.0, 1.0]), np.array([0.0, 0.0])]
    found, plain = over_folds(folds, 3), ttest_1samp([0.5, 1.0, 0.0], 0).confidence_interval()
    assert found.value == pytest.approx(50)
    assert found.low is not None
    assert (50 - found.low) / (50 - 100 * plain.low) == pytest.approx((1 + 3 / 2) ** 0.5)


def made(accuracies: dict[str, tuple[float, float]], images: int = 200) -> Comparison:
    """Methods that are right on the first so many images in each of two draws."""
    labels = np.arange(images) % 2
    methods = {}
    for name, draws in accuracies.items():
        hits = [np.arange(images) < share * images for share in draws]
        predictions = [Predictions("test", ["cat", "7"], labels, np.where(each, labels, 1 - labels)) for each in hits]
        methods[name] = Measured(predictions, 2.0, 3000 if name != "zero-shot" else 0)
    return Comparison(methods, 16)


def test_the_cheapest_that_is_not_told_apart_from_the_best_is_chosen() -> None:
    found = made({"zero-shot": (0.5, 0.5), "linear-probe": (0.9, 0.92), "lora": (0.93, 0.91)})
    assert (found.chosen, found.best) == ("linear-probe", "lora")
    first, gain, better, cost = found.verdict()
    assert first.startswith("Take the linear probe: 91.0 % of 200 held-out images right")
    assert gain.startswith("Over zero-shot CLIP (50.0 %) it gains +41.0 points [")
    assert better.startswith("LoRA has the highest mean, 92.0 %, and is not told apart from it: +1.0 points")
    assert cost.startswith("It costs 2.0 s of training and a file of 3 kB.")
    clear = made({"zero-shot": (0.5, 0.5), "linear-probe": (0.6, 0.6), "lora": (0.95, 0.95)})
    assert clear.chosen == "lora"
    assert "Over the linear probe (60.0 %) it gains +35.0 points" in clear.verdict()[2]


def test_advice_names_confusions_and_names_that_say_nothing() -> None:
    found = made({"zero-shot": (0.5, 0.5), "linear-probe": (0.9, 0.9)})
    confused, names = advise(found)
    assert confused == "Most often it takes cat for 7 (10%), 7 for cat (10%) of the images."
    assert "CLIP reads class names, and 7 say nothing to it" in names
