"""The command line `anprompt` on the handwritten digits and their tiny CLIP: every command, wrong input, Ctrl-C."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, replace
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

from anprompt_cli import app, choices
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
from command import Answer, call, done, refused
from export_folder import export
from handwriting import CLASS_NAMES, TEMPLATE
from helpers import adapted
from hub_server import HubHandler, HubServer, Route

ROOT = Path(__file__).parents[1]
TINY_CLIP = ROOT / "examples" / "embedded" / "tiny_clip"
LIMIT = 6
STEPS_PER_EPOCH = 5
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PROCESSOR = {"processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"}
NAMES = sorted(CLASS_NAMES)
SPLITS = ("train", "test")
SMALL = ("--shots", 2, "--epochs", 2, "--template", TEMPLATE)


def command(data: Path, output: Path, *more: Any) -> tuple[Any, ...]:
    """Arguments that train the tiny CLIP for an epoch."""
    return ("train", data, "--output", output, "--model", TINY_CLIP, "--epochs", 1, *more)


def train(data: Path, output: Path, *more: Any) -> Answer:
    return done(*command(data, output, *more))


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def settings(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "run.yaml").read_text())


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG).read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def same(found: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return found.keys() == others.keys() and all(torch.equal(found[name], others[name]) for name in found)


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
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A finished run on five of the digits, measured on all."""
    folder = tmp_path_factory.mktemp("runs") / "adapter"
    return folder, train(digits, folder, *SMALL, "--base-only")


@pytest.fixture(scope="module")
def adapter(trained: tuple[Path, Answer]) -> Path:
    return trained[0]


@pytest.fixture(scope="module")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of an uninterrupted run on all digits."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(digits, folder, *SMALL)
    return weights(folder)


def images(folder: Path, digits: Path, **counts: int) -> Path:
    """A folder with some images of each digit in it; names are `split__digit` or `digit`."""
    for name, count in counts.items():
        target = folder.joinpath(*name.split("__"))
        target.mkdir(parents=True)
        for number in range(count):
            shutil.copy(digits / "train" / target.name / f"{number:03}.png", target)
    return folder


def copied(adapter: Path, folder: Path, **changes: Any) -> Path:
    """A copy of an adapter with a changed configuration."""
    shutil.copytree(adapter, folder)
    (folder / CONFIG).write_text(json.dumps({**config_of(adapter), **changes}))
    return folder


class Interrupt(training_job.Progress):
    """Sends this process a signal at the end of a step, as a terminal does on Ctrl-C."""

    step, times, number = 0, 1, signal.SIGINT

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        for _ in range(self.times if state.global_step == self.step else 0):
            signal.raise_signal(self.number)  # to this thread, and so before the next one


@contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Iterator[None]:
    """Trainings in the block are interrupted as an [`Interrupt`] with these settings does."""
    with monkeypatch.context() as patch:
        patch.setattr(training_job, "Progress", type("AtStep", (Interrupt,), settings))
        yield


# training


def test_a_run_leaves_all_that_the_result_needs(trained: tuple[Path, Answer]) -> None:
    folder, answer = trained
    described = {"run.yaml", "results.json", "base-new.json", "images.json", "README.md", "report.html"}
    assert {path.name for path in folder.iterdir() if path.is_file()} == {WEIGHTS, CONFIG, *described, *PROCESSOR}
    saved, base = (CLIPProcessor.from_pretrained(place) for place in (folder, TINY_CLIP))
    assert saved.image_processor.to_dict() == base.image_processor.to_dict()
    assert saved.tokenizer("zero").input_ids == base.tokenizer("zero").input_ids
    assert saved.tokenizer.model_max_length == base.tokenizer.model_max_length
    record = results(folder)
    assert {"versions", "git_commit", "hardware", "history", "seconds"} <= set(record)
    assert record["seeds"] == [1]
    assert record["halves"] == json.loads((folder / "base-new.json").read_text())
    assert record["train_images"] == dict.fromkeys(NAMES[:5], 2)
    assert record["config"] == settings(folder)
    assert "cross_entropy_class" in record["history"][0]
    for method, figures in record["accuracy_percent"].items():
        assert set(figures) == {"base", "new", "harmonic mean"}
        row = next(line for line in answer.out.splitlines() if line.startswith(method))
        for figure in figures.values():
            assert figure["low"] <= figure["value"] <= figure["high"]
            assert f"{figure['value']:.1f} [{figure['low']:.1f}, {figure['high']:.1f}]" in row
    ours, before = (record["accuracy_percent"][name]["base"]["value"] for name in ("ANPrompt", "zero-shot CLIP"))
    card = (folder / "README.md").read_text()
    assert f"| {ours:g} | {before:g} |" in card
    assert str(folder) not in card + (folder / CONFIG).read_text()
    assert "confusion" in (folder / "report.html").read_text().lower()
    assert list(AutoPeftModel.from_pretrained(folder).class_names) == NAMES[:5]


def test_a_linear_probe_on_the_same_shots_is_measured_beside(trained: tuple[Path, Answer], digits: Path) -> None:
    """scikit-learn's logistic regression on plain CLIP's features of the drawn images; new classes are zero-shot."""
    folder, answer = trained
    record = results(folder)
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
    note = f"A linear probe on the same images is ahead: {ahead:.1f} against {ours:.1f} % (harmonic mean)."
    assert (note in record["notes"]) is (note in answer.err.splitlines()) is (ours < ahead)


def test_measuring_leaves_the_model_as_it_is(clip: CLIPModel, clip_folder: Path, digits: Path) -> None:
    processor, splits = CLIPProcessor.from_pretrained(clip_folder), load_image_data(str(digits))
    model = adapted(clip).train()
    clip.logit_scale.requires_grad_()

    def state() -> list[Any]:
        learnable = [name for name, each in model.named_parameters() if each.requires_grad]
        return [learnable, [each.training for each in model.modules()], model.class_names]

    before = state()
    measured = measuring.measure(model, {"test": splits["test"]}, processor, 8, 0, splits["train"])
    assert state() == before
    assert [each.name for each in measured.probe] == ["test"]


