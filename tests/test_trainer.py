"""transformers' Trainer and ours: accumulation, evaluation, loss terms, schedule, best model, resuming."""

from __future__ import annotations

import gc
import json
import math
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F
from transformers import (
    CLIPTokenizer,
    EarlyStoppingCallback,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from anprompt_peft.training import (
    RECIPES,
    ANPromptTrainer,
    ANPromptTrainingArguments,
    accuracy,
    balanced_class_weights,
    warmup_cosine,
)
from conftest import IMAGE_SIZE, MakeClip
from helpers import CLASSES, LABELS, adapted, logits, make_clip, make_config, needs_add_adapter, scatter, trainable

TERMS = ["cross_entropy_class", "cross_entropy_prototype", "similarity_image", "similarity_text", "waloss"]


@pytest.fixture
def data() -> Dataset:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(12, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    return Dataset.from_dict({"pixel_values": pixels.numpy(), "labels": [0, 1, 2] * 4}).with_format("torch")


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    defaults = {
        "output_dir": str(folder), "num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 0.05,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "optim": "sgd", "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant", "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    return TrainingArguments(**{**defaults, **settings})


@pytest.mark.parametrize("trainer_class", [Trainer, ANPromptTrainer])
def test_gradient_accumulation_equals_the_large_batch(
    trainer_class: type[Trainer], data: Dataset, tmp_path: Path
) -> None:
    """Without WALoss, whose scale is a batch statistic, four small batches weigh as much as the one they make up."""
    results = []
    for batch, steps in ((12, 1), (3, 4)):
        model = get_peft_model(make_clip(dtype=torch.float64), make_config(waloss_weight=0.0))
        torch.manual_seed(0)
        for weight in trainable(model).values():
            torch.nn.init.normal_(weight, std=0.02)
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
        trainer = trainer_class(model, arguments(tmp_path, **settings), train_dataset=double(data))
        trainer.train()
        assert trainer.state.global_step == 1
        results.append((trainer.state.log_history[0]["loss"], trainable(model)))
    (large_loss, large), (small_loss, small) = results
    assert small_loss == pytest.approx(large_loss, rel=1e-6)
    for name, weight in large.items():
        torch.testing.assert_close(small[name], weight, rtol=0, atol=1e-12)


def double(data: Dataset) -> list[dict[str, torch.Tensor]]:
    return [{"pixel_values": row["pixel_values"].double(), "labels": row["labels"]} for row in data]


def test_plain_trainer_evaluates(data: Dataset, tmp_path: Path) -> None:
    """Loss and accuracy come out without naming the labels; the first prediction is the logits."""
    model = get_peft_model(make_clip(), make_config()).eval()
    trainer = Trainer(
        model,
        arguments(tmp_path, per_device_eval_batch_size=5),
        eval_dataset=data,
        compute_metrics=accuracy,
    )
    metrics = trainer.evaluate()
    with torch.no_grad():
        output = model(pixel_values=data["pixel_values"][:], labels=data["labels"][:])
    assert metrics["eval_accuracy"] == pytest.approx(
        float((output.logits.argmax(-1) == data["labels"][:]).float().mean())
    )
    assert math.isfinite(metrics["eval_loss"])


def test_loss_terms_are_logged(data: Dataset, tmp_path: Path) -> None:
    config = make_config()
    model = get_peft_model(make_clip(), config)
    settings = {"eval_strategy": "epoch", "logging_steps": 3, "learning_rate": 0.0}
    trainer = ANPromptTrainer(model, arguments(tmp_path, **settings), train_dataset=data, eval_dataset=data)
    trainer.train()
    train_log = next(record for record in trainer.state.log_history if "loss" in record)
    eval_log = next(record for record in trainer.state.log_history if "eval_loss" in record)
    weights = [
        config.alpha,
        1 - config.alpha,
        config.similarity_weight,
        config.similarity_weight,
        config.waloss_weight,
    ]
    total = sum(weight * train_log[name] for weight, name in zip(weights, TERMS, strict=True))
    assert train_log["loss"] == pytest.approx(total, rel=1e-4)
    assert all(f"eval_{name}" in eval_log for name in TERMS)
    assert not any(name in eval_log for name in TERMS)


def test_training_is_repeatable(data: Dataset, tmp_path: Path) -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(7)
        model = get_peft_model(make_clip(), make_config())
        ANPromptTrainer(model, arguments(tmp_path, seed=7), train_dataset=data).train()
        runs.append(trainable(model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_schedule() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = warmup_cosine(optimizer, warmup_steps=2, total_steps=12)
    rates = []
    for _ in range(12):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    expected = [1e-5, 1e-5, *(0.5e-3 * (1 + math.cos(math.pi * step / 10)) for step in range(10))]
    assert rates == pytest.approx(expected)
    assert schedule.get_last_lr()[0] == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="warmup_steps=13"):
        warmup_cosine(optimizer, 13, 12)


def method_arguments(folder: Path, **settings: Any) -> ANPromptTrainingArguments:
    defaults: dict[str, Any] = {
        "output_dir": str(folder), "report_to": "none", "disable_tqdm": True, "use_cpu": True, "num_train_epochs": 3
    }  # fmt: skip
    return ANPromptTrainingArguments(**{**defaults, **settings})


def learning_rates(folder: Path, model: PeftModel, data: Dataset, **settings: Any) -> list[float]:
    arguments = method_arguments(folder, logging_steps=1, logging_strategy="steps", **settings)
    trainer = ANPromptTrainer(model, arguments, train_dataset=data)
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, torch.optim.AdamW)
    return [record["learning_rate"] for record in trainer.state.log_history if "loss" in record]


PAPER = {"recipe": "paper"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1e-5] + [1e-3] * 3 + [0.75e-3] * 3 + [0.25e-3] * 2),
        ({"gradient_accumulation_steps": 3}, [1e-3, 0.75e-3, 0.25e-3]),
        ({"num_train_epochs": 1}, [1e-3] * 3),
        ({"num_train_epochs": 2}, [1e-5] + [1e-3] * 3 + [0.5e-3] * 2),
        ({"max_steps": 2}, [1e-3] * 2),
        ({"max_steps": 9}, [1e-5] + [1e-3] * 3 + [0.75e-3] * 3 + [0.25e-3] * 2),
        ({"warmup_epochs": 1}, [1e-5] * 3 + [1e-3] * 3 + [0.75e-3] * 3),
        ({"warmup_epochs": "0.7"}, [1e-5] * 2 + [1e-3] * 3 + [0.75e-3] * 3 + [0.25e-3]),
        ({"warmup_epochs": 1, "max_steps": 2}, [1e-5] * 2),
        ({"warmup_epochs": 0}, [1e-3] * 3 + [0.75e-3] * 3 + [0.25e-3] * 3),
        ({"warmup_epochs": None, "warmup_steps": 2, "max_steps": 3}, [0.0, 0.5e-3, 1e-3]),
        (PAPER, [1e-5] * 3 + [1e-3] * 3 + [0.75e-3] * 3),
        ({**PAPER, "gradient_accumulation_steps": 3}, [1e-5, 1e-3, 0.75e-3]),
        ({**PAPER, "num_train_epochs": 1}, [1e-3] * 3),
        ({**PAPER, "max_steps": 2}, [1e-3] * 2),
        ({**PAPER, "max_steps": 7}, [1e-5] * 3 + [1e-3] * 3 + [0.75e-3]),
        ({**PAPER, "warmup_epochs": 0}, [1e-3] * 3 + [0.75e-3] * 3 + [0.25e-3] * 3),
    ],
    ids=str,
)
def test_learning_rates(settings: dict[str, Any], expected: list[float], data: Dataset, tmp_path: Path) -> None:
    """12 images in batches of 4, three steps an epoch; three epochs, unless a setting says otherwise."""
    model = get_peft_model(make_clip(), make_config())
    assert learning_rates(tmp_path, model, data, **settings) == pytest.approx(expected)


