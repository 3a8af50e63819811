"""The command line `anprompt` on the handwritten digits and their tiny CLIP: every command, wrong input, Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar, get_args
from unittest.mock import patch

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
import typer
import yaml
from peft import AutoPeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from anprompt_cli import app, choices, main
from anprompt_cli.adapters import check_data
from anprompt_cli.benchmark import BenchmarkOptions
from anprompt_cli.config_file import filled
from anprompt_cli.errors import Failure
from anprompt_cli.evaluate import EvaluateOptions
from anprompt_cli.jobs import measuring
from anprompt_cli.jobs import train as training_job
from anprompt_cli.records import read_record
from anprompt_cli.train import TrainOptions
from anprompt_cli.wording import in_options
from anprompt_peft import ANPromptConfig
from anprompt_peft.data import few_shot, load_image_data, select_classes
from anprompt_peft.evaluation import Predictions, protocols
from anprompt_peft.evaluation.benchmarks import sources
from anprompt_peft.fast import precision, set_precision
from anprompt_peft.training import ANPromptTrainer, ANPromptTrainingArguments, SeededDataset
from export_folder import export
from handwriting import CLASS_NAMES, TEMPLATE
from helpers import adapt
from hub_server import HubHandler, HubServer, Route

ROOT = Path(__file__).parents[1]
TINY_CLIP = ROOT / "examples" / "embedded" / "tiny_clip"
LIMIT = 6
STEPS_PER_EPOCH = 5
WEIGHTS = "adapter_model.safetensors"
NAMES = sorted(CLASS_NAMES)

Train = Callable[..., "Answer"]


@dataclass(frozen=True)
class Answer:
    """What a call of the command line left behind."""

    code: int
    out: str
    err: str


def call(*arguments: Any) -> Answer:
    """Run the command line in this process."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main([str(argument) for argument in arguments])
    return Answer(code, out.getvalue(), err.getvalue())


def refused(*arguments: Any) -> str:
    """Run the command line, which must refuse with one line and write nothing else; return that line."""
    answer = call(*arguments)
    lines = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    assert (answer.code, answer.out, len(lines)) == (2, "", 1), answer
    assert "Traceback" not in answer.err
    return lines[0]