def test_run_yaml_repeats_the_run_bit_for_bit(adapter: Path, tmp_path: Path) -> None:
    done("train", "--config", adapter / "run.yaml", "--output", tmp_path / "again")
    for name in (WEIGHTS, CONFIG, "run.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (adapter / name).read_bytes()
    done("train", "--config", adapter / "run.yaml", "--output", tmp_path / "other", "--seed", 2)
    assert not same(weights(tmp_path / "other"), weights(adapter))


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_gives_defaults_and_flags_win(suffix: str, digits: Path, tmp_path: Path) -> None:
    given = {
        "model": str(TINY_CLIP), "shots": 4, "template": TEMPLATE, "batch-size": 5, "epochs": 7,
        "adapter": {"num_virtual_tokens": 3, "text_layers": [4], "noise_scale": 0.25},
        "training": {"weight_decay": 0.5, "warmup_epochs": None, "max_grad_norm": 1},
    }  # fmt: skip
    path, output = tmp_path / f"mine.{suffix}", tmp_path / "out"
    path.write_text(json.dumps(given) if suffix == "json" else yaml.safe_dump(given).replace("0.25", "25e-2"))
    done("train", digits, "--config", path, "--output", output, "--shots", 1, "--epochs", 1)
    run, config = settings(output), config_of(output)
    assert run["shots"] == 1
    expected = {"num_train_epochs": 1.0, "per_device_train_batch_size": 5, "weight_decay": 0.5, "warmup_epochs": None}
    assert run["training"] == {**run["training"], **expected}
    assert (config["num_virtual_tokens"], config["text_layers"], config["noise_scale"]) == (3, [4], 0.25)
    assert results(output)["history"][0]["step"] == 10 / 5


def test_what_is_measured_is_what_is_saved(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded in the same precision, the adapter answers as it was measured; it is saved in float32."""
    pixels, measured = torch.rand(2, 3, 32, 32), []

    def measure(model: Any, *arguments: Any) -> Any:
        with torch.no_grad():
            measured.append(model(pixel_values=pixels).logits)
        return measuring.measure(model, *arguments)

    monkeypatch.setattr(training_job, "measure", measure)
    train(digits, tmp_path / "out", *SMALL, "--precision", "bf16", "--epochs", 1)
    saved = AutoPeftModel.from_pretrained(tmp_path / "out").eval()
    set_precision(saved, "bf16")
    with torch.no_grad():
        assert torch.equal(saved(pixel_values=pixels).logits, measured[0])
    assert {each.dtype for each in weights(tmp_path / "out").values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(("native", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_the_device_chooses_the_precision(
    native: bool, chosen: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is printed, and the run's record holds the choice, so that it can be repeated anywhere."""
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: native)
    output = tmp_path / "out"
    answer = train(digits, output, *SMALL, "--precision", "auto", "--epochs", 1)
    does = "multiplies" if native else "does not multiply"
    assert answer.err.count(f"Computing in {chosen}: this CPU {does} bfloat16 natively") == 1
    assert settings(output)["precision"] == results(output)["config"]["precision"] == chosen
    image = next((digits / "test").rglob("*.png"))
    for other in (("predict", output, image), ("evaluate", output, digits)):
        assert "Computing in" not in done(*other).err


def test_the_image_cache_holds_the_training_images(digits: Path, tmp_path: Path) -> None:
    """A file for each of the 20, none for the images that are measured on, and the same weights up to rounding."""
    plain = *SMALL, "--no-augment", "--precision", "fp32"
    train(digits, tmp_path / "plain", *plain)
    train(digits, tmp_path / "cached", *plain, "--image-cache", tmp_path / "cache")
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 20
    cached = weights(tmp_path / "cached")
    for name, weight in weights(tmp_path / "plain").items():
        torch.testing.assert_close(cached[name], weight, rtol=1e-3, atol=1e-5)
    assert settings(tmp_path / "cached")["image_cache"] == str(tmp_path / "cache")


def test_validation_images_choose_the_checkpoint(digits: Path, tmp_path: Path) -> None:
    """Trainer's own settings reach it, and a note says when figures come from the images that chose."""
    shutil.copytree(digits / "train", tmp_path / "data" / "train")
    shutil.copytree(digits / "test", tmp_path / "data" / "validation")
    best = {"eval_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"training": best}))
    output = tmp_path / "out"
    alone = ("--classifier-weight", 0)  # it is fitted after the last evaluation
    train(tmp_path / "data", output, "--config", tmp_path / "mine.yaml", "--epochs", 2, *alone)
    record = results(output)
    measured = [entry["eval_accuracy"] for entry in record["history"] if "eval_accuracy" in entry]
    assert 100 * max(measured) == pytest.approx(record["accuracy_percent"]["ANPrompt"]["validation"]["value"])
    *_, probe, chosen = record["notes"]  # after two epochs it may be below zero-shot CLIP, and says so
    assert probe.startswith("A linear probe on the same images is ahead: ")
    assert chosen == "The best checkpoint was chosen on the images that the figures come from."


def test_early_stopping_keeps_the_best_epoch_and_survives_an_interruption(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate of 0 never improves on the first epoch, so patience 2 ends the run after the third."""
    shared = ("--shots", 2, "--epochs", 9, "--learning-rate", 0, "--early-stopping", 2, "--validation-share", 0.5)
    train(digits, tmp_path / "whole", *shared)
    with interrupted(monkeypatch, step=2 * STEPS_PER_EPOCH):
        assert call(*command(digits, tmp_path / "resumed", *shared)).code == 130
    assert (tmp_path / "resumed" / f"checkpoint-{2 * STEPS_PER_EPOCH}").is_dir()
    done("train", "--output", tmp_path / "resumed", "--resume")
    for name in ("whole", "resumed"):
        record = results(tmp_path / name)
        assert [entry["epoch"] for entry in record["history"] if "eval_accuracy" in entry] == [1, 2, 3]
        assert record["split"] == "test"
        assert record["config"]["early_stopping"] == 2
        assert record["config"]["training"]["load_best_model_at_end"] is True


class Scored(ANPromptTrainer):
    """A trainer whose evaluations find given accuracies."""

    scores: Iterator[float]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, compute_metrics=lambda _: {"accuracy": next(self.scores)})


def test_early_stopping_takes_the_weights_of_the_best_epoch(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accuracy is made to fall after the first epoch; what is saved is what a run of that one epoch saves."""
    falling = iter([0.9, 0.5, 0.4])
    monkeypatch.setattr(training_job, "ANPromptTrainer", Scored)
    monkeypatch.setattr(Scored, "scores", falling, raising=False)
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump({"training": {"warmup_epochs": None, "lr_scheduler_type": "constant"}}))
    shared = ("--shots", 2, "--validation-share", 0.5, "--config", mine)
    train(digits, tmp_path / "stopped", *shared, "--epochs", 9, "--early-stopping", 2)
    assert next(falling, None) is None
    train(digits, tmp_path / "one", *shared)
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "one"))


def test_imbalanced_classes_are_weighted_and_measured_class_by_class(digits: Path, tmp_path: Path) -> None:
    """Two images of five digits, six of the others, in both splits."""
    counts = {name: 2 if name in NAMES[:5] else LIMIT for name in NAMES}
    data = images(
        tmp_path / "data", digits, **{f"{split}__{name}": counts[name] for split in SPLITS for name in NAMES}
    )
    answer = train(data, tmp_path / "weighted", "--class-weights", "balanced")
    record = results(tmp_path / "weighted")
    for method, right in (("ANPrompt", "right"), ("zero-shot CLIP", "zero_shot_right")):
        recalls = [100 * row[right] / row["images"] for row in record["classes"]["test"].values()]
        balanced = record["balanced_accuracy_percent"][method]["test"]
        assert balanced == pytest.approx(sum(recalls) / len(recalls))
        assert f"{balanced:.1f}" in answer.out.partition("balanced accuracy in %")[2]
        assert f"{record['macro_f1_percent'][method]['test']:.1f}" in answer.out.partition("macro-F1 in %")[2]
    assert "Classes of test have 2 to 6 images: balanced accuracy" in "".join(record["notes"])
    assert record["config"]["training"]["class_weights"] == "balanced"
    train(data, tmp_path / "plain")
    assert not same(weights(tmp_path / "plain"), weights(tmp_path / "weighted"))
    assert "balanced accuracy" not in train(digits, tmp_path / "even", "--shots", 2).out