def optimizer_at(rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def rates_of(schedule: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(float(schedule.get_last_lr()[0]))
        schedule.optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("epochs", [2, 3, 10, 50])
def test_the_papers_cosine_is_torchs_behind_a_constant_epoch(epochs: int) -> None:
    """One step of `CosineAnnealingLR` over all epochs at the end of every epoch but the first."""
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer_at(1e-3), T_max=epochs)
    per_epoch = [1e-5, *rates_of(torchs, epochs - 1)]
    expected = [rate for rate in per_epoch for _ in range(4)]
    ours = rates_of(RECIPES["paper"].schedule(optimizer_at(1e-3), 4, 4 * epochs), 4 * epochs)
    assert ours == pytest.approx(expected)
    if epochs == 10:
        assert ours[-1] / 1e-3 == pytest.approx(0.0955, abs=1e-4)


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 2), (5, 10), (10, 20), (50, 20)])
def test_the_default_warmup_is_an_epoch_but_at_most_a_tenth(epochs: int, warmup: int) -> None:
    rates = rates_of(RECIPES["default"].schedule(optimizer_at(1e-3), 20, 20 * epochs), 20 * epochs)
    assert rates[:warmup] == pytest.approx([1e-5] * warmup)
    assert rates[warmup] == pytest.approx(1e-3)


UPDATES = [
    ({"recipe": "paper"}, (5e-4, 5e-4), math.inf),
    ({}, (0.0, 0.0), 1.0),
    ({"weight_decay": 5e-4, "max_grad_norm": 0.0}, (5e-4, 0.0), math.inf),
    ({"recipe": "paper", "weight_decay": 0.0, "max_grad_norm": 1.0}, (0.0, 0.0), 1.0),
]


@pytest.mark.parametrize(("settings", "decays", "max_norm"), UPDATES)
def test_two_steps_are_plain_adamws(
    settings: dict[str, Any], decays: tuple[float, float], max_norm: float, data: Dataset, tmp_path: Path
) -> None:
    """Weight decay of matrices and of biases, and clipping, against torch's own optimizer in a loop by hand.

    AdamW's first step does not depend on the size of gradients, so a second one shows whether they were clipped.
    """

    def fresh() -> Any:
        config = make_config(waloss_weight=0.0, similarity_weight=20.0)
        return scatter(get_peft_model(make_clip(dtype=torch.float64), config)).train()

    steps = {"warmup_epochs": 0, "max_steps": 2, "train_sampling_strategy": "sequential", "save_strategy": "no"}
    arguments = method_arguments(tmp_path, **steps, **settings)
    trainer = ANPromptTrainer(fresh(), arguments, train_dataset=double(data))
    trainer.train()

    model = fresh()
    weights = trainable(model)
    matrices = [weight for name, weight in weights.items() if not name.endswith("bias")]
    biases = [weight for name, weight in weights.items() if name.endswith("bias")]
    groups = [{"params": matrices, "weight_decay": decays[0]}, {"params": biases, "weight_decay": decays[1]}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    norms = []
    for start in (0, 4):
        batch = data[start : start + 4]
        model(pixel_values=batch["pixel_values"].double(), labels=batch["labels"]).loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(weights.values(), max_norm)))
        optimizer.step()
        optimizer.zero_grad()
    assert max(norms) > 2, "clipping must matter"
    for name, weight in trainable(trainer.model).items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=1e-10)