@pytest.fixture(scope="module", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setenv("COLUMNS", "80")
        patch.delenv("ANPROMPT_DEBUG", raising=False)
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The handwritten digits as an image folder with the splits train and test."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    export(folder, LIMIT)
    return folder


@pytest.fixture(scope="module")
def train(digits: Path) -> Train:
    """Trains on the digits, 2 shots of each and 2 epochs, into a folder."""

    def run(output: Path, *more: Any) -> Answer:
        settings = ("--model", TINY_CLIP, "--shots", 2, "--epochs", 2, "--template", TEMPLATE)
        return call("train", digits, "--output", output, *settings, *more)

    return run


@pytest.fixture(scope="module")
def trained(train: Train, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A finished run on five of the digits, measured on all."""
    folder = tmp_path_factory.mktemp("runs") / "adapter"
    return folder, train(folder, "--base-only")


@pytest.fixture(scope="module")
def adapter(trained: tuple[Path, Answer]) -> Path:
    return trained[0]


@pytest.fixture(scope="module")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of an uninterrupted run on all digits."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train(folder).code == 0
    return load_file(folder / WEIGHTS)


def same(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


# training


def test_a_run_leaves_all_that_the_result_needs(trained: tuple[Path, Answer]) -> None:
    folder, answer = trained
    assert answer.code == 0
    files = {path.name for path in folder.iterdir() if path.is_file()}
    card, report = "README.md", "report.html"
    described = {"run.yaml", "results.json", "base-new.json", "images.json", card, report}
    processor = {"processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert files == {WEIGHTS, "adapter_config.json", *described, *processor}
    saved, base = (CLIPProcessor.from_pretrained(place) for place in (folder, TINY_CLIP))
    assert saved.image_processor.to_dict() == base.image_processor.to_dict()
    assert saved.tokenizer("zero").input_ids == base.tokenizer("zero").input_ids
    assert saved.tokenizer.model_max_length == base.tokenizer.model_max_length
    record = json.loads((folder / "results.json").read_text())
    assert {"versions", "git_commit", "hardware", "history", "seconds"} <= set(record)
    assert record["seeds"] == [1]
    assert record["halves"] == json.loads((folder / "base-new.json").read_text())
    assert record["train_images"] == dict.fromkeys(NAMES[:5], 2)
    assert record["config"] == yaml.safe_load((folder / "run.yaml").read_text())
    assert "cross_entropy_class" in record["history"][0]
    for method, figures in record["accuracy_percent"].items():
        assert set(figures) == {"base", "new", "harmonic mean"}
        row = next(line for line in answer.out.splitlines() if line.startswith(method))
        for figure in figures.values():
            assert figure["low"] <= figure["value"] <= figure["high"]
            assert f"{figure['value']:.1f} [{figure['low']:.1f}, {figure['high']:.1f}]" in row
    base = record["accuracy_percent"]["ANPrompt"]["base"]["value"]
    before = record["accuracy_percent"]["zero-shot CLIP"]["base"]["value"]
    assert f"| {base:g} | {before:g} |" in (folder / card).read_text()
    assert str(folder) not in (folder / card).read_text() + (folder / "adapter_config.json").read_text()
    assert "confusion" in (folder / report).read_text().lower()
    assert list(AutoPeftModel.from_pretrained(folder).class_names) == NAMES[:5]


def test_a_linear_probe_on_the_same_shots_is_measured_beside(trained: tuple[Path, Answer], digits: Path) -> None:
    """scikit-learn's logistic regression on plain CLIP's features of the drawn images; new classes are zero-shot."""
    folder, answer = trained
    record = json.loads((folder / "results.json").read_text())
    clip, processor = CLIPModel.from_pretrained(TINY_CLIP), CLIPProcessor.from_pretrained(TINY_CLIP)
    splits = load_image_data(str(digits))
    base = record["halves"]["base"]
    shots, test = few_shot(select_classes(splits["train"], base), 2, 1), select_classes(splits["test"], base)

    @torch.no_grad()
    def features(images: datasets.Dataset) -> np.ndarray:
        pixels = processor(images=[each.convert("RGB") for each in images["image"]], return_tensors="pt")
        rows = clip.get_image_features(**pixels).pooler_output.double()
        return (rows / rows.norm(dim=1, keepdim=True)).numpy()

    probe = LogisticRegression(C=100, max_iter=1000).fit(features(shots), shots["label"])
    figures = record["accuracy_percent"]
    assert list(figures) == ["zero-shot CLIP", "linear probe", "ANPrompt"]
    assert figures["linear probe"]["base"]["value"] == pytest.approx(100 * probe.score(features(test), test["label"]))
    assert figures["linear probe"]["new"] == figures["zero-shot CLIP"]["new"]
    assert figures["linear probe"]["base"]["value"] > figures["zero-shot CLIP"]["base"]["value"] + 5
    ours, ahead = (figures[name]["harmonic mean"]["value"] for name in ("ANPrompt", "linear probe"))
    assert ours < ahead
    note = f"A linear probe on the same images is ahead: {ahead:.1f} against {ours:.1f} % (harmonic mean)."
    assert note in record["notes"]
    assert note in answer.err.splitlines()


def test_measuring_leaves_the_model_as_it_is(clip: CLIPModel, clip_folder: Path, digits: Path) -> None:
    processor, splits = CLIPProcessor.from_pretrained(clip_folder), load_image_data(str(digits))
    model = adapt(clip, processor.tokenizer).train()
    clip.logit_scale.requires_grad_()

    def state() -> list[Any]:
        learnable = [name for name, each in model.named_parameters() if each.requires_grad]
        return [learnable, [each.training for each in model.modules()], model.class_names]

    before = state()
    measured = measuring.measure(model, {"test": splits["test"]}, processor, 8, 0, splits["train"])
    assert state() == before
    assert [each.name for each in measured.probe] == ["test"]


def test_run_yaml_repeats_the_run_bit_for_bit(adapter: Path, tmp_path: Path) -> None:
    assert call("train", "--config", adapter / "run.yaml", "--output", tmp_path / "again").code == 0
    for name in (WEIGHTS, "adapter_config.json", "run.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (adapter / name).read_bytes()
    assert call("train", "--config", adapter / "run.yaml", "--output", tmp_path / "other", "--seed", 2).code == 0
    assert not same(load_file(tmp_path / "other" / WEIGHTS), load_file(adapter / WEIGHTS))


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_gives_defaults_and_flags_win(suffix: str, digits: Path, tmp_path: Path) -> None:
    settings = {
        "model": str(TINY_CLIP), "shots": 4, "template": TEMPLATE, "batch-size": 5, "epochs": 7,
        "adapter": {"num_virtual_tokens": 3, "text_layers": [4], "noise_scale": 0.25},
        "training": {"weight_decay": 0.5, "warmup_epochs": None, "max_grad_norm": 1},
    }  # fmt: skip
    path = tmp_path / f"mine.{suffix}"
    text = json.dumps(settings) if suffix == "json" else yaml.safe_dump(settings).replace("0.25", "25e-2")
    path.write_text(text)
    output = tmp_path / "out"
    assert call("train", digits, "--config", path, "--output", output, "--shots", 1, "--epochs", 1).code == 0
    run = yaml.safe_load((output / "run.yaml").read_text())
    assert run["shots"] == 1
    expected = {"num_train_epochs": 1.0, "per_device_train_batch_size": 5, "weight_decay": 0.5, "warmup_epochs": None}
    assert run["training"] == {**run["training"], **expected}
    config = json.loads((output / "adapter_config.json").read_text())
    assert (config["num_virtual_tokens"], config["text_layers"], config["noise_scale"]) == (3, [4], 0.25)
    history = json.loads((output / "results.json").read_text())["history"]
    assert history[0]["step"] == 10 / 5


def test_what_is_measured_is_what_is_saved(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded in the same precision, the adapter answers as it was measured; it is saved in float32."""
    pixels, measured = torch.rand(2, 3, 32, 32), []

    def measure(model: Any, *arguments: Any) -> Any:
        with torch.no_grad():
            measured.append(model(pixel_values=pixels).logits)
        return measuring.measure(model, *arguments)

    monkeypatch.setattr(training_job, "measure", measure)
    assert train(tmp_path / "out", "--precision", "bf16", "--epochs", 1).code == 0
    saved = AutoPeftModel.from_pretrained(tmp_path / "out").eval()
    set_precision(saved, "bf16")
    with torch.no_grad():
        assert torch.equal(saved(pixel_values=pixels).logits, measured[0])
    assert {each.dtype for each in load_file(tmp_path / "out" / WEIGHTS).values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(("native", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_the_device_chooses_the_precision_and_is_told(
    native: bool, chosen: str, train: Train, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's record holds the choice, so that it can be repeated anywhere."""
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: native)
    said = f"Computing in {chosen}: this CPU {'multiplies' if native else 'does not multiply'} bfloat16 natively"
    output = tmp_path / "out"
    assert train(output, "--precision", "auto", "--epochs", 1).err.count(said) == 1
    assert yaml.safe_load((output / "run.yaml").read_text())["precision"] == chosen
    assert json.loads((output / "results.json").read_text())["config"]["precision"] == chosen
    image = next((digits / "test").rglob("*.png"))
    for command in (("predict", output, image), ("evaluate", output, digits)):
        answer = call(*command)
        assert (answer.code, "Computing in" in answer.err) == (0, False)


def test_the_image_cache_holds_the_training_images(train: Train, tmp_path: Path) -> None:
    """A file for each of the 20, none for the images that are measured on, and the same weights up to rounding."""
    settings = "--no-augment", "--precision", "fp32"
    assert train(tmp_path / "plain", *settings).code == 0
    assert train(tmp_path / "cached", *settings, "--image-cache", tmp_path / "cache").code == 0
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 20
    plain, cached = (load_file(tmp_path / name / WEIGHTS) for name in ("plain", "cached"))
    for name, weight in plain.items():
        torch.testing.assert_close(cached[name], weight, rtol=1e-3, atol=1e-5)
    record = yaml.safe_load((tmp_path / "cached" / "run.yaml").read_text())
    assert record["image_cache"] == str(tmp_path / "cache")


def test_validation_images_choose_the_checkpoint(digits: Path, tmp_path: Path) -> None:
    """Trainer's own settings reach it, and the figures say when they come from the images that chose."""
    shutil.copytree(digits / "train", tmp_path / "data" / "train")
    shutil.copytree(digits / "test", tmp_path / "data" / "validation")
    best = {"eval_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"training": best, "model": str(TINY_CLIP), "epochs": 2}))
    output = tmp_path / "out"
    assert call("train", tmp_path / "data", "--config", tmp_path / "mine.yaml", "--output", output).code == 0
    record = json.loads((output / "results.json").read_text())
    measured = [entry["eval_accuracy"] for entry in record["history"] if "eval_accuracy" in entry]
    assert 100 * max(measured) == pytest.approx(record["accuracy_percent"]["ANPrompt"]["validation"]["value"])
    *_, probe, chosen = record["notes"]  # after two epochs it may be below zero-shot CLIP, and says so
    assert probe.startswith("A linear probe on the same images is ahead: ")
    assert chosen == "The best checkpoint was chosen on the images that the figures come from."


def test_early_stopping_keeps_the_best_epoch_and_survives_an_interruption(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate of 0 never improves on the first epoch, so patience 2 ends the run after the third."""
    shared = (
        "train", digits, "--model", TINY_CLIP, "--shots", 2, "--epochs", 9, "--learning-rate", 0,
        "--early-stopping", 2, "--validation-share", 0.5,
    )  # fmt: skip
    assert call(*shared, "--output", tmp_path / "whole").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(training_job, "Progress", type("AtStep", (Interrupt,), {"step": 2 * STEPS_PER_EPOCH}))
        assert call(*shared, "--output", tmp_path / "resumed").code == 130
    assert (tmp_path / "resumed" / f"checkpoint-{2 * STEPS_PER_EPOCH}").is_dir()
    assert call("train", "--output", tmp_path / "resumed", "--resume").code == 0
    for name in ("whole", "resumed"):
        record = json.loads((tmp_path / name / "results.json").read_text())
        assert [entry["epoch"] for entry in record["history"] if "eval_accuracy" in entry] == [1, 2, 3]
        assert record["split"] == "test"
        assert record["config"]["early_stopping"] == 2
        assert record["config"]["training"]["load_best_model_at_end"] is True


def test_early_stopping_takes_the_weights_of_the_best_epoch(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accuracy is made to fall after the first epoch; what is saved is what a run of that one epoch saves."""
    falling = iter([0.9, 0.5, 0.4])
    monkeypatch.setattr(training_job, "ANPromptTrainer", Scored)
    monkeypatch.setattr(Scored, "scores", falling, raising=False)
    settings = tmp_path / "mine.yaml"
    settings.write_text(yaml.safe_dump({"training": {"warmup_epochs": None, "lr_scheduler_type": "constant"}}))
    shared = ("train", digits, "--model", TINY_CLIP, "--shots", 2, "--validation-share", 0.5, "--config", settings)
    assert call(*shared, "--output", tmp_path / "stopped", "--epochs", 9, "--early-stopping", 2).code == 0
    assert next(falling, None) is None
    assert call(*shared, "--output", tmp_path / "one", "--epochs", 1).code == 0
    assert same(load_file(tmp_path / "stopped" / WEIGHTS), load_file(tmp_path / "one" / WEIGHTS))


class Scored(ANPromptTrainer):
    """A trainer whose evaluations find given accuracies."""

    scores: Iterator[float]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, compute_metrics=lambda _: {"accuracy": next(self.scores)})


def test_imbalanced_classes_are_weighted_and_measured_class_by_class(
    digits: Path, train: Train, tmp_path: Path
) -> None:
    """Two images of five digits, six of the others, in both splits."""
    data = shutil.copytree(digits, tmp_path / "data")
    for split in ("train", "test"):
        for name in NAMES[:5]:
            for path in sorted((data / split / name).iterdir())[2:]:
                path.unlink()
    settings = ("train", data, "--model", TINY_CLIP, "--epochs", 2, "--output")
    answer = call(*settings, tmp_path / "weighted", "--class-weights", "balanced")
    assert answer.code == 0
    record = json.loads((tmp_path / "weighted" / "results.json").read_text())
    for method in ("ANPrompt", "zero-shot CLIP"):
        rows = record["classes"]["test"].values()
        right = "right" if method == "ANPrompt" else "zero_shot_right"
        recalls = [100 * row[right] / row["images"] for row in rows]
        balanced = record["balanced_accuracy_percent"][method]["test"]
        assert balanced == pytest.approx(sum(recalls) / len(recalls))
        assert f"{balanced:.1f}" in answer.out.partition("balanced accuracy in %")[2]
        assert f"{record['macro_f1_percent'][method]['test']:.1f}" in answer.out.partition("macro-F1 in %")[2]
    assert "Classes of test have 2 to 6 images: balanced accuracy" in "".join(record["notes"])
    assert record["config"]["training"]["class_weights"] == "balanced"
    assert call(*settings, tmp_path / "plain").code == 0
    assert not same(load_file(tmp_path / "plain" / WEIGHTS), load_file(tmp_path / "weighted" / WEIGHTS))
    assert "balanced accuracy" not in train(tmp_path / "even").out


def test_macro_f1_is_the_mean_of_the_classes_own() -> None:
    names = ("a", "b", "c")
    labels, predicted = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 2])
    part = Predictions("test", names, labels, predicted)
    measured = measuring.Measured([part], [part]).to_dict()
    assert measured["balanced_accuracy_percent"]["ANPrompt"]["test"] == pytest.approx(100 * (3 / 4 + 1 / 2) / 2)
    assert measured["macro_f1_percent"]["ANPrompt"]["test"] == pytest.approx(100 * (6 / 7 + 1 / 2) / 2)


@pytest.mark.parametrize("wrong", [0, 3])
def test_whoever_ends_below_zero_shot_is_told(wrong: int) -> None:
    labels = np.arange(10) % 2
    ours, theirs = labels.copy(), labels.copy()
    ours[:wrong] = 1 - ours[:wrong]
    theirs[:1] = 1 - theirs[:1]
    parts = [[Predictions(name, ("a", "b"), labels, each) for name in ("base", "new")] for each in (ours, theirs)]
    single = measuring.Measured(parts[0][:1], parts[1][:1])
    double = measuring.Measured(*parts)
    if wrong:
        assert single.summary().startswith("-20.0 points over zero-shot, 70.0 against 90.0\n")
        (note,) = single.notes()
        assert note.startswith("The adapter is below zero-shot CLIP: 70.0 against 90.0 %. ")
        (note,) = double.notes()
        assert "70.0 against 90.0 % (base), 70.0 against 90.0 % (new), 70.0 against 90.0 % (harmonic mean)." in note
    else:
        assert single.summary().startswith("+10.0 points over zero-shot, 100.0 against 90.0\n")
        assert double.summary().startswith("+10.0 points over zero-shot in the harmonic mean, 100.0 against 90.0\n")
        assert single.notes() == double.notes() == []
        assert measuring.Measured(parts[0], parts[1], parts[0]).notes() == []
        (note,) = measuring.Measured(parts[1][:1], parts[1][:1], parts[0][:1]).notes()
        assert note == "A linear probe on the same images is ahead: 100.0 against 90.0 %."


def test_a_run_that_ends_below_zero_shot_says_so(train: Train, digits: Path, tmp_path: Path) -> None:
    """A learning rate of 3 destroys what CLIP knows; the report keeps local paths to itself."""
    answer = train(tmp_path / "out", "--learning-rate", 3)
    assert answer.code == 0
    notes = json.loads((tmp_path / "out" / "results.json").read_text())["notes"]
    assert notes[0].startswith("The adapter is below zero-shot CLIP: ")
    assert notes[0] in answer.err.splitlines()
    page = (tmp_path / "out" / "report.html").read_text()
    assert notes[0] in page
    assert str(digits.parent) not in page
    assert str(TINY_CLIP.parent) not in page
    evaluation = call("evaluate", tmp_path / "out", digits, "--json", "--report", tmp_path / "evaluation.html")
    assert notes[0] in evaluation.err.splitlines()
    assert json.loads(evaluation.out)["notes"] == notes[:1]
    assert notes[1].startswith("A linear probe on the same images is ahead: ")
    assert str(digits.parent) not in (tmp_path / "evaluation.html").read_text()


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_recipe_and_warm_up_are_options(recipe: str, train: Train, tmp_path: Path) -> None:
    """A warm-up that lasts the whole run moves nothing far; without one, the same run does."""
    moved = {}
    for warmup in (0, 2):
        output = tmp_path / str(warmup)
        assert train(output, "--recipe", recipe, "--warmup-epochs", warmup).code == 0
        config = yaml.safe_load((output / "run.yaml").read_text())["training"]
        assert (config["recipe"], config["warmup_epochs"]) == (recipe, warmup)
        rates = [entry["learning_rate"] for entry in json.loads((output / "results.json").read_text())["history"][:2]]
        moved[warmup] = rates
    assert moved[2] == [1e-5, 1e-5]
    assert max(moved[0]) > 1e-4


def test_data_without_a_test_split_can_hold_some_out(digits: Path, tmp_path: Path) -> None:
    settings = ("train", digits / "train", "--model", TINY_CLIP, "--epochs", 1, "--shots", 1)
    assert call(*settings, "--output", tmp_path / "out", "--test-share", 0.5).code == 0
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert sum(entry["images"] for entry in record["classes"]["test"].values()) == 10 * LIMIT / 2
    answer = call(*settings, "--output", tmp_path / "unmeasured")
    assert answer.code == 0
    assert "nothing was measured" in answer.out
    assert "--test-share 0.2" in answer.out
    assert "accuracy_percent" not in json.loads((tmp_path / "unmeasured" / "results.json").read_text())


def images(folder: Path, digits: Path, **counts: int) -> Path:
    """A folder with some images of each digit in it; names are `split__digit` or `digit`."""
    for name, count in counts.items():
        target = folder.joinpath(*name.split("__"))
        target.mkdir(parents=True)
        for number in range(count):
            shutil.copy(digits / "train" / target.name / f"{number:03}.png", target)
    return folder


def test_what_was_read_is_told_before_training(digits: Path, tmp_path: Path) -> None:
    data = images(tmp_path / "data", digits, Train__one=2, Train__two=3, Testing__one=1, Testing__two=1)
    shutil.copytree(data / "Train", data / "@eaDir")
    for name in ("Train/one/a.txt", "Train/one/b.TXT", "c.raw", "Train/two/._000.png"):
        (data / name).write_text("no image")
    (data / "Train" / "six").mkdir()
    answer = call("train", data, "--output", tmp_path / "run", "--model", TINY_CLIP, "--epochs", 1)
    assert answer.code == 0, answer.err
    lines = answer.err.splitlines()[1:4]
    assert lines == [
        f"Left out of {data}: .txt 2, .raw 1; hidden 2 (._000.png, @eaDir).",
        f"{data}: left out, as they hold no image that is read: Train/six/.",
        f"Read {data}: train 5 images of 2 classes (one 2, two 3); test 2 images of 2 classes (1 each).",
    ]
    answer = call("evaluate", tmp_path / "run", data)
    assert answer.err.splitlines()[:3] == lines
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["class_names"] == ["one", "two"]


def test_a_class_whose_images_are_all_corrupt_is_named(digits: Path, tmp_path: Path) -> None:
    data = images(tmp_path / "data", digits, one=2, two=2, six=2)
    for path in (data / "six").iterdir():
        path.write_text("no image")
    options = ("--model", TINY_CLIP, "--epochs", 1, "--on-corrupt", "skip")
    answer = call("train", data, "--output", tmp_path / "run", *options)
    assert answer.code == 1
    assert "error: None of the images to train on of these classes can be read: six." in answer.err
    assert not (tmp_path / "run" / "run.yaml").exists()


def test_classes_are_trained_on_only_with_images(digits: Path, tmp_path: Path) -> None:
    """A split with more classes than there are to train on would give an adapter with empty classes."""
    data = images(tmp_path / "data", digits, train__one=2, train__two=2, train__six=2, test__one=1, test__two=1)
    options = ("--model", TINY_CLIP, "--epochs", 1)
    answer = call("train", data, "--output", tmp_path / "less", *options)
    assert answer.code == 0, answer.err
    assert "No images in test: six." in answer.err.splitlines()
    answer = call("evaluate", tmp_path / "less", data)
    assert "No images in test: six." in answer.err.splitlines()
    shutil.copytree(data / "train" / "six", data / "test" / "six")
    for split in ("validation", "test"):
        images(data, digits, **{f"{split}__nine": 1, f"{split}__eight": 1})
        for more in ([], ["--shots", 1]):
            line = refused("train", data, "--output", tmp_path / "more", *options, *more)
            assert f"{split} has images of classes that train has none of to train on: eight, nine." in line
        shutil.rmtree(data / split / "eight")
        shutil.rmtree(data / split / "nine")
        shutil.rmtree(data / "validation", ignore_errors=True)
    assert not (tmp_path / "more" / "run.yaml").exists()
    images(data, digits, test__nine=1, test__eight=1)
    (tmp_path / "halves.json").write_text(json.dumps({"base": ["one", "two"], "new": ["nine", "eight"]}))
    answer = call("train", data, "--output", tmp_path / "new", *options, "--halves", tmp_path / "halves.json")
    assert answer.code == 0, answer.err


def test_the_same_images_in_both_splits_are_told(digits: Path, tmp_path: Path) -> None:
    data = shutil.copytree(digits, tmp_path / "data")
    shutil.copy(data / "train" / "one" / "000.png", data / "test" / "one" / "copy.png")
    settings = ("train", data, "--model", TINY_CLIP, "--epochs", 1)
    said = "The adapter was trained on {} of the {} images that it is measured on"
    answer = call(*settings, "--output", tmp_path / "out")
    assert f"{said.format(1, 10 * LIMIT + 1)}, so the figures do not tell" in answer.err
    assert "Remove what is in both splits from one of them." in answer.err
    answer = call(*settings, "--output", tmp_path / "own", "--eval-split", "train", "--shots", 1)
    assert said.format(10, 10 * LIMIT) in answer.err


def test_up_to_so_many_shots(digits: Path, tmp_path: Path) -> None:
    data = shutil.copytree(digits / "train", tmp_path / "data")
    for name in ("000.png", "001.png", "002.png", "003.png", "004.png"):
        (data / "one" / name).unlink()
    output = tmp_path / "out"
    assert call("train", data, "--output", output, "--model", TINY_CLIP, "--epochs", 1, "--shots-up-to", 2).code == 0
    record = json.loads((output / "results.json").read_text())
    assert record["train_images"] == {**dict.fromkeys(NAMES, 2), "one": 1}
    assert "up to 2" in (output / "README.md").read_text()


def test_corrupt_images_stop_the_run_or_are_counted(digits: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    broken = [data / "train" / "zero" / "000.png", data / "test" / "one" / "001.png"]
    for path in broken:
        path.write_text("no image")
    settings = ("train", data, "--output", tmp_path / "out", "--model", TINY_CLIP, "--epochs", 1)
    answer = call(*settings)
    assert (answer.code, answer.out) == (1, "")
    assert str(broken[0]) in answer.err
    assert "--on-corrupt skip" in answer.err
    assert not (tmp_path / "out").exists()
    assert call(*settings, "--on-corrupt", "skip").code == 0
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [str(path) in line for path, line in zip(broken, record["left_out"], strict=True)] == [True, True]
    assert record["train_images"]["zero"] == LIMIT - 1
    assert record["notes"][-1] == "2 images could not be read and were left out."


# Ctrl-C and --resume


STOPS = [pytest.param(signal.SIGINT, 130, id="SIGINT"), pytest.param(signal.SIGTERM, 143, id="SIGTERM")]


class Interrupt(training_job.Progress):
    """Sends this process a signal at the end of a step, as a terminal does on Ctrl-C."""

    step, times, number = 0, 1, signal.SIGINT

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        for _ in range(self.times if state.global_step == self.step else 0):
            signal.raise_signal(self.number)  # to this thread, and so before the next one


@pytest.mark.parametrize("step", [STEPS_PER_EPOCH - 2, STEPS_PER_EPOCH])
def test_an_interrupted_run_ends_as_if_nothing_had_happened(
    step: int, train: Train, whole: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within an epoch and at its end, with random crops, and beside a later checkpoint that was broken off."""
    output = tmp_path / "my run"
    with monkeypatch.context() as patch:
        patch.setattr(training_job, "Progress", type("AtStep", (Interrupt,), {"step": step}))
        answer = train(output)
    assert (answer.code, answer.out) == (130, "")
    assert f"Interrupted after step {step} of {2 * STEPS_PER_EPOCH}" in answer.err
    assert answer.err.endswith(f"anprompt train --output '{output}' --resume\n")
    assert {path.name for path in output.iterdir()} == {f"checkpoint-{step}", "run.yaml"}
    broken = shutil.copytree(output / f"checkpoint-{step}", output / f"checkpoint-{step + 1}")
    (broken / "trainer_state.json").unlink()
    answer = call("train", "--output", output, "--resume")
    assert (answer.code, f"Resuming from checkpoint-{step} of {output}." in answer.err) == (0, True)
    assert same(load_file(output / WEIGHTS), whole)
    history = json.loads((output / "results.json").read_text())["history"]
    assert [entry["epoch"] for entry in history if "loss" in entry] == [1, 2]


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_the_second_interrupt_quits_at_once(
    number: signal.Signals,
    code: int,
    train: Train,
    whole: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It leaves what was saved before, here nothing, and the run can still be taken up."""
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        twice = {"step": 2, "times": 2, "number": number}
        patch.setattr(training_job, "Progress", type("Twice", (Interrupt,), twice))
        assert train(tmp_path / "out").code == code
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"run.yaml"}
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    answer = train(tmp_path / "out", "--resume")
    assert (answer.code, "There is no checkpoint in" in answer.err) == (0, True)
    assert same(load_file(tmp_path / "out" / WEIGHTS), whole)


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_real_process_stops_on_a_real_signal(
    number: signal.Signals, code: int, digits: Path, tmp_path: Path
) -> None:
    """With a data worker, which terminals and schedulers send the signal, too; 80 steps leave time to send it."""
    settings = ["train", digits, "--model", TINY_CLIP, "--shots", 2, "--epochs", 4, "--batch-size", 1]
    output, uninterrupted = tmp_path / "out", tmp_path / "whole"
    command = [sys.executable, "-m", "anprompt_peft", *settings, "--output", output, "--workers", 1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        seen = b""
        while not re.search(rb" [1-9]\d*/80 ", seen):
            chunk = os.read(process.stderr.fileno(), 4096)
            assert chunk, seen.decode()
            seen += chunk
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (code, b""), err.decode()
    assert (seen + err).count(b"Ctrl-C again quits at once") == 1
    assert b"Warning" not in seen + err
    assert b"Loading weights" not in seen + err
    assert not (output / WEIGHTS).exists()
    assert call("train", "--output", output, "--resume").code == 0
    assert call(*settings, "--output", uninterrupted).code == 0
    assert same(load_file(output / WEIGHTS), load_file(uninterrupted / WEIGHTS))


def test_only_the_run_that_was_begun_is_resumed(train: Train, adapter: Path, tmp_path: Path) -> None:
    assert "is complete" in refused("train", "--output", adapter, "--resume")
    assert "no run was begun" in refused("train", "--output", tmp_path / "none", "--resume")
    (tmp_path / "begun").mkdir()
    shutil.copy(adapter / "run.yaml", tmp_path / "begun")
    line = refused("train", "--output", tmp_path / "begun", "--resume", "--seed", 5, "--epochs", 3)
    assert "seed is 5 and was 1" in line
    assert "training.num_train_epochs is 3.0 and was 2.0" in line


def test_crops_depend_on_seed_epoch_and_row_alone() -> None:
    class Noisy:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, row: int) -> torch.Tensor:
            return torch.rand(2)

    def read(workers: int, epochs: int = 2) -> torch.Tensor:
        rows = SeededDataset(Noisy(), seed=3)
        loader: Any = DataLoader(rows, num_workers=workers, persistent_workers=workers > 0)
        drawn = []
        for epoch in range(epochs):
            rows.epoch.fill_(epoch)
            drawn.append(torch.cat(list(loader)))
        return torch.stack(drawn)

    state = torch.get_rng_state()
    rows = SeededDataset(Noisy(), seed=3)
    assert torch.equal(rows[1], rows[1])
    assert torch.equal(torch.get_rng_state(), state)
    alone = read(workers=0)
    assert torch.equal(read(workers=2), alone)
    assert len(alone.unique()) == alone.numel()


# evaluate


def test_evaluation_finds_what_training_found(adapter: Path, digits: Path, tmp_path: Path) -> None:
    report = tmp_path / "new" / "report.html"
    answer = call(
        "evaluate", adapter, digits, "--halves", adapter / "base-new.json", "--json", "--report", report,
        "--batch-size", 7,
    )  # fmt: skip
    assert answer.code == 0
    found, trained = json.loads(answer.out), json.loads((adapter / "results.json").read_text())
    trained["accuracy_percent"].pop("linear probe")  # whose training images are not at hand
    assert found["accuracy_percent"] == trained["accuracy_percent"]
    assert found["classes"] == trained["classes"]
    assert "confusion" in report.read_text().lower()


@pytest.fixture(scope="module")
def plain(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of classes without splits, and a run that held a third of it out."""
    root = tmp_path_factory.mktemp("plain")
    photos = shutil.copytree(digits / "train", root / "photos")
    settings = ("--model", os.path.relpath(TINY_CLIP), "--shots", 2, "--epochs", 1, "--test-share", 0.34)
    assert call("train", photos, "--output", root / "adapter", *settings).code == 0
    return photos, root / "adapter"


@pytest.mark.parametrize("moved", [False, True])
def test_evaluation_measures_what_training_held_out(moved: bool, plain: tuple[Path, Path], tmp_path: Path) -> None:
    """The very images, also where the folder was moved and has more images since."""
    photos, adapter = plain
    if moved:
        photos = shutil.copytree(photos, tmp_path / "moved")
        Image.new("RGB", (16, 16), "red").save(photos / "eight" / "00-new.png")
    answer = call("evaluate", adapter, photos, "--json")
    assert answer.code == 0
    found, trained = json.loads(answer.out), json.loads((adapter / "results.json").read_text())
    assert found["classes"] == trained["classes"]
    assert found["accuracy_percent"]["ANPrompt"] == trained["accuracy_percent"]["ANPrompt"]
    assert found["trained_images"] == 0
    said = "Measured on 20 images that training held out as the split test (--test-share 0.34 in run.yaml)."
    assert (said in answer.err, "trained on" in answer.err) == (True, False)


def test_evaluation_tells_what_was_trained_on(plain: tuple[Path, Path], adapter: Path, tmp_path: Path) -> None:
    """Images that were not drawn as shots are not meant, nor others that are called alike."""
    photos, held_out = plain
    answer = call("evaluate", held_out, photos, "--split", "train")
    said = "The adapter was trained on 20 of the 60 images that it is measured on"
    assert answer.code == 0
    assert f"{said}, so the figures do not tell how it does on new ones. --split test measures others." in answer.err
    others = tmp_path / "others"
    for path in sorted(photos.rglob("*.png")):
        (others / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(path).rotate(90).save(others / path.parent.name / path.name)
    assert "trained on" not in call("evaluate", held_out, others, "--split", "train").err
    line = refused("evaluate", held_out, others)
    assert "Training held images of" in line
    assert "none of them is in these data. Measure other images with --split train." in line


def test_what_was_trained_on_may_not_be_known(plain: tuple[Path, Path], tmp_path: Path) -> None:
    photos, adapter = plain
    copy = shutil.copytree(adapter, tmp_path / "copy")
    (copy / "images.json").write_text('{"trained_on": "all"}')
    assert "images.json was not written by anprompt train: trained_on: " in refused("evaluate", copy, photos)
    (copy / "images.json").unlink()
    assert "without images.json beside the adapter it is not known which" in refused("evaluate", copy, photos)
    answer = call("evaluate", copy, photos, "--split", "train")
    assert "Whether the adapter was trained on these images is not known: there is no images.json" in answer.err
    (copy / "run.yaml").write_text("data: [")
    assert "run.yaml cannot be read: " in refused("evaluate", copy, photos)
    (copy / "run.yaml").unlink()
    answer = call("evaluate", copy, photos, "--split", "train", "--json")
    assert "is not known: there is no run.yaml beside it." in answer.err
    assert json.loads(answer.out)["trained_images"] is None


def test_evaluation_reads_the_same_data_as_training_did(digits: Path, tmp_path: Path) -> None:
    """With the class names that the run gave them."""
    data = tmp_path / "codes"
    for label, name in enumerate(NAMES[:4]):
        shutil.copytree(digits / "train" / name, data / f"n{label:08}")
    names = [part for name in NAMES[:4] for part in ("--class-names", name)]
    model, output = ("--model", TINY_CLIP), tmp_path / "out"
    answer = call("train", data, "--output", output, *model, *names, "--shots", 2, "--epochs", 1, "--test-share", 0.5)
    assert (answer.code, "CLIP reads class names" in answer.err) == (0, False)
    answer = call("evaluate", output, data)
    assert (answer.code, "read as in training, with --class-names of run.yaml" in answer.err) == (0, True)
    assert sorted(line.split()[0] for line in answer.out.splitlines()[-4:]) == sorted(NAMES[:4])
    answer = call("train", data, "--output", tmp_path / "hint", *model, "--shots", 2, "--epochs", 1)
    assert "Classes are called n00000000, n00000001, n00000002, n00000003: CLIP reads class names" in answer.err


def test_the_base_model_is_found_from_another_folder(
    plain: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained with a relative path; where an adapter has one, what is missing is said with where it was written."""
    photos, adapter = plain
    monkeypatch.chdir(tmp_path)
    assert call("predict", adapter, photos / "one").code == 0
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == config["tokenizer_name_or_path"] == str(TINY_CLIP)
    copy = shutil.copytree(adapter, tmp_path / "copy")
    (copy / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "clip"}))
    line = refused("predict", copy, photos / "one")
    assert f"{copy}/adapter_config.json names the base model 'clip' (base_model_name_or_path)" in line
    assert f"there is no such folder in {tmp_path}." in line


def test_zero_shot_is_the_untouched_clip(adapter: Path, digits: Path) -> None:
    processor, clip = CLIPProcessor.from_pretrained(TINY_CLIP), CLIPModel.from_pretrained(TINY_CLIP).eval()
    answer = call("evaluate", adapter, digits, "--json", *(part for name in NAMES for part in ("--classes", name)))
    figures = json.loads(answer.out)["classes"]["test"]
    texts = [TEMPLATE.format(name) for name in NAMES]
    for label, name in enumerate(NAMES):
        images = [Image.open(path).convert("RGB") for path in sorted((digits / "test" / name).iterdir())]
        with torch.no_grad():
            inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
            right = (clip(**inputs).logits_per_image.argmax(dim=1) == label).sum()
        assert figures[name]["zero_shot_right"] == right
        assert figures[name]["images"] == LIMIT


def test_evaluation_says_which_classes_it_leaves_out(adapter: Path, digits: Path) -> None:
    answer = call("evaluate", adapter, digits)
    assert answer.code == 0
    assert "Left out: the images of 5 other classes." in answer.err
    gain, _, *table = answer.out.splitlines()
    assert re.fullmatch(r"[+-]\d+\.\d points over zero-shot, \d+\.\d against \d+\.\d", gain)
    assert table[0].split()[-1] == "test"
    assert sorted(line.split()[0] for line in table[5:]) == NAMES[:5]


def test_data_with_other_names_are_renamed(adapter: Path, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "test", tmp_path / "test")
    for number, name in enumerate(NAMES):
        (tmp_path / "test" / name).rename(tmp_path / "test" / f"n{number}")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    renaming = tmp_path / "names.json"
    renaming.write_text(json.dumps({f"n{number}": name for number, name in enumerate(NAMES)}))
    plain = json.loads(call("evaluate", adapter, digits, "--json").out)["classes"]
    for file in (names, renaming):
        answer = call("evaluate", adapter, tmp_path, "--classes-file", file, "--json")
        assert json.loads(answer.out)["classes"] == plain
    assert "unknown classes" in refused("evaluate", adapter, tmp_path)


# predict


def rankings(answer: Answer) -> dict[str, list[tuple[str, float]]]:
    lines = map(json.loads, answer.out.splitlines())
    return {line["image"]: [(each["class"], each["probability"]) for each in line["predictions"]] for line in lines}


@pytest.mark.parametrize("classes", [None, ["zero", "one", "six"]])
def test_predictions_are_the_models(classes: list[str] | None, adapter: Path, digits: Path) -> None:
    folder = digits / "test" / "six"
    chosen = [part for name in classes or () for part in ("--classes", name)]
    found = rankings(
        call("predict", adapter, folder, "--jsonl", "--top-k", 2, "--batch-size", 4, "--precision", "fp32", *chosen)
    )
    assert list(found) == [str(path) for path in sorted(folder.iterdir())]
    model, processor = AutoPeftModel.from_pretrained(adapter).eval(), CLIPProcessor.from_pretrained(TINY_CLIP)
    model.set_classes(classes)
    images = [Image.open(path).convert("RGB") for path in found]
    with torch.no_grad():
        logits = model(**processor(images=images, return_tensors="pt")).logits
    shares, best = logits.softmax(dim=-1).topk(2)
    for ranking, indices, values in zip(found.values(), best.tolist(), shares.tolist(), strict=True):
        assert [name for name, _ in ranking] == [model.class_names[index] for index in indices]
        assert [share for _, share in ranking] == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize("saved", ["processor", "image processor"])
def test_images_are_prepared_as_the_folder_says(saved: str, adapter: Path, digits: Path, tmp_path: Path) -> None:
    image, copy = digits / "test" / "six", shutil.copytree(adapter, tmp_path / "copy")
    for path in copy.glob("*processor_config.json"):
        path.unlink()
    before = rankings(call("predict", copy, image, "--jsonl"))
    assert before == rankings(call("predict", adapter, image, "--jsonl"))
    processor = CLIPProcessor.from_pretrained(TINY_CLIP)
    processor.image_processor.image_mean = [0.9, 0.9, 0.9]
    (processor if saved == "processor" else processor.image_processor).save_pretrained(copy)
    assert rankings(call("predict", copy, image, "--jsonl")) != before


@pytest.mark.parametrize("file", ["processor_config.json", "preprocessor_config.json"])
def test_a_processor_that_is_not_of_this_clip_is_refused_by_name(
    file: str, adapter: Path, digits: Path, tmp_path: Path
) -> None:
    for kind, source in (("adapter", adapter), ("base", TINY_CLIP)):
        folder = shutil.copytree(source, tmp_path / kind)
        for path in folder.glob("*processor_config.json"):
            path.unlink()
        settings = {**CLIPImageProcessorPil().to_dict(), "size": {"shortest_edge": 120_000}}
        (folder / file).write_text(json.dumps(settings if file.startswith("pre") else {"image_processor": settings}))
    wanted = "size={'shortest_edge': 120000} must have whole numbers from 1 to 4096."
    given = f"{tmp_path / 'adapter' / file}"
    for command in (("predict", tmp_path / "adapter", digits / "test"), ("evaluate", tmp_path / "adapter", digits)):
        line = refused(*command)
        assert given in line
        assert wanted in line
    line = refused("train", digits, "--model", tmp_path / "base", "--output", tmp_path / "out", "--shots", 1)
    assert f"{tmp_path / 'base' / file}" in line
    assert wanted in line
    assert not (tmp_path / "out").exists()


def test_files_folders_and_globs_become_a_table(adapter: Path, digits: Path) -> None:
    one = digits / "test" / "one" / "000.png"
    answer = call("predict", adapter, one, digits / "test" / "two", digits / "test" / "*" / "001.png", "--top-k", 1)
    assert answer.code == 0
    rows = [line.split("  ") for line in answer.out.splitlines()]
    expected = [one, *sorted((digits / "test" / "two").iterdir()), *sorted(digits.glob("test/*/001.png"))]
    assert [row[0].strip() for row in rows] == list(map(str, expected))
    assert all(row[-1].endswith("%") and row[-1].split()[0] in NAMES for row in rows)


def test_predict_reads_the_files_that_training_reads(adapter: Path, digits: Path, tmp_path: Path) -> None:
    """Hidden files and other endings are counted, in folders and globs; a file that is named itself is classified."""
    image = digits / "test" / "one" / "000.png"
    kept = ["B/0.png", "a/1.jfif", "a-b/0.PNG", "c.png"]
    hidden = ["__MACOSX/._0.png", "a/._0.png", ".ipynb_checkpoints/0-checkpoint.png", "@eaDir/0.png", "Thumbs.db"]
    for name in (*kept, *hidden, "a/notes.txt", "a/raw.psd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(image, tmp_path / name)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    answer = call("predict", adapter, tmp_path, "--jsonl")
    assert answer.code == 0
    assert list(rankings(answer)) == [str(tmp_path / name) for name in kept]
    assert (
        f"Left out of {tmp_path}: .txt 1, .psd 1; "
        "hidden 5 (._0.png, .ipynb_checkpoints, @eaDir, Thumbs.db, __MACOSX); linked folders not followed 1 (loop)."
    ) in answer.err.splitlines()
    answer = call("predict", adapter, tmp_path / "*" / "0.png", tmp_path / hidden[1], "--jsonl")
    assert list(rankings(answer)) == [str(tmp_path / "B/0.png"), str(tmp_path / hidden[1])]
    assert f"Left out of {tmp_path / '*' / '0.png'}: hidden 1." in answer.err.splitlines()
    assert list(rankings(call("predict", adapter, tmp_path / "@eaDir", "--jsonl"))) == [str(tmp_path / "@eaDir/0.png")]


def test_unreadable_images_are_named_and_the_others_classified(adapter: Path, digits: Path, tmp_path: Path) -> None:
    for name in ("a.png", "c.png"):
        shutil.copy(digits / "test" / "one" / "000.png", tmp_path / name)
    (tmp_path / "b.png").write_text("no image")
    (tmp_path / "notes.txt").write_text("left alone in a folder")
    answer = call("predict", adapter, tmp_path, "--jsonl")
    assert answer.code == 1
    assert list(rankings(answer)) == [str(tmp_path / "a.png"), str(tmp_path / "c.png")]
    assert answer.err.count("error: ") == 1
    assert f"error: {tmp_path / 'b.png'} cannot be decoded" in answer.err


def test_classes_and_templates_of_choice(adapter: Path, digits: Path, tmp_path: Path) -> None:
    image = digits / "test" / "six" / "000.png"
    (tmp_path / "classes.txt").write_text("six\nzero\n")
    answer = call("predict", adapter, image, "--classes-file", tmp_path / "classes.txt", "--jsonl", "--top-k", 9)
    assert {name for name, _ in rankings(answer)[str(image)]} == {"six", "zero"}
    other = call("predict", adapter, image, "--template", "the glyph {}", "--jsonl")
    assert rankings(other) != rankings(call("predict", adapter, image, "--jsonl"))


# info, help, start-up


def test_an_adapter_without_a_base_model_takes_the_one_that_is_given(
    adapter: Path, digits: Path, tmp_path: Path
) -> None:
    """As one that was pushed, and whose base model lay in a folder."""
    nameless = shutil.copytree(adapter, tmp_path / "adapter")
    config = json.loads((nameless / "adapter_config.json").read_text())
    (nameless / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    images = digits / "test" / "one"
    assert "names no base model. Give the CLIP that it was trained with: --model" in refused(
        "predict", nameless, images
    )
    given = call("predict", nameless, images, "--model", TINY_CLIP)
    assert (given.code, given.out) == (0, call("predict", adapter, images).out)
    assert call("evaluate", nameless, digits, "--model", TINY_CLIP).code == 0


def test_info_counts_what_the_model_has(adapter: Path) -> None:
    record = json.loads(call("info", adapter, "--json").out)
    model = AutoPeftModel.from_pretrained(adapter, is_trainable=True)
    assert record["parameters"] == model.get_nb_trainable_parameters()[0]
    saved = load_file(adapter / WEIGHTS).values()
    assert record["parameters"] + record["frozen_values"] == sum(tensor.numel() for tensor in saved)
    assert record["dtypes"].keys() == {"F32", "I64"}
    assert record["classes"] == NAMES[:5]
    assert record["files"][WEIGHTS] == (adapter / WEIGHTS).stat().st_size
    text = call("info", adapter).out
    for shown in (str(TINY_CLIP), ", ".join(NAMES[:5]), TEMPLATE, f"{record['parameters']:,}", "seed=1", "[3, 4]"):
        assert shown in text
    base = json.loads((adapter / "results.json").read_text())["accuracy_percent"]["ANPrompt"]["base"]["value"]
    assert "accuracy (base), %" in text
    assert f"{base:.4g}" in text


def test_info_trusts_nothing_in_an_adapter(adapter: Path, tmp_path: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    names = ["\x1b[31mred", *(f"class {number}" for number in range(29))]
    facts = {"metrics": [{"name": "evil\x07", "value": "x"}, 5], "arguments": [], "training_data": "a\nb"}
    write_adapter(tmp_path, {**config, "class_names": names, "training_facts": facts})
    answer = call("info", tmp_path)
    assert answer.code == 0
    assert "classes (30)" in answer.out
    assert "\\x1b[31mred" in answer.out
    assert all(char.isprintable() or char == "\n" for char in answer.out)
    assert "class 20" not in answer.out
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "ANPROMPT", "class_names": [NaN], "alpha": -1e999}')
    record = json.loads(call("info", tmp_path, "--json").out, parse_constant=pytest.fail)
    assert (record["classes"], record["config"]["alpha"]) == ([None], None)


def write_adapter(folder: Path, config: Any, weights: str = WEIGHTS) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"anprompt_tokens": torch.zeros(2)}, folder / weights)


def test_pickles_other_methods_and_broken_files_are_refused(adapter: Path, digits: Path, tmp_path: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    write_adapter(tmp_path, config, "adapter_model.bin")
    image = digits / "test" / "one" / "000.png"
    pushed = ("push", tmp_path, "me/mine")
    for command in (("info", tmp_path), ("predict", tmp_path, image), ("evaluate", tmp_path, digits), pushed):
        assert "is a pickle, which can run code" in refused(*command)
    write_adapter(tmp_path, {**config, "peft_type": "LORA"})
    for command in (("info", tmp_path), ("predict", tmp_path, image), pushed, ("push", tmp_path.parent, "me/mine")):
        assert "of the method 'LORA', not 'ANPROMPT'" in refused(*command)
    write_adapter(tmp_path, config)
    (tmp_path / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:900])
    assert "is not a whole safetensors file" in refused("info", tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    assert "is not JSON" in refused("info", tmp_path)


def test_help_and_info_start_without_torch(adapter: Path) -> None:
    """Help fits 80 columns and names every option's purpose; what would be slow is not imported."""
    script = f"""
import sys
from anprompt_cli import app, main
for command in ([], ["train"], ["evaluate"], ["predict"], ["push"], ["info"]):
    assert main([*command, "--help"]) == 0
print("end of help")
assert main(["info", {str(adapter)!r}]) == main(["--version"]) == 0
assert main(["train", "--no-such-option"]) == main([]) == main(["predict", "a", "b.png", "--top-k", "0"]) == 2
print(*{{"torch", "transformers", "peft", "datasets", "anprompt_peft"}} & set(sys.modules), file=sys.stderr)
"""
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stderr.splitlines()[-1] == ""
    shown, _, rest = process.stdout.partition("end of help")
    assert max(map(len, shown.splitlines())) <= 80
    for command in ("train", "evaluate", "predict", "push", "info"):
        assert f"Usage: anprompt {command}" in shown
    assert str(TINY_CLIP) in rest


def test_only_jobs_import_what_is_heavy() -> None:
    """Every module directly in anprompt_cli, imported in one process."""
    folder = ROOT / "anprompt_cli"
    names = [f"anprompt_cli.{path.stem}" for path in folder.glob("*.py") if path.stem != "__init__"]
    assert len(names) > 8
    script = f"""
import sys
from importlib import import_module
for name in {names!r}:
    import_module(name)
print(*{{"torch", "transformers", "datasets", "peft", "accelerate", "sklearn", "anprompt_peft"}} & set(sys.modules))
"""
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout == "\n"


def parameters() -> dict[str, dict[str, Any]]:
    """The options of every command by name, without those that typer adds."""
    found, waiting = {}, list(typer.main.get_group(app).commands.items())
    for name, command in waiting:
        waiting += [(f"{name} {part}", each) for part, each in getattr(command, "commands", {}).items()]
        if command.params or not hasattr(command, "commands"):
            found[name] = {option.name: option for option in command.params}
    return found


def test_help_states_the_defaults_of_the_fields_that_options_set() -> None:
    records = {"adapter": ANPromptConfig, "training": ANPromptTrainingArguments}
    words = {"auto": "the recipe's", "None": "none", "10.0": "10"}
    for option, (section, name) in filled(TrainOptions).items():
        if option == "report_to":  # transformers' own, which changes between versions
            continue
        default = str(records[section].__dataclass_fields__[name].default)
        assert f" Default: {words.get(default, default).rstrip('.')}." in parameters()["train"][option].help, option


def test_choices_are_those_of_the_package() -> None:
    assert get_args(choices.Protocol) == protocols.PROTOCOLS
    assert get_args(choices.Halves) == protocols.HALVES
    assert get_args(choices.Sampling) == protocols.SAMPLINGS
    assert get_args(choices.Source) == sources.SOURCES
    assert get_args(choices.Precision) == precision.PRECISIONS
    assert get_args(choices.TrainingPrecision) == (*precision.PRECISIONS, "fp16")


def test_the_site_has_a_table_of_options_for_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    hook: Any = import_module("options")
    page = hook.on_page_markdown((ROOT / "docs" / "cli.md").read_text())
    for command, options in parameters().items():
        section = page.partition(f"\n## {command.capitalize()}\n")[2].partition("| option | |\n")[2]
        table = dict(re.findall(r"^\| `([A-Z]+|--[a-z-]+)\b.*?` \| (.*) \|$", section.partition("\n\n")[0], re.M))
        names = [each.metavar if each.param_type_name == "argument" else each.opts[0] for each in options.values()]
        assert list(table) == names
        assert all(table.values()), command


# wrong usage


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("epoch: 3", "unknown key 'epoch'. Did you mean 'epochs'? Allowed: adapter, augment, "),
        ("adapter: {num_virtual_token: 3}", "unknown key 'adapter.num_virtual_token'. Did you mean 'num_virtual_to"),
        ("training: {weight_decai: 3}", "unknown key 'training.weight_decai'. Did you mean 'weight_decay'?"),
        ("training: {output_dir: x}", "training.output_dir cannot be set here: use output."),
        ("training: {hub_token: secret}", "training.hub_token cannot be set here: use --push-to-hub"),
        ("adapter: {class_names: [a, b]}", "adapter.class_names cannot be set here"),
        ("training: {learning_rate: fast}", "training.learning_rate='fast': Input should be a valid number."),
        ("adapter: {num_noise_tokens: true}", "adapter.num_noise_tokens=True: Input should be a valid integer."),
        ("adapter: {alpha: 3.0}", "alpha=3.0 must be a finite number, between 0 and 1."),
        ("adapter: 5", "adapter must hold fields with values, not 5."),
        ("epochs: 2\ntraining: {num_train_epochs: 3}", "epochs and training.num_train_epochs are the same setting."),
        ("shots: many", "not 'many'."),
        ("shots: [4", "wrong.yaml: while parsing a flow sequence"),
        ("- shots", "it must hold keys with values"),
        ("", "it must hold keys with values"),
        (
            "shots: 4\nrecipe: &all [x]\nreport_to: *all",
            "wrong.yaml: line 2: '&all': anchors and aliases are not read.",
        ),
        ("template: *{}*", "expected alphabetic or numeric character, but found '{', in line 1."),
        (
            "template: *photo",
            "'*photo': anchors and aliases are not read. Write the value itself, or quote a text that",
        ),
        (
            "shots: !!python/object/apply:os.getcwd []",
            "line 1: 'tag:yaml.org,2002:python/object/apply:os.getcwd': tags",
        ),
        ("class_names: !!set {a, b}", "line 1: 'tag:yaml.org,2002:set': tags are not read."),
        ("adapter: " + "[" * 3000, "line 1: values are nested more than 16 levels deep."),
        ("shots: 4\nseed: 1\nshots: 5", "line 3: the key 'shots' stands there twice. Keep one."),
        ("shots: 4\n5: seed", "line 2: the key '5' must be text. Quote it."),
        ("? [shots]\n: 4", "line 1: the key of several values must be text."),
        ("learning_rate: .nan", "line 1: '.nan' is not a finite number."),
        ("learning_rate: 1e999", "line 1: '1e999' is not a finite number."),
        ("seed: 9223372036854775808", "line 1: '9223372036854775808' has more than 64 bits."),
        ("seed: " + "1:" * 3000 + "1", "has more than 100 digits. Quote it if it is text."),
        ("epochs: 2026-01-31", "not '2026-01-31'."),
        ("shots: 4\n---\nseed: 1", "expected a single document in the stream, but found another document, in line 2."),
        ("<<: 4", "expected a mapping or list of mappings for merging, but found scalar, in line 1."),
        ("shots: \0", "unacceptable character #x0000"),
        ("training: {eval_strategy: epoch}", "training.eval_strategy evaluates on validation: the data have no such"),
        (
            "early_stopping: 2",
            "--early-stopping 2 evaluates on validation: the data have no such split, only train",
        ),
        ("warmup-epochs: 2\ntraining: {warmup_epochs: 1}", "warmup_epochs and training.warmup_epochs are the same"),
        ("training: {warmup_epochs: null, lr_scheduler_type: cosin}", "'cosine', "),
    ],
)
def test_wrong_files_are_refused(text: str, wanted: str, digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    output = tmp_path / "out"
    assert wanted in refused("train", digits, "--config", path, "--output", output, "--model", TINY_CLIP)
    assert not output.exists()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"shots": 4, "shots": 5}', "wrong.json: an object has the name 'shots' twice."),
        ('{"training": {"learning_rate": NaN}}', "it holds the number nan in 'learning_rate', which is not finite."),
        ('{"seed": 9223372036854775808}', "it holds a number of more than 64 bits in 'seed'."),
        ('{"seed": ' + "[" * 100_000, "it is nested more than 16 levels deep."),
        ('{"seed": ' + "[" * 20 + "]" * 20 + "}", "it is nested more than 16 levels deep."),
    ],
)
def test_wrong_json_files_are_refused(text: str, wanted: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(text)
    assert wanted in refused("train", "photos", "--config", path, "--output", tmp_path / "out")
    assert wanted in refused("benchmark", "--config", path, "--output", tmp_path / "out")


def test_large_files_and_long_values_do_not_flood_the_terminal(digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    settings = ("train", digits, "--config", path, "--output", tmp_path / "out", "--model", TINY_CLIP)
    for text in ("shots: {0}", "{0}: 4", "adapter: {{alpha: {0}}}", "adapter: [{0}]", "template: {0}", "recipe: {0}"):
        path.write_text(text.format("x" * 100_000))
        assert len(refused(*settings)) < 5000, text
    path.write_text("# " + "x" * 10_000_000)
    assert "wrong.yaml: it is larger than 10,000,000 bytes." in refused(*settings)


def test_dates_and_equal_signs_are_text(tmp_path: Path) -> None:
    path = tmp_path / "plain.yaml"
    path.write_text('output: 2026-01-31\nat: 12.5\nrate: 1e-3\n"1": [yes, null, "2"]\n=: x')
    assert read_record(path) == {"output": "2026-01-31", "at": 12.5, "rate": 1e-3, "1": [True, None, "2"], "=": "x"}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--shots", 0], "Invalid value for '--shots': Input should be greater than or equal to 1, not '0'. See"),
        (["--shots", 50], "--shots 50 asks for more examples than these classes have: {'eight': 6,"),
        (["--shots", 50], "Use at most 6, or take up to 50 of each class with --shots-up-to."),
        (["--shots", 2, "--shots-up-to", 2], "--shots and --shots-up-to exclude each other."),
        (["--precision", "fp64"], "'fp64' is not one of 'auto', 'fp32', 'bf16', 'fp16'. See anprompt train --help."),
        (["--precision", "fp16", "--device", "cpu"], "--precision fp16 needs a GPU."),
        (["--train-split", "dev"], "--train-split dev: the data have no such split, only train, test."),
        (["--eval-split", "dev"], "--eval-split dev: the data have no such split, only train, test."),
        (["--test-share", "0.5"], "--test-share 0.5: the data have a split test already."),
        (["--template", "no place"], "template 'no place' must contain {} exactly once"),
        (["--class-names", "a", "--class-names", "b"], "--class-names lists 2 names for 10 classes"),
        (["--warmup-epochs", -1], "Invalid value for '--warmup-epochs': Input should be greater than or equal to 0"),
        (["--config", "nowhere.yaml"], "file 'nowhere.yaml' does not exist."),
        (["--halves", TINY_CLIP / "config.json"], "does not hold two halves of classes"),
        (["--halves", TINY_CLIP / "config.json", "--base-only"], "--halves and --base-only exclude each other."),
        (["--recipe", "papr"], "--recipe papr is unknown. Choose one of: default, paper."),
        (["--class-weights", "equal"], "--class-weights equal must be 'balanced' or None."),
        (["--label-column", "kind"], "there is no column kind, only image, label."),
        (["--early-stopping", 2], "Hold one out with --validation-share 0.1."),
        (["--push-to-hub", "mine"], "'mine' is no repository's name on the Hub. It is namespace/name: my-name/"),
        (["--image-cache", "cache"], "needs images that are seen again, and every epoch has new crops. Add --no-"),
        (["--image-cache", TINY_CLIP / "config.json", "--no-augment"], "config.json' is a file."),
        (["--report-to", "nowhere"], "nowhere is not supported, only"),
        (["--outptu", "x"], "No such option: --outptu (Possible options: "),
        (["--model", "./no-clip"], "There is no folder ./no-clip, and a model on the Hub is called namespace/name."),
    ],
)
def test_wrong_options_are_refused(options: list[Any], wanted: str, digits: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert wanted in refused("train", digits, "--output", output, "--model", TINY_CLIP, *options)
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "text", "wanted"),
    [
        (TrainOptions, "front, back could be meant: give image_column.", "give --image-column."),
        (TrainOptions, "report_to='tensorboard': it needs it.", "--report-to tensorboard: it needs it."),
        (TrainOptions, "num_train_epochs=-1.", "--epochs -1."),
        (TrainOptions, "class_names [['Cat', 'cat']] become", "--class-names [['Cat', 'cat']] become"),
        (TrainOptions, "read alike. Use class_names={name: better name}.", 'a JSON file {"name": "better name"}.'),
        (TrainOptions, "halves/class_names/shots=2 has no seed", "halves/class_names/shots=2 has no seed"),
        (TrainOptions, "adapter.class_names: 'seed=1'", "adapter.class_names: 'seed=1'"),
        (EvaluateOptions, "class_names lists 2 names", "--classes-file lists 2 names"),
        (BenchmarkOptions, "halves='x' and shots=16 ask", "--halves x and --shots 16 ask"),
    ],
)
def test_errors_name_options_and_not_arguments(options: type[Any], text: str, wanted: str) -> None:
    values: dict[str, Any] = {each.name: None for each in fields(options)}
    assert in_options(text, options(**values)).endswith(wanted)
    asked = EvaluateOptions(adapter="adapter", data="photos", classes=["a"])
    assert in_options("class_names needs two", asked) == "--classes needs two"