def test_notes_say_who_is_ahead() -> None:
    labels = np.arange(10) % 2

    def parts(wrong: int) -> list[Predictions]:
        predicted = np.where(np.arange(10) < wrong, 1 - labels, labels)
        return [Predictions(name, ("a", "b"), labels, predicted) for name in ("base", "new")]

    def measured(ours: int, count: int, *probe: int) -> measuring.Measured:
        return measuring.Measured(*(parts(wrong)[:count] for wrong in (ours, 1, *probe)))

    assert measured(3, 1).summary().startswith("-20.0 points over zero-shot, 70.0 against 90.0\n")
    assert measured(3, 1).notes()[0].startswith("The adapter is below zero-shot CLIP: 70.0 against 90.0 %. ")
    (note,) = measured(3, 2).notes()
    assert "70.0 against 90.0 % (base), 70.0 against 90.0 % (new), 70.0 against 90.0 % (harmonic mean)." in note
    assert measured(0, 1).summary().startswith("+10.0 points over zero-shot, 100.0 against 90.0\n")
    gain = "+10.0 points over zero-shot in the harmonic mean, 100.0 against 90.0\n"
    assert measured(0, 2).summary().startswith(gain)
    assert measured(0, 1).notes() == measured(0, 2).notes() == measured(0, 2, 0).notes() == []
    assert measured(1, 1, 0).notes() == ["A linear probe on the same images is ahead: 100.0 against 90.0 %."]


def test_a_run_that_ends_below_zero_shot_warns(digits: Path, tmp_path: Path) -> None:
    """A learning rate of 3 destroys what CLIP knows; the report keeps local paths to itself."""
    answer = train(digits, tmp_path / "out", *SMALL, "--learning-rate", 3, "--classifier-weight", 0)
    record = results(tmp_path / "out")
    notes, figures = record["notes"], record["accuracy_percent"]
    assert notes[0].startswith("The adapter is below zero-shot CLIP: ")
    (column,) = figures["ANPrompt"]
    ours, ahead = (figures[name][column]["value"] for name in ("ANPrompt", "linear probe"))
    assert ours < ahead
    assert notes[1] == f"A linear probe on the same images is ahead: {ahead:.1f} against {ours:.1f} %."
    assert notes[1] in answer.err.splitlines()
    evaluation = done("evaluate", tmp_path / "out", digits, "--json", "--report", tmp_path / "evaluation.html")
    assert json.loads(evaluation.out)["notes"] == notes[:1]
    assert all(notes[0] in each.err.splitlines() for each in (answer, evaluation))
    page = (tmp_path / "out" / "report.html").read_text()
    assert notes[0] in page
    for place in (digits.parent, TINY_CLIP.parent):
        assert str(place) not in page + (tmp_path / "evaluation.html").read_text()


def test_recipe_and_warm_up_are_options(digits: Path, tmp_path: Path) -> None:
    """A warm-up that lasts the whole run keeps the learning rate low; without one, the same run does not."""
    rates = {}
    for recipe, warmup in (("default", 0), ("paper", 2)):
        output = tmp_path / recipe
        train(digits, output, *SMALL, "--recipe", recipe, "--warmup-epochs", warmup)
        chosen = settings(output)["training"]
        assert (chosen["recipe"], chosen["warmup_epochs"]) == (recipe, warmup)
        rates[warmup] = [entry["learning_rate"] for entry in results(output)["history"][:2]]
    assert rates[2] == [1e-5, 1e-5]
    assert max(rates[0]) > 1e-4


def test_a_test_split_may_be_held_out_or_missing(digits: Path, tmp_path: Path) -> None:
    train(digits / "train", tmp_path / "out", "--shots", 1, "--test-share", 0.5)
    assert sum(entry["images"] for entry in results(tmp_path / "out")["classes"]["test"].values()) == 10 * LIMIT / 2
    answer = train(digits / "train", tmp_path / "unmeasured", "--shots", 1)
    assert "nothing was measured" in answer.out
    assert "--test-share 0.2" in answer.out
    assert "accuracy_percent" not in results(tmp_path / "unmeasured")


def test_what_was_read_is_printed_before_training(digits: Path, tmp_path: Path) -> None:
    data = images(tmp_path / "data", digits, Train__one=2, Train__two=3, Testing__one=1, Testing__two=1)
    shutil.copytree(data / "Train", data / "@eaDir")
    for name in ("Train/one/a.txt", "Train/one/b.TXT", "c.raw", "Train/two/._000.png"):
        (data / name).write_text("no image")
    (data / "Train" / "six").mkdir()
    lines = train(data, tmp_path / "run").err.splitlines()[1:4]
    assert lines == [
        f"Left out of {data}: .txt 2, .raw 1; hidden 2 (._000.png, @eaDir).",
        f"{data}: left out, as they hold no image that is read: Train/six/.",
        f"Read {data}: train 5 images of 2 classes (one 2, two 3); test 2 images of 2 classes (1 each).",
    ]
    assert call("evaluate", tmp_path / "run", data).err.splitlines()[:3] == lines
    assert config_of(tmp_path / "run")["class_names"] == ["one", "two"]


def test_classes_need_images_to_train_on(digits: Path, tmp_path: Path) -> None:
    """A split with more classes than there are to train on would give an adapter with empty classes."""
    data = images(tmp_path / "data", digits, train__one=2, train__two=2, train__six=2, test__one=1, test__two=1)
    assert "No images in test: six." in train(data, tmp_path / "less").err.splitlines()
    assert "No images in test: six." in call("evaluate", tmp_path / "less", data).err.splitlines()
    images(data, digits, test__six=1)
    for split in ("validation", "test"):
        images(data, digits, **{f"{split}__nine": 1, f"{split}__eight": 1})
        for more in ([], ["--shots", 1]):
            line = refused(*command(data, tmp_path / "more", *more))
            assert f"{split} has images of classes that train has none of to train on: eight, nine." in line
        shutil.rmtree(data / "validation", ignore_errors=True)
    assert not (tmp_path / "more" / "run.yaml").exists()
    (tmp_path / "halves.json").write_text(json.dumps({"base": ["one", "two"], "new": ["nine", "eight"]}))
    train(data, tmp_path / "new", "--halves", tmp_path / "halves.json")


def test_images_in_both_splits_are_counted(digits: Path, tmp_path: Path) -> None:
    data = shutil.copytree(digits, tmp_path / "data")
    shutil.copy(data / "train" / "one" / "000.png", data / "test" / "one" / "copy.png")
    note = "The adapter was trained on {} of the {} images that it is measured on"
    answer = train(data, tmp_path / "out")
    assert f"{note.format(1, 10 * LIMIT + 1)}, so the figures do not tell" in answer.err
    assert "Remove what is in both splits from one of them." in answer.err
    answer = train(data, tmp_path / "own", "--eval-split", "train", "--shots", 1)
    assert note.format(10, 10 * LIMIT) in answer.err


def test_shots_up_to_takes_all_of_small_classes(digits: Path, tmp_path: Path) -> None:
    data = images(tmp_path / "data", digits, **{**dict.fromkeys(NAMES, 3), "one": 1})
    train(data, tmp_path / "out", "--shots-up-to", 2)
    assert results(tmp_path / "out")["train_images"] == {**dict.fromkeys(NAMES, 2), "one": 1}
    assert "up to 2" in (tmp_path / "out" / "README.md").read_text()