def test_what_is_given_wins_over_the_recipe(tmp_path: Path) -> None:
    ours, paper = method_arguments(tmp_path), method_arguments(tmp_path, recipe="paper")
    assert (ours.recipe, ours.weight_decay, ours.max_grad_norm) == ("default", 0.0, 1.0)
    assert (paper.weight_decay, paper.max_grad_norm, paper.warmup_epochs) == (5e-4, 0.0, "auto")
    both = method_arguments(tmp_path, recipe="paper", weight_decay=0.0, max_grad_norm=2.0, warmup_epochs="2")
    assert (both.weight_decay, both.max_grad_norm, both.warmup_epochs) == (0.0, 2.0, 2.0)


def test_arguments_round_trip(tmp_path: Path) -> None:
    """As copies, as what Trainer writes beside an adapter, as JSON, and on a command line."""
    given = {"recipe": "paper", "weight_decay": 0.25, "class_weights": "balanced"}
    arguments = method_arguments(tmp_path, **given)
    expected = ("paper", 0.25, 0.0, "auto", "balanced")

    def values(arguments: Any) -> tuple[Any, ...]:
        names = ("recipe", "weight_decay", "max_grad_norm", "warmup_epochs", "class_weights")
        return tuple(getattr(arguments, name) for name in names)

    assert values(arguments) == expected
    assert values(replace(arguments)) == expected
    torch.save(arguments, tmp_path / "training_args.bin")
    assert values(torch.load(tmp_path / "training_args.bin", weights_only=False)) == expected
    parser: Any = HfArgumentParser(ANPromptTrainingArguments)
    (from_json,) = parser.parse_dict(json.loads(arguments.to_json_string()), allow_extra_keys=True)
    assert values(from_json) == expected
    line = ["--output_dir", "x", "--recipe", "paper", "--warmup_epochs", "2", "--use_cpu"]
    (from_line,) = parser.parse_args_into_dataclasses(line)
    assert values(from_line) == ("paper", 5e-4, 0.0, 2.0, None)
    with pytest.raises(SystemExit):
        parser.parse_args_into_dataclasses(["--output_dir", "x", "--recipe", "papers"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_epochs": -1}, "warmup_epochs=-1"),
        ({"warmup_epochs": "long"}, "warmup_epochs=long must be a number"),
        ({"warmup_steps": 5}, "both set the warm-up"),
        ({"recipe": "papers"}, "recipe='papers' is unknown. Choose one of: default, paper"),
        ({"class_weights": "even"}, "class_weights='even' must be 'balanced' or None"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        method_arguments(tmp_path, **settings)


def test_streams_need_a_warmup_in_steps(data: Dataset, tmp_path: Path) -> None:
    model = get_peft_model(make_clip(), make_config())
    stream = data.to_iterable_dataset()
    with pytest.raises(ValueError, match=r"a stream has none\. Set warmup_epochs=None"):
        ANPromptTrainer(model, method_arguments(tmp_path, max_steps=3), train_dataset=stream).train()
    arguments = method_arguments(tmp_path, max_steps=3, warmup_epochs=None, warmup_steps=1)
    trainer = ANPromptTrainer(model, arguments, train_dataset=stream)
    assert trainer.train().global_step == 3


def test_tensorboard_is_asked_for_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anprompt_peft.training.trainer.is_tensorboard_available", lambda: False)
    with pytest.raises(ValueError, match=r"tensorboard, .* pip install 'anprompt-peft\[examples\]'"):
        method_arguments(tmp_path, report_to="tensorboard")


def test_every_log_starts_anew(data: Dataset, tmp_path: Path) -> None:
    """Steps 1, 2 and 3 see different images, and each log has the terms of its own step; evaluations likewise."""
    model = adapted().train()
    arguments = method_arguments(
        tmp_path, num_train_epochs=1, logging_strategy="steps", logging_steps=1, learning_rate=0.0,
        train_sampling_strategy="sequential", save_strategy="no", per_device_eval_batch_size=4,
    )  # fmt: skip
    expected = []
    with torch.no_grad():
        for start in (0, 4, 8):
            terms = model(**data[start : start + 4]).loss_terms
            expected.append({name: float(terms[name]) for name in TERMS})
    for name in TERMS[:3]:
        first, second, third = (terms[name] for terms in expected)
        assert abs(first - second) > 1e-3 * first
        assert abs(second - third) > 1e-3 * second
    trainer = ANPromptTrainer(model, arguments, train_dataset=data)
    trainer.train()
    logs = [{name: log[name] for name in TERMS} for log in trainer.state.log_history if "loss" in log]
    assert logs == [pytest.approx(terms, rel=1e-4) for terms in expected]
    for start, terms in zip((0, 4, 8), expected, strict=True):
        trainer.evaluate(data.select(range(start, start + 4)))
        log = trainer.state.log_history[-1]
        assert {name: log[f"eval_{name}"] for name in TERMS} == pytest.approx(terms, rel=1e-4)


def test_class_weights_are_those_of_cross_entropy(data: Dataset) -> None:
    """Both cross entropies and nothing else, until the classes change."""
    model = adapted()
    batch = {"pixel_values": data["pixel_values"][:3], "labels": LABELS}
    plain = model(**batch)
    weights = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    model.set_class_weights(weights)
    weighted = model(**batch)
    for name, scores in (
        ("cross_entropy_class", plain.logits_class),
        ("cross_entropy_prototype", plain.logits_prototype),
    ):
        expected = F.cross_entropy(scores, LABELS, weight=weights.float())
        torch.testing.assert_close(weighted.loss_terms[name], expected.detach())
        assert not torch.isclose(expected, plain.loss_terms[name], rtol=1e-3)
    for name in ("similarity_image", "similarity_text", "waloss"):
        assert torch.equal(weighted.loss_terms[name], plain.loss_terms[name])
    config = model.active_peft_config
    change = config.alpha * (weighted.loss_terms["cross_entropy_class"] - plain.loss_terms["cross_entropy_class"])
    change += (1 - config.alpha) * (
        weighted.loss_terms["cross_entropy_prototype"] - plain.loss_terms["cross_entropy_prototype"]
    )
    torch.testing.assert_close(weighted.loss - plain.loss, change, rtol=1e-3, atol=1e-5)
    model.set_class_weights(None)
    assert torch.equal(model(**batch).loss, plain.loss)


def test_class_weights_belong_to_the_classes_they_were_set_for(data: Dataset) -> None:
    """An adapter's stay with it; those of classes asked for end with them."""
    model = adapted()
    model.add_adapter("same", make_config())
    model.add_adapter("two", make_config(class_names=["cat", "dog"]))
    batch = {"pixel_values": data["pixel_values"][:3], "labels": LABELS % 2}

    def losses() -> dict[str, float]:
        found = {}
        for adapter in ("default", "same", "two"):
            model.set_adapter(adapter)
            found[adapter] = float(model(**batch).loss.detach())
            with model.disable_adapter():
                found[f"{adapter}, disabled"] = float(model(**batch).loss.detach())
        model.set_adapter("default")
        return found

    plain = losses()
    model.set_class_weights(torch.tensor([0.5, 1.0, 4.0]))
    weighted = losses()
    changed = {name for name in plain if weighted[name] != plain[name]}
    assert changed == {"default", "default, disabled"}
    model.set_classes(["cow", "red bird"])
    asked = float(model(**batch).loss)
    model.set_class_weights(torch.tensor([1.0, 9.0]))
    assert float(model(**batch).loss) != asked
    model.set_classes(["cow", "red bird"])
    assert float(model(**batch).loss) == asked
    model.set_classes(None)
    assert losses() == weighted
    model.delete_adapter("default")
    model.add_adapter("default", make_config())
    model.set_adapter("default")
    assert not model.anprompt_state.class_weights


def test_nothing_is_held_for_adapters_that_are_gone(data: Dataset) -> None:
    model = adapted()
    model.set_classes(["cow", "red bird"])
    for _ in range(3):
        model.add_adapter("passing", make_config())
        model.set_adapter("passing")
        model.set_class_weights(torch.tensor([1.0, 9.0]))
        model(pixel_values=data["pixel_values"][:3], labels=LABELS % 2)
        held = [weakref.ref(each) for each in model.get_base_model().head.parameters() if each.requires_grad]
        model.delete_adapter("passing")
        gc.collect()
        assert not [each for each in held if each() is not None]


@pytest.mark.parametrize(
    "weights", [[1.0, 2.0], [1.0, 0.0, 1.0], [1.0, math.nan, 1.0], [1.0, math.inf, 1.0], [[1.0, 1.0, 1.0]]]
)
def test_wrong_class_weights(weights: list[Any]) -> None:
    with pytest.raises(ValueError, match="class weights must be 3 positive numbers"):
        adapted().set_class_weights(torch.tensor(weights))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_class_weights_as_others_give_them(kind: Any) -> None:
    """scikit-learn's `compute_class_weight` gives an array of float64."""
    model = adapted()
    model.set_class_weights(kind([1, 2, 3]))
    assert model.anprompt_state.class_weights["default"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("column", ["labels", "label"])
def test_balanced_class_weights(column: str, data: Dataset, tmp_path: Path) -> None:
    """n / (C * n_c), counted without reading an image, in the loss that is trained and logged."""
    labels = [0] * 6 + [1] * 4 + [2] * 2
    rows = Dataset.from_dict({"pixel_values": data["pixel_values"][:].numpy(), column: labels})

    def read(batch: dict[str, Any]) -> dict[str, Any]:
        reads.append(len(batch["pixel_values"]))
        return {"pixel_values": torch.tensor(batch["pixel_values"]), "labels": batch[column]}

    reads: list[int] = []
    model = adapted().train()
    arguments = method_arguments(
        tmp_path, num_train_epochs=1, per_device_train_batch_size=12, learning_rate=0.0, class_weights="balanced",
        save_strategy="no",
    )  # fmt: skip
    trainer = ANPromptTrainer(model, arguments, train_dataset=rows.with_transform(read))
    assert not reads
    expected = torch.from_numpy(compute_class_weight("balanced", classes=np.arange(3), y=np.array(labels)))
    torch.testing.assert_close(model.anprompt_state.class_weights["default"], expected.float())
    torch.testing.assert_close(balanced_class_weights(labels, ["a", "b", "c"]), torch.tensor([12 / 18, 1.0, 2.0]))
    trainer.train()
    with torch.no_grad():
        output = model(pixel_values=data["pixel_values"][:])
    log = next(log for log in trainer.state.log_history if "loss" in log)
    loss = F.cross_entropy(output.logits_class, torch.tensor(labels), weight=expected.float())
    assert log["cross_entropy_class"] == pytest.approx(float(loss), rel=1e-4)


def test_class_weights_need_labels_of_every_class(data: Dataset, tmp_path: Path) -> None:
    arguments = method_arguments(tmp_path, class_weights="balanced", max_steps=1, warmup_epochs=None)
    model = get_peft_model(make_clip(), make_config())
    for unlabelled in (double(data), data.to_iterable_dataset(), data.remove_columns("labels")):
        with pytest.raises(ValueError, match=r"column 'label' or 'labels'.*call model\.set_class_weights"):
            ANPromptTrainer(model, arguments, train_dataset=unlabelled)
    with pytest.raises(ValueError, match=r"none of: \['small fish'\]"):
        ANPromptTrainer(model, arguments, train_dataset=data.select([0, 1, 3, 4]))
    with pytest.raises(ValueError, match="labels go up to 5, but there are 2 classes"):
        balanced_class_weights([0, 1, 5], ["a", "b"])


def test_terms_are_means_over_images(data: Dataset, tmp_path: Path) -> None:
    """Evaluation batches of 5, 5 and 2 count by their images, as in Trainer's own loss."""
    model = get_peft_model(make_clip(dtype=torch.float64), make_config(waloss_weight=0.0)).eval()
    arguments = method_arguments(tmp_path, per_device_eval_batch_size=5)
    metrics_log: list[dict[str, float]] = []

    class Keep(TrainerCallback):
        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            metrics_log.append(dict(logs or {}))

    trainer = ANPromptTrainer(model, arguments, eval_dataset=double(data), callbacks=[Keep()])
    metrics = trainer.evaluate()
    with torch.no_grad():
        output = model(pixel_values=data["pixel_values"][:].double(), labels=data["labels"][:])
    (log,) = metrics_log
    for name in TERMS[:4]:
        assert log[f"eval_{name}"] == pytest.approx(float(output.loss_terms[name]), rel=1e-6)
    assert metrics["eval_loss"] == pytest.approx(float(output.loss), rel=1e-6)
    right = (output.logits.argmax(-1) == data["labels"][:]).double().mean()
    assert metrics["eval_accuracy"] == pytest.approx(float(right))


def test_only_the_logits_are_gathered(data: Dataset, tmp_path: Path) -> None:
    model = get_peft_model(make_clip(), make_config()).eval()
    predictions = ANPromptTrainer(model, method_arguments(tmp_path)).predict(data).predictions
    with torch.no_grad():
        expected = model(pixel_values=data["pixel_values"][:]).logits
    torch.testing.assert_close(torch.from_numpy(predictions), expected, rtol=1e-5, atol=1e-5)


def test_classes_are_encoded_once_per_step(data: Dataset, tmp_path: Path) -> None:
    model = get_peft_model(make_clip(), make_config())
    batches: list[int] = []
    model.text_projection.register_forward_hook(lambda module, args, output: batches.append(len(output)))
    ANPromptTrainer(model, method_arguments(tmp_path, num_train_epochs=1), train_dataset=data).train()
    assert batches == [3] * 3


@pytest.mark.parametrize("workers", [0, 2])
def test_bf16_and_workers(workers: int, data: Dataset, tmp_path: Path) -> None:
    model = get_peft_model(make_clip(), make_config())
    dtypes = set()
    model.text_projection.register_forward_hook(lambda module, args, output: dtypes.add(output.dtype))
    settings = {"bf16": True, "dataloader_num_workers": workers, "num_train_epochs": 6, "logging_strategy": "epoch"}
    trainer = ANPromptTrainer(model, method_arguments(tmp_path, **settings), train_dataset=data)
    trainer.train()
    assert dtypes == {torch.bfloat16}
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert losses[-1] < losses[0]
    assert {weight.dtype for weight in trainable(model).values()} == {torch.float32}


class Interrupt(TrainerCallback):
    """Stops the process's training after some steps, as a lost machine would."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.after:
            raise KeyboardInterrupt


def add_noise(rows: dict[str, Any]) -> dict[str, Any]:
    """A random transform, as augmentation is."""
    pixels = torch.tensor(rows["pixel_values"])
    return {"pixel_values": pixels + 0.5 * torch.randn_like(pixels), "labels": rows["labels"]}


@pytest.mark.parametrize("workers", [0, 1])
def test_resuming_mid_epoch_is_bitwise(workers: int, data: Dataset, tmp_path: Path) -> None:
    """Saved after step 4 of 3 per epoch, stopped after step 5, resumed in a new model: nothing tells it."""
    settings = {"save_strategy": "steps", "save_steps": 4, "seed": 3, "dataloader_num_workers": workers}
    noisy = data.with_transform(add_noise)

    def fresh(folder: str, *callbacks: TrainerCallback) -> ANPromptTrainer:
        torch.manual_seed(11)
        rephrased = {"text_update_rank": 2, "rephrased_weight": 1.0, "rephrased_texts": 4}
        model = get_peft_model(make_clip(), make_config(**rephrased))
        arguments = method_arguments(tmp_path / folder, **settings)
        return ANPromptTrainer(model, arguments, train_dataset=noisy, callbacks=list(callbacks))

    whole = fresh("whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        fresh("broken", Interrupt(5)).train()
    resumed = fresh("broken")
    torch.rand(5)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 9
    expected, weights = trainable(whole.model), trainable(resumed.model)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert resumed.state.log_history[-2]["loss"] == whole.state.log_history[-2]["loss"]


EARLY = {
    "learning_rate": 0.0, "eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss", "restore_callback_states_from_checkpoint": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "steps"), [({"max_steps": 4, "save_strategy": "steps", "save_steps": 2}, 4), (EARLY, 6)]
)
def test_a_run_resumed_after_its_last_checkpoint_takes_no_further_step(
    settings: dict[str, Any], steps: int, data: Dataset, tmp_path: Path
) -> None:
    """All of `max_steps` done within an epoch, or early stopping after the second epoch; then a second process."""

    def fresh() -> ANPromptTrainer:
        callbacks: list[TrainerCallback] = [EarlyStoppingCallback(1)] if settings is EARLY else []
        model = get_peft_model(make_clip(), make_config())
        arguments = method_arguments(tmp_path, **settings)
        return ANPromptTrainer(model, arguments, train_dataset=data, eval_dataset=data, callbacks=callbacks)

    whole, resumed = fresh(), fresh()
    whole.train()
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == steps
    expected, weights = trainable(whole.model), trainable(resumed.model)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    whole.train()
    assert whole.state.global_step == steps


def test_checkpoints_hold_the_adapter_alone(data: Dataset, tmp_path: Path) -> None:
    model = get_peft_model(make_clip(), make_config())
    trainer = ANPromptTrainer(
        model, method_arguments(tmp_path, num_train_epochs=1, save_strategy="epoch"), train_dataset=data
    )
    trainer.train()
    checkpoint = tmp_path / "checkpoint-3"
    files = {path.name for path in checkpoint.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt"} <= files
    assert not files & {"model.safetensors", "pytorch_model.bin", "config.json"}
    assert all("anprompt_" in name for name in load_file(checkpoint / "adapter_model.safetensors"))
    again = PeftModel.from_pretrained(make_clip(), checkpoint).eval()
    pixels = data["pixel_values"][:]
    assert torch.equal(logits(again, pixels), logits(model.eval(), pixels))


def test_early_stopping_restores_the_best(data: Dataset, tmp_path: Path) -> None:
    """A rate that spoils the adapter after the gentle first epoch: training stops, and the first weights come back."""
    model = get_peft_model(make_clip(), make_config(similarity_weight=0.5, text_update_rank=None))
    arguments = method_arguments(
        tmp_path, num_train_epochs=8, learning_rate=3.0, warmup_epochs=1, eval_strategy="epoch", save_strategy="epoch",
        load_best_model_at_end=True, metric_for_best_model="eval_loss",
    )  # fmt: skip
    trainer = ANPromptTrainer(
        model, arguments, train_dataset=data, eval_dataset=data, callbacks=[EarlyStoppingCallback(2)]
    )
    trainer.train()
    losses = [record["eval_loss"] for record in trainer.state.log_history if "eval_loss" in record]
    assert len(losses) == 3
    assert losses.index(min(losses)) == 0
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-3")
    best = load_file(tmp_path / "checkpoint-3" / "adapter_model.safetensors")
    for name, weight in trainable(model).items():
        assert torch.equal(weight, best[name.replace(".default", "")])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses))


HOLDERS = ["default", "named", "named beside default", pytest.param("add_adapter", marks=needs_add_adapter)]


def holder(way: str, make_clip: MakeClip, tokenizer: CLIPTokenizer) -> Any:
    """A model whose adapter PEFT saves in another place each."""
    clip, config = make_clip(), make_config(tokenizer)
    if way == "add_adapter":
        clip.add_adapter(config, "flowers")
        return clip
    model = get_peft_model(clip, config, adapter_name="flowers" if way == "named" else "default")
    if way == "named beside default":
        model.add_adapter("flowers", config)
        model.set_adapter("flowers")
    return model


@pytest.mark.parametrize("way", HOLDERS)
def test_the_best_weights_and_a_resumed_run_are_the_trained_adapters(
    way: str, tokenizer: CLIPTokenizer, data: Dataset, tmp_path: Path
) -> None:
    """The second of three epochs is the best, and a run resumed from the first ends as this one would have."""
    weights: list[dict[str, torch.Tensor]] = []

    class Remember(TrainerCallback):
        def on_save(self, *args: Any, model: Any, **kwargs: Any) -> None:
            weights.append({name: weight.detach().clone() for name, weight in trainable(model).items()})

    def run(**settings: Any) -> Any:
        scores = iter((0.1, 0.9, 0.2))
        trainer = ANPromptTrainer(
            holder(way, make_clip, tokenizer),
            arguments(tmp_path, num_train_epochs=3, eval_strategy="epoch", save_strategy="epoch", **settings),
            train_dataset=data,
            eval_dataset=data,
            compute_metrics=lambda prediction: {"score": next(scores)},
            callbacks=[Remember()],
        )
        return trainer

    best = run(load_best_model_at_end=True, metric_for_best_model="score")
    best.train()
    assert best.state.best_model_checkpoint == str(tmp_path / "checkpoint-6")
    found = dict(best.model.named_parameters())
    assert all(torch.equal(found[name], weight) for name, weight in weights[1].items())
    resumed = run()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    found = dict(resumed.model.named_parameters())
    assert all(torch.equal(found[name], weight) for name, weight in weights[2].items())


def test_a_best_checkpoint_without_the_adapter_is_told(
    tokenizer: CLIPTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = ANPromptTrainer(holder("named beside default", make_clip, tokenizer), arguments(tmp_path))
    trainer.state.best_model_checkpoint = str(tmp_path)
    trainer.save_model(str(tmp_path))
    (tmp_path / "flowers" / "adapter_model.safetensors").unlink()
    scatter(trainer.model)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer._load_best_model()
    assert str(tmp_path / "flowers" / "adapter_model.safetensors") in caplog.text
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.state_dict().items())


def test_a_checkpoint_of_another_adapter_is_not_resumed(
    tokenizer: CLIPTokenizer, data: Dataset, tmp_path: Path
) -> None:
    settings = arguments(tmp_path, save_strategy="epoch")
    ANPromptTrainer(holder("named", make_clip, tokenizer), settings, train_dataset=data).train()
    other = ANPromptTrainer(holder("default", make_clip, tokenizer), settings, train_dataset=data)
    with pytest.raises(ValueError, match=r"holds the adapters \['flowers'\], and 'default' is to be trained"):
        other.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("trainer_class", [Trainer, ANPromptTrainer])
@pytest.mark.parametrize("asked", [None, ["cow", "red bird"]])
def test_predictions_are_the_logits(
    asked: list[str] | None, trainer_class: type[Trainer], data: Dataset, tmp_path: Path
) -> None:
    """As a compute_metrics of any image classification script takes them, also for classes asked for."""
    seen: list[EvalPrediction] = []

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        seen.append(prediction)
        return {"right": float((np.argmax(prediction.predictions, axis=1) == prediction.label_ids).mean())}

    model = adapted()
    model.set_classes(asked)
    data = data.remove_columns("labels").add_column("labels", [0, 1] * 6).with_format("torch")
    settings = arguments(tmp_path, include_for_metrics=["inputs"], per_device_eval_batch_size=5)
    trainer = trainer_class(model, settings, eval_dataset=data, compute_metrics=compute_metrics)
    assert "eval_right" in trainer.evaluate()
    expected = logits(model, data["pixel_values"][:]).numpy()
    np.testing.assert_allclose(seen[0].predictions, expected, rtol=1e-5, atol=1e-5)
    assert seen[0].inputs.shape == (12, 3, IMAGE_SIZE, IMAGE_SIZE)
    np.testing.assert_allclose(trainer.predict(data).predictions, expected, rtol=1e-5, atol=1e-5)
    model.unload()
    assert not hasattr(model.get_base_model().config, "keys_to_ignore_at_inference")


@pytest.mark.parametrize("settings", [{"batch_eval_metrics": True}, {"eval_do_concat_batches": False}])
def test_the_default_metric_under_trainers_switches(settings: dict[str, Any], data: Dataset, tmp_path: Path) -> None:
    trainer = ANPromptTrainer(
        adapted(), arguments(tmp_path, per_device_eval_batch_size=5, **settings), eval_dataset=data
    )
    expected = ANPromptTrainer(trainer.model, arguments(tmp_path), eval_dataset=data).evaluate()["eval_accuracy"]
    for _ in range(2):
        assert trainer.evaluate()["eval_accuracy"] == pytest.approx(expected)


def test_label_smoothing_is_that_of_the_models_cross_entropies(data: Dataset, tmp_path: Path) -> None:
    model = adapted()
    settings = arguments(tmp_path, label_smoothing_factor=0.2, per_device_eval_batch_size=12)
    trainer = ANPromptTrainer(model, settings, train_dataset=data, eval_dataset=data)
    logs = trainer.evaluate()
    model.set_label_smoothing(0.0)
    plain = model(pixel_values=data["pixel_values"][:], labels=data["labels"][:])
    for name in ("class", "prototype"):
        expected = F.cross_entropy(plain[f"logits_{name}"], data["labels"][:], label_smoothing=0.2)
        assert logs[f"eval_cross_entropy_{name}"] == pytest.approx(float(expected.detach()), rel=1e-5)
    for name in ("similarity_image", "similarity_text", "waloss"):
        assert logs[f"eval_{name}"] == pytest.approx(float(plain.loss_terms[name]), rel=1e-5)
    trainer.train()
    assert set(TERMS) <= trainer.state.log_history[-2].keys()
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        model.set_label_smoothing(1.5)


def test_stock_trainer_that_takes_the_labels_away_is_detected(data: Dataset, tmp_path: Path) -> None:
    trainer = Trainer(adapted(), arguments(tmp_path, label_smoothing_factor=0.2), train_dataset=data)
    with pytest.warns(UserWarning, match="without labels: none of ANPrompt's losses is computed.*label_smoothing"):
        trainer.train()


def test_what_the_arguments_say_holds_for_a_model_that_trainer_makes(data: Dataset, tmp_path: Path) -> None:
    data = data.select(range(11))  # unequal classes
    made: list[Any] = []

    def make() -> Any:
        made.append(adapted())
        return made[-1]

    settings = method_arguments(
        tmp_path, num_train_epochs=1, class_weights="balanced", precision="bf16", label_smoothing_factor=0.1
    )
    trainer = ANPromptTrainer(model_init=make, args=settings, train_dataset=data)
    trainer.train()
    assert trainer.model is made[-1]
    assert len(made) > 1
    for model in made[1:]:
        assert model.get_base_model().text_projection.weight.dtype == torch.bfloat16
        state = model.anprompt_state
        assert state.class_weights["default"].tolist() == pytest.approx([11 / 12, 11 / 12, 11 / 9])
        assert state.label_smoothing == 0.1


@pytest.mark.parametrize(
    ("names", "outcome"),
    [
        (CLASSES, "same"),
        ([name.replace(" ", "_") for name in CLASSES], "same"),
        (["Small_Fish", "DOG", "cat"], "order"),
        (["a", "b", "c"], "warned"),
        ([*CLASSES, "cow"], "warned"),
    ],
)
@pytest.mark.parametrize(
    "part", ["train", "eval", "evals", "evaluate", "predict", "classes", "class_to_idx", "joined"]
)
def test_data_that_number_the_classes_otherwise(
    part: str, names: list[str], outcome: str, data: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = data.cast_column("labels", ClassLabel(names=[*CLASSES]))
    theirs: Any = data.cast_column("labels", ClassLabel(names=names))
    if part in ("classes", "class_to_idx"):  # of torchvision's ImageFolder
        named = names if part == "classes" else {name: number for number, name in enumerate(names)}
        theirs = type("Folder", (list,), {part: named})(data[row] for row in range(12))
    if part == "joined":
        theirs = torch.utils.data.ConcatDataset([data, torch.utils.data.Subset(theirs, range(4))])
    settings = arguments(tmp_path, max_steps=1)
    given: dict[str, Any] = {
        "eval": {"train_dataset": data, "eval_dataset": theirs},
        "evals": {"train_dataset": data, "eval_dataset": {"own": data, "theirs": theirs}},
        "evaluate": {},
        "predict": {},
    }.get(part, {"train_dataset": theirs})
    trainer = ANPromptTrainer(adapted(), settings, **given)
    run = {"evaluate": lambda: trainer.evaluate(theirs), "predict": lambda: trainer.predict(theirs)}.get(
        part, trainer.train
    )
    if outcome == "order":
        with pytest.raises(ValueError, match="same names in another order") as raised:
            run()
        assert str(CLASSES) in str(raised.value)
        assert str(names) in str(raised.value)
        assert trainer.state.global_step == 0
        return
    run()
    assert ("The data number" in caplog.text) == (outcome == "warned")
    assert (str(names) in caplog.text) == (outcome == "warned")


def test_one_of_several_gpus_is_used(data: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = arguments(tmp_path)
    settings._n_gpu = 2
    trainer = ANPromptTrainer(adapted(), settings, train_dataset=data)
    assert trainer.args.n_gpu == 1
    assert "2 GPUs are visible and one is used" in caplog.text


def test_two_trainers_of_one_model(data: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each trains by its own arguments, for the adapter that is active then."""
    model, data = adapted(), data.select(range(11))
    settings = partial(arguments, tmp_path, max_steps=1)
    weighted = method_arguments(tmp_path, max_steps=1, class_weights="balanced", label_smoothing_factor=0.1)
    first = ANPromptTrainer(model, weighted, train_dataset=torch.utils.data.Subset(data, range(9, -1, -1)))
    assert model.class_weights.tolist() == pytest.approx([10 / 12, 10 / 9, 10 / 9])
    assert "weighted by class" not in caplog.text
    ANPromptTrainer(model, settings(), train_dataset=data).train()
    assert "weighted by class, as was set before: [0.83" in caplog.text
    assert model.anprompt_state.label_smoothing == 0
    model.add_adapter("two", make_config())
    model.set_adapter("two")
    first.train()
    assert model.class_weights.tolist() == pytest.approx([10 / 12, 10 / 9, 10 / 9])
    assert model.anprompt_state.label_smoothing == 0.1


@pytest.mark.parametrize("column", ["target", "labels"])
def test_batches_without_labels_are_told_before_a_step(column: str, data: Dataset, tmp_path: Path) -> None:
    """A column of another name, and class names, which Trainer's collator leaves out."""
    values = ["cat", "dog", "small fish"] * 4 if column == "labels" else data["labels"][:].tolist()
    named = data.remove_columns("labels").add_column(column, values).with_format("torch")
    trainer = ANPromptTrainer(adapted(), arguments(tmp_path), train_dataset=named)
    with pytest.raises(ValueError, match=r"have no labels, only pixel_values.*class_encode_column"):
        trainer.train()


def test_data_parallel_is_refused(data: Dataset) -> None:
    replica = adapted().get_base_model()._replicate_for_data_parallel()
    with pytest.raises(NotImplementedError, match=r"DataParallel.*accelerate launch or torchrun"):
        replica(pixel_values=data["pixel_values"][:2])


@pytest.mark.parametrize("trainer_class", [Trainer, ANPromptTrainer, None])
def test_an_adapter_loaded_for_inference_is_not_trained(
    trainer_class: type[Trainer] | None, data: Dataset, tmp_path: Path
) -> None:
    adapted().save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(make_clip(), tmp_path)
    batch = {"pixel_values": data["pixel_values"][:3], "labels": data["labels"][:3]}
    assert model(**batch).loss > 0
    train: Any = partial(model.train(), **batch)
    if trainer_class is not None:
        train = trainer_class(model, arguments(tmp_path), train_dataset=data).train
    with pytest.raises(ValueError, match=r"loaded for inference.*is_trainable=True"):
        train()


@pytest.mark.parametrize("cast", [{"fp16_full_eval": True}, {"bf16_full_eval": True}])
def test_full_half_precision_ends_with_the_evaluation(cast: dict[str, bool], data: Dataset, tmp_path: Path) -> None:
    model = adapted()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = ANPromptTrainer(model, arguments(tmp_path, **cast), train_dataset=data, eval_dataset=data)
    full = trainer.evaluate()
    assert full["eval_loss"] > 0
    trainer.predict(data)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(tensor.dtype == before[name].dtype for name, tensor in model.state_dict().items())


class Cropped(torch.utils.data.Dataset):
    """Images with a random shift, as a crop has it."""

    def __init__(self, data: Dataset) -> None:
        self.rows = [data[row] for row in range(len(data))]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        shift = int(torch.randint(4, ()))
        return {**self.rows[row], "pixel_values": self.rows[row]["pixel_values"].roll(shift, -1)}


@pytest.mark.parametrize("evaluates", [False, True])
def test_workers_that_live_on_change_nothing(evaluates: bool, data: Dataset, tmp_path: Path) -> None:
    """Neither the weights, nor those of a run resumed from an earlier checkpoint."""

    def run(folder: Path, workers: dict[str, Any], resume: str | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = get_peft_model(make_clip(), make_config(rephrased_weight=1.0, rephrased_texts=4))
        settings = method_arguments(
            folder, num_train_epochs=3, save_strategy="epoch", eval_strategy="epoch" if evaluates else "no", **workers
        )
        trainer = ANPromptTrainer(model, settings, train_dataset=Cropped(data), eval_dataset=data)
        trainer.train(resume_from_checkpoint=resume)
        return {name: weight.detach().clone() for name, weight in trainable(model).items()}

    persistent = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    expected = run(tmp_path / "none", {})
    for weights in (
        run(tmp_path / "persistent", persistent),
        run(tmp_path / "persistent", persistent, str(tmp_path / "persistent" / "checkpoint-3")),
    ):
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_checkpoint_without_optimizer_is_told(
    data: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = method_arguments(tmp_path, num_train_epochs=2, save_strategy="epoch", save_only_model=True)
    for resume in (None, str(tmp_path / "checkpoint-3")):
        assert not caplog.text
        ANPromptTrainer(adapted(), settings, train_dataset=data).train(resume)
    assert "checkpoint-3 holds no optimizer state" in caplog.text


def test_accuracy_takes_what_plain_trainer_gives() -> None:
    scores = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]]).numpy()
    labels = torch.tensor([0, 1, 1]).numpy()
    for predictions in (scores, (scores, {"waloss": 1.0})):
        prediction: Any = type("Prediction", (), {"predictions": predictions, "label_ids": labels})
        assert accuracy(prediction) == {"accuracy": pytest.approx(2 / 3)}
    left_out: Any = EvalPrediction(scores, np.array([0, -100, -100]))
    assert accuracy(left_out) == {"accuracy": 1.0}