def test_wrong_folders_are_refused(adapter: Path, digits: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    model = ("--model", TINY_CLIP)
    before = {path: path.read_bytes() for path in adapter.iterdir() if path.is_file()}
    assert "is not empty" in refused("train", digits, "--output", adapter, *model)
    assert "is a file" in refused("train", digits, "--output", adapter / "run.yaml", *model)
    assert {path: path.read_bytes() for path in adapter.iterdir() if path.is_file()} == before
    assert "holds neither images nor parquet files" in refused("train", empty, "--output", tmp_path / "out", *model)
    assert "is an adapter. Give the model that it" in refused(
        "train", digits, "--output", tmp_path / "out", "--model", adapter
    )
    assert "Missing option '--output'" in refused("train", digits)
    assert "Missing argument 'DATA'" in refused("train", "--output", tmp_path / "out")
    assert "holds no adapter" in refused("evaluate", empty, digits)
    for name in ("roses", "tulips"):
        shutil.copytree(adapter, tmp_path / "out" / name, ignore=shutil.ignore_patterns("checkpoint-*"))
    for command in (("info",), ("predict", digits), ("evaluate", digits)):
        line = refused(command[0], tmp_path / "out", *command[1:])
        assert f"sub-folders hold adapters: roses, tulips. Give {tmp_path / 'out' / 'roses'}." in line
    assert "--split dev" in refused("evaluate", adapter, digits, "--split", "dev")
    assert "unknown classes ['cat', 'dog']" in refused(
        "evaluate", adapter, digits, "--classes", "cat", "--classes", "dog"
    )
    assert "There is no file" in refused("predict", adapter, tmp_path / "no.png")
    assert "There are no images in the folder" in refused("predict", adapter, empty)
    assert "holds no adapter with a card" in refused("push", empty, "me/mine")
    assert "'mine' is no repository's name on the Hub." in refused("push", adapter, "mine")
    assert "'me/' is no repository's name on the Hub." in refused("push", adapter, "me/")
    assert "does not exist" in refused("push", tmp_path / "none", "me/mine")
    assert "There is no folder none" in refused("info", "none")
    assert "Did you mean 'train'?" in refused("trian")


@pytest.mark.parametrize("kind", ["siglip", "siglip2", "altclip", "chinese_clip", "vision-text-dual-encoder"])
def test_models_of_another_kind_are_refused(kind: str, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    line = refused("train", digits, "--output", tmp_path / "out", "--model", tmp_path)
    assert f"is a model of type {kind!r}, and ANPrompt adapts those of type 'clip'." in line


def test_a_model_without_its_processor_and_a_processor_without_its_model_are_told_apart(
    digits: Path, tmp_path: Path
) -> None:
    for path in TINY_CLIP.iterdir():
        is_model = path.name in ("config.json", "model.safetensors")
        folder = tmp_path / ("model" if is_model else "processor")
        folder.mkdir(exist_ok=True)
        shutil.copy(path, folder)
    settings = ("train", digits, "--output", tmp_path / "out", "--model")
    assert "holds no model: there is no config.json in it." in refused(*settings, tmp_path / "processor")
    answer = call(*settings, tmp_path / "model")
    assert answer.code == 1
    assert "holds a CLIP without its processor (image processor and tokenizer)." in answer.err


@pytest.mark.parametrize("text", ["[]", '{"a": ' + "[" * 100_000], ids=["list", "deep"])
@pytest.mark.parametrize(
    ("file", "wanted"),
    [("config.json", "{}/config.json cannot be read: "), ("tokenizer.json", "The tokenizer of {} cannot be read: ")],
)
def test_malformed_files_of_a_model_are_named(file: str, wanted: str, text: str, digits: Path, tmp_path: Path) -> None:
    model = shutil.copytree(TINY_CLIP, tmp_path / "model")
    (model / file).write_text(text)
    assert wanted.format(model) in refused("train", digits, "--output", tmp_path / "out", "--model", model)


def test_halves_of_one_class_are_refused(digits: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in NAMES[:3]:
            shutil.copytree(digits / split / name, tmp_path / "data" / split / name)
    line = refused("train", tmp_path / "data", "--output", tmp_path / "out", "--model", TINY_CLIP, "--base-only")
    assert f"--base-only: each half needs two classes, got base {NAMES[:2]} and new {NAMES[2:3]}." in line


class AnyDataset(HubHandler):
    """Knows data sets without a namespace, too, and has none of them."""

    routes: ClassVar[list[Route]] = [("GET", "/api/datasets/(?P<repo>.+)", "info")]


def test_missing_data_are_named_at_once() -> None:
    """Without retries, which would tell of themselves: where the Hub is, where nothing answers, and offline."""
    names = ("my photos", "photos", "me/photos")
    script = f"from anprompt_cli import main\nfor data in {names}: main(['train', data, '--output', 'none'])"
    with HubServer({}) as hub:
        hub.RequestHandlerClass = AnyDataset
        states = {"here": (hub.url, "0"), "down": ("http://127.0.0.1:9", "0"), "offline": (hub.url, "1")}
        lines = {}
        for state, (address, offline) in states.items():
            environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": offline}
            command = [sys.executable, "-c", script]
            ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
            lines[state] = ran.stderr.splitlines()
    for first, *_ in lines.values():
        assert first == "error: There is no folder my photos, and a data set on the Hub is called namespace/name."
    absent = "error: There is neither a folder {} nor such a data set on the Hub. A private one needs `hf auth login`."
    assert lines["here"][1:] == [absent.format(name) for name in names[1:]]
    unreachable = "error: There is no folder {}, and the Hub cannot be reached to look there."
    assert lines["down"][1:] == lines["offline"][1:] == [unreachable.format(name) for name in names[1:]]


def test_cached_data_need_no_hub(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    with pytest.raises(Failure, match="cannot be reached"):
        check_data("me/photos")
    (cache / "me___photos").mkdir(parents=True)
    check_data("me/photos")


def test_data_on_the_hub_are_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda _, name, **__: asked.append(name))
    check_data("me/photos")
    check_data(str(tmp_path))
    check_data("no/such/photos.parquet")
    assert asked == ["me/photos"]


def test_where_an_error_came_from_is_shown_on_demand(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ("info", adapter, "--revision", "v1")
    assert "Traceback" not in call(*wrong).err
    assert "Traceback" in call("--debug", *wrong).err
    monkeypatch.setenv("ANPROMPT_DEBUG", "1")
    answer = call(*wrong)
    assert answer.code == 2
    assert "Traceback" in answer.err


def test_what_nobody_foresaw_is_a_failure_and_no_wrong_usage(
    adapter: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the disk\nis full")

    monkeypatch.setattr("anprompt_cli.jobs.predict.load_adapter", fail)
    answer = call("predict", adapter, digits / "test" / "one")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.endswith("error: RuntimeError: the disk is full\n")


# the Hub


def test_from_images_to_a_published_adapter(digits: Path, tmp_path: Path) -> None:
    """Train, publish, look at, measure and use an adapter over HTTP, with a base model that is on the Hub as well."""
    with HubServer({"alice-token": "alice"}) as hub:
        files = {path.name: path.read_bytes() for path in TINY_CLIP.iterdir()}
        hub.create("alice/tiny").commit("main", files, "Upload model")
        environment = {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "alice-token",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            with patch.dict(os.environ, environment):
                pool.submit(os.getpid).result()
            answers = pool.submit(use_hub, digits, tmp_path).result()
        assert hub.unknown == []
        published = hub.repos["alice/digits"].find("main")
        pushed, again = hub.repos["alice/again"].find("v1"), hub.repos["alice/again"].find("main")
        assert hub.repos["alice/again"].private
        assert again is not None
        assert set(again.files) == {".gitattributes"}, "only the branch is pushed to"
    assert published is not None
    assert pushed is not None
    processor = {"processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"}
    uploaded = {"README.md", "adapter_config.json", WEIGHTS, *processor}
    assert set(published.files) - {".gitattributes"} == set(pushed.files) - {".gitattributes"} == uploaded
    assert pushed.message == "Second"
    assert "base_model: alice/tiny" in published.files["README.md"].decode()
    for name in ("train", "push", "info", "evaluate", "predict"):
        assert answers[name].code == 0, answers[name].err
    assert "alice/digits" in answers["train"].out.splitlines()[-1]
    for name, repo in {"train": "digits", "push": "again"}.items():
        assert f"Uploading {tmp_path / 'out'} to {hub.url}/alice/{repo}." in answers[name].err
    assert json.loads(answers["info"].out)["base_model"] == "alice/tiny"
    trained = json.loads((tmp_path / "out" / "results.json").read_text())
    del trained["accuracy_percent"]["linear probe"]  # it needs the training images
    assert json.loads(answers["evaluate"].out)["accuracy_percent"] == trained["accuracy_percent"]
    assert len(answers["predict"].out.splitlines()) == LIMIT
    for name, wanted in {
        "no repository": "There is neither a folder alice/none nor such a repository on the Hub.",
        "no revision": "alice/digits has no revision 'v9'.",
    }.items():
        assert answers[name].code == 2
        assert wanted in answers[name].err
    assert answers["no permission"].code == 1
    assert "HfHubHTTPError" in answers["no permission"].err


def use_hub(digits: Path, folder: Path) -> dict[str, Answer]:
    """What a user does, in a process that finds the Hub at 127.0.0.1."""
    torch.set_num_threads(1)
    out = folder / "out"
    base = ("--model", "alice/tiny", "--shots", 1, "--epochs", 1)
    calls: dict[str, tuple[Any, ...]] = {
        "train": ("train", digits, "--output", out, *base, "--push-to-hub", "alice/digits"),
        "push": ("push", out, "alice/again", "--private", "--revision", "v1", "--message", "Second"),
        "info": ("info", "alice/digits", "--json"),
        "evaluate": ("evaluate", "alice/again", digits, "--revision", "v1", "--json"),
        "predict": ("predict", "alice/digits", digits / "test" / "one"),
        "no repository": ("info", "alice/none"),
        "no revision": ("info", "alice/digits", "--revision", "v9"),
        "no permission": ("push", out, "bob/digits"),
    }
    return {name: call(*arguments) for name, arguments in calls.items()}