def test_corrupt_images_stop_the_run_or_are_counted(digits: Path, tmp_path: Path) -> None:
    data, output = shutil.copytree(digits, tmp_path / "data"), tmp_path / "out"
    broken = [data / "train" / "zero" / "000.png", data / "test" / "one" / "001.png"]
    for path in broken:
        path.write_text("no image")
    answer = call(*command(data, output))
    assert (answer.code, answer.out) == (1, "")
    assert str(broken[0]) in answer.err
    assert "--on-corrupt skip" in answer.err
    assert not output.exists()
    train(data, output, "--on-corrupt", "skip")
    record = results(output)
    assert [str(path) in line for path, line in zip(broken, record["left_out"], strict=True)] == [True, True]
    assert record["train_images"]["zero"] == LIMIT - 1
    assert record["notes"][-1] == "2 images could not be read and were left out."
    for path in (data / "train" / "six").iterdir():
        path.write_text("no image")
    answer = call(*command(data, tmp_path / "lost", "--on-corrupt", "skip"))
    assert answer.code == 1
    assert "error: None of the images to train on of these classes can be read: six." in answer.err
    assert not (tmp_path / "lost" / "run.yaml").exists()


# the frozen share


@pytest.mark.parametrize("text", ["1.5", "-0.1", "fold", "nan", "half"])
def test_a_frozen_share_that_is_none(text: str, tmp_path: Path) -> None:
    line = refused("train", tmp_path, "--output", tmp_path / "out", f"--frozen-share={text}")
    assert line == f"error: --frozen-share {text} must be a number between 0 and 1, or folds."
    assert not (tmp_path / "out").exists()


def test_a_frozen_share_by_number_and_by_folds(
    digits: Path, whole: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter's weights are those of a training without folds; a run interrupted in them goes on with them."""
    train(digits, tmp_path / "number", *SMALL, "--frozen-share", 0.25)
    assert config_of(tmp_path / "number")["frozen_share"] == 0.25
    assert settings(tmp_path / "number")["adapter"]["frozen_share"] == 0.25
    real, output = training_job.choose_frozen_share, tmp_path / "folds"

    def broken_off(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(training_job, "choose_frozen_share", broken_off)
    stopped = call(*command(digits, output, *SMALL, "--frozen-share", "folds"))
    assert (stopped.code, stopped.out) == (130, "")
    assert stopped.err.endswith("--resume\n")
    assert not (output / WEIGHTS).exists()
    assert settings(output)["frozen_share"] == "folds"
    assert "frozen_share" not in settings(output)["adapter"]
    monkeypatch.setattr(training_job, "choose_frozen_share", lambda *a, **k: replace(real(*a, **k), share=0.75))
    answer = done("train", "--output", output, "--resume")
    assert "Frozen share 0.75: the nearest to the default" in answer.err
    assert same(weights(output), whole)
    config = config_of(output)
    assert config["frozen_share"] == 0.75
    chosen = config["training_facts"]["arguments"]["frozen_share_by_folds"]
    assert [each["share"] for each in chosen["candidates"]] == [0, 0.25, 0.5, 0.75, 1]
    assert (chosen["share"], chosen["seed"], chosen["images"]) == (0.75, 1, 20)
    assert sorted(chosen["folds"][0]["learned"] + chosen["folds"][0]["held_out"]) == NAMES
    card = (output / "README.md").read_text()
    assert "- `frozen_share_by_folds`: `{" in card
    assert "- `frozen_share`: `0.75`" in card


# Ctrl-C and --resume


@pytest.mark.parametrize("step", [STEPS_PER_EPOCH - 2, STEPS_PER_EPOCH])
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    step: int, digits: Path, whole: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within an epoch and at its end, with random crops, and beside a later checkpoint that was broken off."""
    output = tmp_path / "my run"
    with interrupted(monkeypatch, step=step):
        answer = call(*command(digits, output, *SMALL))
    assert (answer.code, answer.out) == (130, "")
    assert f"Interrupted after step {step} of {2 * STEPS_PER_EPOCH}" in answer.err
    assert answer.err.endswith(f"anprompt train --output '{output}' --resume\n")
    assert {path.name for path in output.iterdir()} == {f"checkpoint-{step}", "run.yaml"}
    broken = shutil.copytree(output / f"checkpoint-{step}", output / f"checkpoint-{step + 1}")
    (broken / "trainer_state.json").unlink()
    answer = done("train", "--output", output, "--resume")
    assert f"Resuming from checkpoint-{step} of {output}." in answer.err
    assert same(weights(output), whole)
    assert [entry["epoch"] for entry in results(output)["history"] if "loss" in entry] == [1, 2]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_interrupt_quits_at_once(
    number: int, code: int, digits: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves what was saved before, here nothing, and the run can still be resumed."""
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    output = tmp_path / "out"
    with interrupted(monkeypatch, step=2, times=2, number=number):
        assert call(*command(digits, output, *SMALL)).code == code
    assert {path.name for path in output.iterdir()} == {"run.yaml"}
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert "There is no checkpoint in" in train(digits, output, *SMALL, "--resume").err
    assert same(weights(output), whole)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_real_process_stops_on_a_real_signal(number: int, code: int, digits: Path, tmp_path: Path) -> None:
    """With a data worker, which terminals and schedulers send the signal, too; 40 steps leave time to send it."""
    output, more = tmp_path / "out", ("--shots", 2, "--epochs", 2, "--batch-size", 1)
    arguments = [sys.executable, "-m", "anprompt_peft", *command(digits, output, *more, "--workers", 1)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        list(map(str, arguments)), cwd=ROOT, env=environment, start_new_session=True, stderr=pipe, stdout=pipe
    ) as process:
        assert process.stderr is not None
        seen = b""
        while not re.search(rb" [1-9]\d*/40 ", seen):
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
    done("train", "--output", output, "--resume")
    train(digits, tmp_path / "whole", *more)
    assert same(weights(output), weights(tmp_path / "whole"))


def test_only_the_run_that_was_begun_is_resumed(adapter: Path, tmp_path: Path) -> None:
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

    def read(workers: int) -> torch.Tensor:
        rows = SeededDataset(Noisy(), seed=3)
        loader: Any = DataLoader(rows, num_workers=workers, persistent_workers=workers > 0)
        drawn = []
        for epoch in range(2):
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
    more = ("--halves", adapter / "base-new.json", "--json", "--report", tmp_path / "report.html", "--batch-size", 7)
    found, trained = json.loads(done("evaluate", adapter, digits, *more).out), results(adapter)
    trained["accuracy_percent"].pop("linear probe")  # whose training images are not at hand
    assert found["accuracy_percent"] == trained["accuracy_percent"]
    assert found["classes"] == trained["classes"]
    assert "confusion" in (tmp_path / "report.html").read_text().lower()


@pytest.fixture(scope="module")
def plain(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of classes without splits, and a run that held a third of it out."""
    root = tmp_path_factory.mktemp("plain")
    photos = shutil.copytree(digits / "train", root / "photos")
    more = ("--model", os.path.relpath(TINY_CLIP), "--shots", 2, "--test-share", 0.34)
    train(photos, root / "adapter", *more)
    return photos, root / "adapter"


@pytest.mark.parametrize("moved", [False, True])
def test_evaluation_measures_what_training_held_out(moved: bool, plain: tuple[Path, Path], tmp_path: Path) -> None:
    """The very images, also where the folder was moved and has more images since."""
    photos, adapter = plain
    if moved:
        photos = shutil.copytree(photos, tmp_path / "moved")
        Image.new("RGB", (16, 16), "red").save(photos / "eight" / "00-new.png")
    answer = done("evaluate", adapter, photos, "--json")
    found, trained = json.loads(answer.out), results(adapter)
    assert found["classes"] == trained["classes"]
    assert found["accuracy_percent"]["ANPrompt"] == trained["accuracy_percent"]["ANPrompt"]
    assert found["trained_images"] == 0
    note = "Measured on 20 images that training held out as the split test (--test-share 0.34 in run.yaml)."
    assert (note in answer.err, "trained on" in answer.err) == (True, False)


def test_evaluation_counts_what_was_trained_on(plain: tuple[Path, Path], tmp_path: Path) -> None:
    """Images that were not drawn as shots are not meant, nor others that are called alike."""
    photos, held_out = plain
    note = "The adapter was trained on 20 of the 60 images that it is measured on, so the figures do not tell how it"
    answer = done("evaluate", held_out, photos, "--split", "train")
    assert f"{note} does on new ones. --split test measures others." in answer.err
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
    answer = done("evaluate", copy, photos, "--split", "train")
    assert "Whether the adapter was trained on these images is not known: there is no images.json" in answer.err
    (copy / "run.yaml").write_text("data: [")
    assert "run.yaml cannot be read: " in refused("evaluate", copy, photos)
    (copy / "run.yaml").unlink()
    answer = done("evaluate", copy, photos, "--split", "train", "--json")
    assert "is not known: there is no run.yaml beside it." in answer.err
    assert json.loads(answer.out)["trained_images"] is None


def test_evaluation_reads_the_same_data_as_training_did(digits: Path, tmp_path: Path) -> None:
    """With the class names that the run gave them, which are asked for where they are codes."""
    data = tmp_path / "codes"
    for label, name in enumerate(NAMES[:4]):
        shutil.copytree(digits / "train" / name, data / f"n{label:08}")
    names = [part for name in NAMES[:4] for part in ("--class-names", name)]
    answer = train(data, tmp_path / "out", *names, "--shots", 2, "--test-share", 0.5)
    assert "CLIP reads class names" not in answer.err
    answer = done("evaluate", tmp_path / "out", data)
    assert "read as in training, with --class-names of run.yaml" in answer.err
    assert sorted(line.split()[0] for line in answer.out.splitlines()[-4:]) == sorted(NAMES[:4])
    answer = train(data, tmp_path / "hint", "--shots", 2)
    assert "Classes are called n00000000, n00000001, n00000002, n00000003: CLIP reads class names" in answer.err


def test_zero_shot_is_the_untouched_clip(adapter: Path, digits: Path) -> None:
    processor, clip = CLIPProcessor.from_pretrained(TINY_CLIP), CLIPModel.from_pretrained(TINY_CLIP).eval()
    answer = done("evaluate", adapter, digits, "--json", *(part for name in NAMES for part in ("--classes", name)))
    figures = json.loads(answer.out)["classes"]["test"]
    texts = [TEMPLATE.format(name) for name in NAMES]
    for label, name in enumerate(NAMES):
        opened = [Image.open(path).convert("RGB") for path in sorted((digits / "test" / name).iterdir())]
        with torch.no_grad():
            inputs = processor(text=texts, images=opened, padding=True, return_tensors="pt")
            right = (clip(**inputs).logits_per_image.argmax(dim=1) == label).sum()
        assert (figures[name]["zero_shot_right"], figures[name]["images"]) == (right, LIMIT)


def test_evaluation_says_which_classes_it_leaves_out(adapter: Path, digits: Path) -> None:
    answer = done("evaluate", adapter, digits)
    assert "Left out: the images of 5 other classes." in answer.err
    gain, _, *table = answer.out.splitlines()
    assert re.fullmatch(r"[+-]\d+\.\d points over zero-shot, \d+\.\d against \d+\.\d", gain)
    assert table[0].split()[-1] == "test"
    classes, confusions = table[5:10], table[10:]
    assert sorted(line.split()[0] for line in classes) == NAMES[:5]
    assert confusions[0] == ""
    assert confusions[1].split()[:4] == ["test:", "truth,", "by", "answer"]
    assert sorted(confusions[1].split()[4:]) == NAMES[:5]
    assert [line.split()[0] for line in confusions[2:]] == confusions[1].split()[4:]


def test_data_with_other_names_are_renamed(adapter: Path, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "test", tmp_path / "test")
    for number, name in enumerate(NAMES):
        (tmp_path / "test" / name).rename(tmp_path / "test" / f"n{number}")
    expected = json.loads(done("evaluate", adapter, digits, "--json").out)["classes"]
    renaming = json.dumps({f"n{number}": name for number, name in enumerate(NAMES)})
    for file, text in {"names.txt": "\n".join(NAMES), "names.json": renaming}.items():
        (tmp_path / file).write_text(text)
        answer = done("evaluate", adapter, tmp_path, "--classes-file", tmp_path / file, "--json")
        assert json.loads(answer.out)["classes"] == expected
    assert "unknown classes" in refused("evaluate", adapter, tmp_path)


# predict


def rankings(*arguments: Any) -> dict[str, list[tuple[str, float]]]:
    """What `anprompt predict` prints as JSON, by image."""
    lines = map(json.loads, call("predict", *arguments, "--jsonl").out.splitlines())
    return {line["image"]: [(each["class"], each["probability"]) for each in line["predictions"]] for line in lines}


@pytest.mark.parametrize("classes", [None, ["zero", "one", "six"]])
def test_predictions_are_the_models(classes: list[str] | None, adapter: Path, digits: Path) -> None:
    folder = digits / "test" / "six"
    chosen = [part for name in classes or () for part in ("--classes", name)]
    found = rankings(adapter, folder, "--top-k", 2, "--batch-size", 4, "--precision", "fp32", *chosen)
    assert list(found) == [str(path) for path in sorted(folder.iterdir())]
    model, processor = AutoPeftModel.from_pretrained(adapter).eval(), CLIPProcessor.from_pretrained(TINY_CLIP)
    model.set_classes(classes)
    with torch.no_grad():
        inputs = processor(images=[Image.open(path).convert("RGB") for path in found], return_tensors="pt")
        shares, best = model(**inputs).logits.softmax(dim=-1).topk(2)
    for ranking, indices, values in zip(found.values(), best.tolist(), shares.tolist(), strict=True):
        assert [name for name, _ in ranking] == [model.class_names[index] for index in indices]
        assert [share for _, share in ranking] == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize("saved", ["processor", "image processor"])
def test_images_are_prepared_as_the_folder_says(saved: str, adapter: Path, digits: Path, tmp_path: Path) -> None:
    image, copy = digits / "test" / "six", shutil.copytree(adapter, tmp_path / "copy")
    for path in copy.glob("*processor_config.json"):
        path.unlink()
    before = rankings(copy, image)
    assert before == rankings(adapter, image)
    processor = CLIPProcessor.from_pretrained(TINY_CLIP)
    processor.image_processor.image_mean = [0.9, 0.9, 0.9]
    (processor if saved == "processor" else processor.image_processor).save_pretrained(copy)
    assert rankings(copy, image) != before


@pytest.mark.parametrize("file", ["processor_config.json", "preprocessor_config.json"])
def test_a_processor_that_does_not_fit_is_named(file: str, adapter: Path, digits: Path, tmp_path: Path) -> None:
    given = {**CLIPImageProcessorPil().to_dict(), "size": {"shortest_edge": 120_000}}
    for kind, source in (("adapter", adapter), ("base", TINY_CLIP)):
        folder = shutil.copytree(source, tmp_path / kind)
        for path in folder.glob("*processor_config.json"):
            path.unlink()
        (folder / file).write_text(json.dumps(given if file.startswith("pre") else {"image_processor": given}))
    for kind, arguments in (
        ("adapter", ("predict", tmp_path / "adapter", digits / "test")),
        ("adapter", ("evaluate", tmp_path / "adapter", digits)),
        ("base", command(digits, tmp_path / "out", "--model", tmp_path / "base", "--shots", 1)),
    ):
        line = refused(*arguments)
        assert f"{tmp_path / kind / file}" in line
        assert "size={'shortest_edge': 120000} must have whole numbers from 1 to 4096." in line
    assert not (tmp_path / "out").exists()


def test_files_folders_and_globs_become_a_table(adapter: Path, digits: Path) -> None:
    one, two, glob = digits / "test" / "one" / "000.png", digits / "test" / "two", digits / "test" / "*" / "001.png"
    rows = [line.split("  ") for line in done("predict", adapter, one, two, glob, "--top-k", 1).out.splitlines()]
    expected = [one, *sorted(two.iterdir()), *sorted(digits.glob("test/*/001.png"))]
    assert [row[0].strip() for row in rows] == list(map(str, expected))
    assert all(row[-1].endswith("%") and row[-1].split()[0] in NAMES for row in rows)


def test_predict_reads_the_files_that_training_reads(adapter: Path, digits: Path, tmp_path: Path) -> None:
    """Hidden files and other endings are counted, in folders and globs; a file that is named itself is classified."""
    read = ["B/0.png", "a/1.jfif", "a-b/0.PNG", "c.png"]
    hidden = ["__MACOSX/._0.png", "a/._0.png", ".ipynb_checkpoints/0-checkpoint.png", "@eaDir/0.png", "Thumbs.db"]
    for name in (*read, *hidden, "a/notes.txt", "a/raw.psd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(digits / "test" / "one" / "000.png", tmp_path / name)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)

    def found(*paths: Path) -> tuple[list[str], list[str]]:
        answer = done("predict", adapter, *paths, "--jsonl")
        return [json.loads(line)["image"] for line in answer.out.splitlines()], answer.err.splitlines()

    classified, lines = found(tmp_path)
    assert classified == [str(tmp_path / name) for name in read]
    assert (
        f"Left out of {tmp_path}: .txt 1, .psd 1; "
        "hidden 5 (._0.png, .ipynb_checkpoints, @eaDir, Thumbs.db, __MACOSX); linked folders not followed 1 (loop)."
    ) in lines
    glob = tmp_path / "*" / "0.png"
    classified, lines = found(glob, tmp_path / hidden[1])
    assert classified == [str(tmp_path / "B/0.png"), str(tmp_path / hidden[1])]
    assert f"Left out of {glob}: hidden 1." in lines
    assert found(tmp_path / "@eaDir")[0] == [str(tmp_path / "@eaDir/0.png")]


def test_unreadable_images_are_named_and_the_others_classified(adapter: Path, digits: Path, tmp_path: Path) -> None:
    for name in ("a.png", "c.png"):
        shutil.copy(digits / "test" / "one" / "000.png", tmp_path / name)
    (tmp_path / "b.png").write_text("no image")
    (tmp_path / "notes.txt").write_text("left alone in a folder")
    answer = call("predict", adapter, tmp_path)
    assert answer.code == 1
    assert [line.split("  ")[0] for line in answer.out.splitlines()] == [
        str(tmp_path / name) for name in ("a.png", "c.png")
    ]
    assert answer.err.count("error: ") == 1
    assert f"error: {tmp_path / 'b.png'} cannot be decoded" in answer.err


def test_classes_and_templates_of_choice(adapter: Path, digits: Path, tmp_path: Path) -> None:
    image = digits / "test" / "six" / "000.png"
    (tmp_path / "classes.txt").write_text("six\nzero\n")
    found = rankings(adapter, image, "--classes-file", tmp_path / "classes.txt", "--top-k", 9)
    assert {name for name, _ in found[str(image)]} == {"six", "zero"}
    assert rankings(adapter, image, "--template", "the glyph {}") != rankings(adapter, image)


# info, help, start-up


def test_the_base_model_is_found_from_another_folder(
    plain: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained with a relative path. One that the adapter does not name, as after a push, is asked for."""
    photos, adapter = plain
    monkeypatch.chdir(tmp_path)
    expected = done("predict", adapter, photos / "one").out
    assert config_of(adapter)["base_model_name_or_path"] == str(TINY_CLIP)
    assert config_of(adapter)["tokenizer_name_or_path"] == str(TINY_CLIP)
    moved = copied(adapter, tmp_path / "moved", base_model_name_or_path="clip")
    line = refused("predict", moved, photos / "one")
    assert f"{moved}/adapter_config.json names the base model 'clip' (base_model_name_or_path)" in line
    assert f"there is no such folder in {tmp_path}." in line
    nameless = copied(adapter, tmp_path / "nameless", base_model_name_or_path=None)
    line = refused("predict", nameless, photos / "one")
    assert "names no base model. Give the CLIP that it was trained with: --model" in line
    assert done("predict", nameless, photos / "one", "--model", TINY_CLIP).out == expected
    done("evaluate", nameless, photos, "--model", TINY_CLIP, "--split", "train")


def test_info_counts_what_the_model_has(adapter: Path) -> None:
    record = json.loads(done("info", adapter, "--json").out)
    model = AutoPeftModel.from_pretrained(adapter, is_trainable=True)
    assert record["parameters"] == model.get_nb_trainable_parameters()[0]
    assert record["parameters"] + record["frozen_values"] == sum(each.numel() for each in weights(adapter).values())
    assert record["dtypes"].keys() == {"F32", "I64"}
    assert record["classes"] == NAMES[:5]
    assert record["files"][WEIGHTS] == (adapter / WEIGHTS).stat().st_size
    text, base = done("info", adapter).out, results(adapter)["accuracy_percent"]["ANPrompt"]["base"]["value"]
    shown = (str(TINY_CLIP), ", ".join(NAMES[:5]), TEMPLATE, f"{record['parameters']:,}", "seed=1", "[3, 4]")
    assert [each for each in (*shown, "accuracy (base), %", f"{base:.4g}") if each not in text] == []


def write_adapter(folder: Path, config: Any, file: str = WEIGHTS) -> None:
    (folder / CONFIG).write_text(json.dumps(config))
    save_file({"anprompt_tokens": torch.zeros(2)}, folder / file)


def test_info_trusts_nothing_in_an_adapter(adapter: Path, tmp_path: Path) -> None:
    names = ["\x1b[31mred", *(f"class {number}" for number in range(29))]
    facts = {"metrics": [{"name": "evil\x07", "value": "x"}, 5], "arguments": [], "training_data": "a\nb"}
    write_adapter(tmp_path, {**config_of(adapter), "class_names": names, "training_facts": facts})
    answer = done("info", tmp_path)
    assert "classes (30)" in answer.out
    assert "\\x1b[31mred" in answer.out
    assert all(char.isprintable() or char == "\n" for char in answer.out)
    assert "class 20" not in answer.out
    (tmp_path / CONFIG).write_text('{"peft_type": "ANPROMPT", "class_names": [NaN], "alpha": -1e999}')
    record = json.loads(done("info", tmp_path, "--json").out, parse_constant=pytest.fail)
    assert (record["classes"], record["config"]["alpha"]) == ([None], None)


def test_pickles_other_methods_and_broken_files_are_refused(adapter: Path, digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_adapter(folder, config_of(adapter), "adapter_model.bin")
    image = digits / "test" / "one" / "000.png"
    info, predict, pushed = ("info", folder), ("predict", folder, image), ("push", folder, "me/mine")
    for arguments in (info, predict, ("evaluate", folder, digits), pushed):
        assert "is a pickle, which can run code" in refused(*arguments)
    write_adapter(folder, {**config_of(adapter), "peft_type": "LORA"})
    for arguments in (predict, pushed, ("push", tmp_path, "me/mine")):
        assert "of the method 'LORA', not 'ANPROMPT'" in refused(*arguments)
    write_adapter(folder, {**config_of(adapter), "peft_type": "VERA"})
    assert "of the method 'VERA', not 'ANPROMPT' or 'LORA'" in refused(*info)
    write_adapter(folder, config_of(adapter))
    (folder / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:900])
    assert "is not a whole safetensors file" in refused(*info)
    (folder / CONFIG).write_text("{")
    assert "is not JSON" in refused(*info)


def test_only_jobs_load_pytorch(adapter: Path) -> None:
    """No module directly in anprompt_cli, help, `info` or wrong usage does; help fits 80 columns."""
    modules = [path.stem for path in (ROOT / "anprompt_cli").glob("*.py")]
    names = [f"anprompt_cli.{name}" for name in modules if name != "__init__"]
    assert len(names) > 8
    script = f"""
import sys
from importlib import import_module
for name in {names!r}:
    import_module(name)
from anprompt_cli import main
for command in ([], ["train"], ["evaluate"], ["predict"], ["serve"], ["push"], ["info"]):
    assert main([*command, "--help"]) == 0
print("end of help")
assert main(["info", {str(adapter)!r}]) == main(["--version"]) == 0
assert main(["train", "--no-such-option"]) == main([]) == main(["predict", "a", "b.png", "--top-k", "0"]) == 2
heavy = {{"torch", "transformers", "peft", "datasets", "accelerate", "sklearn", "anprompt_peft"}}
print(*heavy & set(sys.modules), file=sys.stderr)
"""
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stderr.splitlines()[-1] == ""
    shown, _, rest = process.stdout.partition("end of help")
    assert max(map(len, shown.splitlines())) <= 80
    for name in ("train", "evaluate", "predict", "serve", "push", "info"):
        assert f"Usage: anprompt {name}" in shown
    assert str(TINY_CLIP) in rest


def parameters() -> dict[str, dict[str, Any]]:
    """The options of every command by name, without those that typer adds."""
    found, waiting = {}, list(typer.main.get_group(app).commands.items())
    for name, each in waiting:
        waiting += [(f"{name} {part}", inner) for part, inner in getattr(each, "commands", {}).items()]
        if each.params or not hasattr(each, "commands"):
            found[name] = {option.name: option for option in each.params}
    return found


def test_help_states_the_defaults_of_the_fields_that_options_fill() -> None:
    records = {"adapter": ANPromptConfig, "training": ANPromptTrainingArguments}
    words = {"auto": "the recipe's", "None": "none", "10.0": "10"}
    for option, (section, name) in filled(TrainOptions).items():
        if option != "report_to":  # transformers' own, which changes between versions
            default = str(records[section].__dataclass_fields__[name].default)
            wanted = f" Default: {words.get(default, default).rstrip('.')}."
            assert wanted in parameters()["train"][option].help, option


def test_an_option_that_fills_a_field_is_named_once() -> None:
    """In its line of `TrainOptions`: nothing else in the command line uses it."""
    places = [ROOT / "anprompt_cli" / f"{name}.py" for name in ("train", "jobs/train", "jobs/draw", "jobs/labelled")]
    nodes = [node for path in places for node in ast.walk(ast.parse(path.read_text()))]
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "options"}
    assert used >= {"shots", "seed", "halves"}
    assert used & set(filled(TrainOptions)) == set()


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
    for name, options in parameters().items():
        section = page.partition(f"\n## {name.capitalize()}\n")[2].partition("| option | |\n")[2]
        table = dict(re.findall(r"^\| `([A-Z]+|--[a-z-]+)\b.*?` \| (.*) \|$", section.partition("\n\n")[0], re.M))
        assert list(table) == [
            each.metavar if each.param_type_name == "argument" else each.opts[0] for each in options.values()
        ]
        assert all(table.values()), name


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
        ("recipe: &all [x]\nreport_to: *all", "wrong.yaml: line 1: '&all': anchors and aliases are not read."),
        ("template: *{}*", "expected alphabetic or numeric character, but found '{', in line 1."),
        ("template: *photo", "'*photo': anchors and aliases are not read. Write the value itself, or quote a text"),
        ("shots: !!python/object/apply:os.getcwd []", "'tag:yaml.org,2002:python/object/apply:os.getcwd': tags"),
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
        ("early_stopping: 2", "--early-stopping 2 evaluates on validation: the data have no such split, only train"),
        ("warmup-epochs: 2\ntraining: {warmup_epochs: 1}", "warmup_epochs and training.warmup_epochs are the same"),
        ("training: {warmup_epochs: null, lr_scheduler_type: cosin}", "'cosine', "),
    ],
)
def test_wrong_files_are_refused(text: str, wanted: str, digits: Path, tmp_path: Path) -> None:
    path, output = tmp_path / "wrong.yaml", tmp_path / "out"
    path.write_text(text)
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
    for arguments in (("train", "photos"), ("benchmark",)):
        assert wanted in refused(*arguments, "--config", path, "--output", tmp_path / "out")


def test_large_files_and_long_values_do_not_flood_the_terminal(digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    arguments = command(digits, tmp_path / "out", "--config", path)
    for text in ("shots: {0}", "{0}: 4", "adapter: {{alpha: {0}}}", "adapter: [{0}]", "template: {0}", "recipe: {0}"):
        path.write_text(text.format("x" * 100_000))
        assert len(refused(*arguments)) < 5000, text
    path.write_text("# " + "x" * 10_000_000)
    assert "wrong.yaml: it is larger than 10,000,000 bytes." in refused(*arguments)


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
        (["--push-to-hub", "mine"], "'mine' is not a valid repository name. Give namespace/name: my-name/my-ad"),
        (["--image-cache", "cache"], "needs images that are seen again, and every epoch has new crops. Add --no-"),
        (["--image-cache", TINY_CLIP / "config.json", "--no-augment"], "config.json' is a file."),
        (["--report-to", "nowhere"], "nowhere is not supported, only"),
        (["--outptu", "x"], "No such option: --outptu (Possible options: "),
        (["--model", "./no-clip"], "There is no folder ./no-clip, and a model on the Hub is called namespace/name."),
    ],
)
def test_wrong_options_are_refused(options: list[Any], wanted: str, digits: Path, tmp_path: Path) -> None:
    assert wanted in refused(*command(digits, tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()


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
    empty, out = tmp_path / "empty", tmp_path / "out"
    empty.mkdir()
    before = {path: path.read_bytes() for path in adapter.iterdir() if path.is_file()}
    for wanted, arguments in (
        ("is not empty", command(digits, adapter)),
        ("is a file", command(digits, adapter / "run.yaml")),
        ("holds neither images nor parquet files", command(empty, out)),
        ("is an adapter. Give the model that it", command(digits, out, "--model", adapter)),
        ("Missing option '--output'", ("train", digits)),
        ("Missing argument 'DATA'", ("train", "--output", out)),
        ("holds no adapter", ("evaluate", empty, digits)),
        ("--split dev", ("evaluate", adapter, digits, "--split", "dev")),
        (
            "--classes cat: the data have no such class",
            ("evaluate", adapter, digits, "--classes", "cat", "--classes", "one"),
        ),
        ("--without-classes cat: the data have no", ("evaluate", adapter, digits, "--without-classes", "cat")),
        ("There is no file", ("predict", adapter, tmp_path / "no.png")),
        ("There are no images in the folder", ("predict", adapter, empty)),
        ("holds no adapter with a card", ("push", empty, "me/mine")),
        ("'mine' is not a valid repository name.", ("push", adapter, "mine")),
        ("'me/' is not a valid repository name.", ("push", adapter, "me/")),
        ("does not exist", ("push", tmp_path / "none", "me/mine")),
        ("There is no folder none", ("info", "none")),
        ("Did you mean 'train'?", ("trian",)),
    ):
        assert wanted in refused(*arguments)
    assert {path: path.read_bytes() for path in adapter.iterdir() if path.is_file()} == before
    for name in ("roses", "tulips"):
        shutil.copytree(adapter, out / name, ignore=shutil.ignore_patterns("checkpoint-*"))
    for arguments in (("info", out), ("predict", out, digits), ("evaluate", out, digits)):
        assert f"sub-folders hold adapters: roses, tulips. Give {out / 'roses'}." in refused(*arguments)


@pytest.mark.parametrize("kind", ["siglip2", "altclip", "chinese_clip", "vision-text-dual-encoder"])
def test_models_of_another_kind_are_refused(kind: str, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    line = refused(*command(digits, tmp_path / "out", "--model", tmp_path))
    assert f"is a model of type {kind!r}, and ANPrompt adapts those of type 'clip' or" in line


def test_a_model_without_its_processor_or_the_reverse_is_refused(digits: Path, tmp_path: Path) -> None:
    for path in TINY_CLIP.iterdir():
        folder = tmp_path / ("model" if path.name in ("config.json", "model.safetensors") else "processor")
        folder.mkdir(exist_ok=True)
        shutil.copy(path, folder)
    line = refused(*command(digits, tmp_path / "out", "--model", tmp_path / "processor"))
    assert "holds no model: there is no config.json in it." in line
    answer = call(*command(digits, tmp_path / "out", "--model", tmp_path / "model"))
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
    assert wanted.format(model) in refused(*command(digits, tmp_path / "out", "--model", model))


def test_halves_of_one_class_are_refused(digits: Path, tmp_path: Path) -> None:
    data = images(tmp_path / "data", digits, **dict.fromkeys(NAMES[:3], 1))
    line = refused(*command(data, tmp_path / "out", "--base-only"))
    assert f"--base-only: each half needs two classes, got base {NAMES[:2]} and new {NAMES[2:3]}." in line


class AnyDataset(HubHandler):
    """Knows data sets without a namespace, too, and has none of them."""

    routes: ClassVar[list[Route]] = [("GET", "/api/datasets/(?P<repo>.+)", "info")]


def test_missing_data_are_named_at_once() -> None:
    """Without retries, which would print lines of their own: where the Hub is, where nothing answers, and offline."""
    names = ("my photos", "photos", "me/photos")
    script = f"from anprompt_cli import main\nfor data in {names}: main(['train', data, '--output', 'none'])"
    with HubServer({}) as hub:
        hub.RequestHandlerClass = AnyDataset
        states = {"here": (hub.url, "0"), "down": ("http://127.0.0.1:9", "0"), "offline": (hub.url, "1")}
        lines = {}
        for state, (address, offline) in states.items():
            environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": offline}
            arguments = [sys.executable, "-c", script]
            ran = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
            lines[state] = ran.stderr.splitlines()
    for first, *_ in lines.values():
        assert first == "error: There is no folder my photos, and a data set on the Hub is called namespace/name."
    absent = "error: There is neither a folder {} nor such a data set on the Hub. A private one needs `hf auth login`."
    assert lines["here"][1:] == [absent.format(name) for name in names[1:]]
    unreachable = "error: There is no folder {}, and the Hub cannot be reached to look there."
    assert lines["down"][1:] == lines["offline"][1:] == [unreachable.format(name) for name in names[1:]]


def test_data_are_asked_for_once_and_not_if_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.HfApi, "dataset_info", lambda _, name, **__: asked.append(name))
        for data in ("me/photos", str(tmp_path), "no/such/photos.parquet"):
            check_data(data)
    assert asked == ["me/photos"]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(Failure, match="cannot be reached"):
        check_data("me/photos")
    (tmp_path / "me___photos").mkdir()
    check_data("me/photos")


def test_debug_shows_where_an_error_came_from(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ("info", adapter, "--revision", "v1")
    assert "Traceback" not in call(*wrong).err
    assert "Traceback" in call("--debug", *wrong).err
    monkeypatch.setenv("ANPROMPT_DEBUG", "1")
    answer = call(*wrong)
    assert (answer.code, "Traceback" in answer.err) == (2, True)


def test_unexpected_errors_exit_with_1(adapter: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    uploaded = {"README.md", CONFIG, WEIGHTS, *PROCESSOR}
    assert set(published.files) - {".gitattributes"} == set(pushed.files) - {".gitattributes"} == uploaded
    assert pushed.message == "Second"
    assert "base_model: alice/tiny" in published.files["README.md"].decode()
    for name in ("train", "push", "info", "evaluate", "predict"):
        assert answers[name].code == 0, answers[name].err
    assert "alice/digits" in answers["train"].out.splitlines()[-1]
    for name, repo in {"train": "digits", "push": "again"}.items():
        assert f"Uploading {tmp_path / 'out'} to {hub.url}/alice/{repo}." in answers[name].err
    assert json.loads(answers["info"].out)["base_model"] == "alice/tiny"
    trained = results(tmp_path / "out")
    del trained["accuracy_percent"]["linear probe"]  # it needs the training images
    assert json.loads(answers["evaluate"].out)["accuracy_percent"] == trained["accuracy_percent"]
    assert len(answers["predict"].out.splitlines()) == LIMIT
    for name, code, wanted in (
        ("no repository", 2, "There is neither a folder alice/none nor such a repository on the Hub."),
        ("no revision", 2, "alice/digits has no revision 'v9'."),
        ("no permission", 1, "HfHubHTTPError"),
    ):
        assert (answers[name].code, wanted in answers[name].err) == (code, True)


def use_hub(digits: Path, folder: Path) -> dict[str, Answer]:
    """What a user does, in a process that finds the Hub at 127.0.0.1."""
    torch.set_num_threads(1)
    out = folder / "out"
    calls: dict[str, tuple[Any, ...]] = {
        "train": command(digits, out, "--model", "alice/tiny", "--shots", 1, "--push-to-hub", "alice/digits"),
        "push": ("push", out, "alice/again", "--private", "--revision", "v1", "--message", "Second"),
        "info": ("info", "alice/digits", "--json"),
        "evaluate": ("evaluate", "alice/again", digits, "--revision", "v1", "--json"),
        "predict": ("predict", "alice/digits", digits / "test" / "one"),
        "no repository": ("info", "alice/none"),
        "no revision": ("info", "alice/digits", "--revision", "v9"),
        "no permission": ("push", out, "bob/digits"),
    }
    return {name: call(*arguments) for name, arguments in calls.items()}
