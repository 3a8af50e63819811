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
from peft import PeftModel
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

from anprompt_peft import training
from anprompt_peft.training import (
    RECIPES,
    ANPromptTrainer,
    ANPromptTrainingArguments,
    accuracy,
    balanced_class_weights,
    warmup_cosine,
)
from conftest import IMAGE_SIZE
from helpers import (
    CLASSES,
    LABELS,
    adapted,
    count_calls,
    logits,
    make_clip,
    make_config,
    make_trainer,
    trainable,
)

TERMS = ["cross_entropy_class", "cross_entropy_prototype", "similarity_image", "similarity_text", "waloss"]


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    defaults = {
        "output_dir": str(folder), "num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 0.05,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "optim": "sgd", "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant", "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    return TrainingArguments(**{**defaults, **settings})


def method_arguments(folder: Path, **settings: Any) -> ANPromptTrainingArguments:
    quiet: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "use_cpu": True}
    return ANPromptTrainingArguments(str(folder), **{**quiet, **settings})


def logged(trainer: Trainer, name: str = "loss") -> list[dict[str, float]]:
    return [record for record in trainer.state.log_history if name in record]


def double(data: Dataset) -> list[dict[str, torch.Tensor]]:
    return [{"pixel_values": row["pixel_values"].double(), "labels": row["labels"]} for row in data]


@pytest.mark.parametrize("trainer_class", [Trainer, ANPromptTrainer])
def test_gradient_accumulation_equals_the_large_batch(
    trainer_class: type[Trainer], data: Dataset, tmp_path: Path
) -> None:
    """Without WALoss, whose scale is a batch statistic, four small batches weigh as much as the one they make up."""
    results = []
    for batch, steps in ((12, 1), (3, 4)):
        model = adapted(scattered=False, dtype=torch.float64, waloss_weight=0.0)
        torch.manual_seed(0)
        for weight in trainable(model).values():
            torch.nn.init.normal_(weight, std=0.02)
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
        trainer = trainer_class(model, arguments(tmp_path, **settings), train_dataset=double(data))
        trainer.train()
        assert trainer.state.global_step == 1
        results.append((logged(trainer)[0]["loss"], trainable(model)))
    (large_loss, large), (small_loss, small) = results
    assert small_loss == pytest.approx(large_loss, rel=1e-6)
    for name, weight in large.items():
        torch.testing.assert_close(small[name], weight, rtol=0, atol=1e-12)


def test_plain_trainer_evaluates(data: Dataset, tmp_path: Path) -> None:
    """Loss and accuracy come out without naming the labels."""
    model, settings = adapted(), arguments(tmp_path, per_device_eval_batch_size=5)
    metrics = Trainer(model, settings, eval_dataset=data, compute_metrics=accuracy).evaluate()
    right = logits(model, data["pixel_values"][:]).argmax(-1) == data["labels"][:]
    assert metrics["eval_accuracy"] == pytest.approx(float(right.float().mean()))
    assert math.isfinite(metrics["eval_loss"])


def test_loss_terms_are_logged(data: Dataset, tmp_path: Path) -> None:
    model = adapted()
    settings = {"eval_strategy": "epoch", "logging_steps": 3, "learning_rate": 0.0}
    trainer = ANPromptTrainer(model, arguments(tmp_path, **settings), train_dataset=data, eval_dataset=data)
    trainer.train()
    (train_log,), (eval_log,) = logged(trainer), logged(trainer, "eval_loss")
    config = model.active_peft_config
    weights = [config.alpha, 1 - config.alpha, *[config.similarity_weight] * 2, config.waloss_weight]
    total = sum(weight * train_log[name] for weight, name in zip(weights, TERMS, strict=True))
    assert train_log["loss"] == pytest.approx(total, rel=1e-4)
    assert all(f"eval_{name}" in eval_log for name in TERMS)
    assert not any(name in eval_log for name in TERMS)


def optimizer_at(rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def rates_of(schedule: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(float(schedule.get_last_lr()[0]))
        schedule.optimizer.step()
        schedule.step()
    return rates


def test_schedule() -> None:
    schedule = warmup_cosine(optimizer_at(1e-3), warmup_steps=2, total_steps=12)
    expected = [1e-5, 1e-5, *(0.5e-3 * (1 + math.cos(math.pi * step / 10)) for step in range(10))]
    assert rates_of(schedule, 12) == pytest.approx(expected)
    assert schedule.get_last_lr()[0] == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="warmup_steps=13"):
        warmup_cosine(optimizer_at(1e-3), 13, 12)


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
    trainer = make_trainer(tmp_path, data, logging_steps=1, logging_strategy="steps", **settings)
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, torch.optim.AdamW)
    assert [record["learning_rate"] for record in logged(trainer)] == pytest.approx(expected)


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

    loss: Any = {"dtype": torch.float64, "waloss_weight": 0.0, "similarity_weight": 20.0}
    steps = {
        "warmup_epochs": 0,
        "max_steps": 2,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
    }
    trainer = make_trainer(tmp_path, double(data), adapted(**loss), **steps, **settings)
    trainer.train()

    model = adapted(**loss).train()
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
    stream = partial(make_trainer, tmp_path, data.to_iterable_dataset(), max_steps=3)
    with pytest.raises(ValueError, match=r"a stream has none\. Set warmup_epochs=None"):
        stream().train()
    assert stream(warmup_epochs=None, warmup_steps=1).train().global_step == 3


def test_a_missing_tensorboard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anprompt_peft.training.trainer.is_tensorboard_available", lambda: False)
    with pytest.raises(ValueError, match=r"tensorboard, .* pip install 'anprompt-peft\[examples\]'"):
        method_arguments(tmp_path, report_to="tensorboard")


def test_every_log_holds_its_own_steps(data: Dataset, tmp_path: Path) -> None:
    """Steps 1, 2 and 3 see different images, and each log has the terms of its own step; evaluations likewise."""
    model = adapted().train()
    settings = {
        "logging_strategy": "steps",
        "logging_steps": 1,
        "learning_rate": 0.0,
        "num_train_epochs": 1,
    }
    settings |= {"train_sampling_strategy": "sequential", "save_strategy": "no", "per_device_eval_batch_size": 4}
    expected = []
    with torch.no_grad():
        for start in (0, 4, 8):
            terms = model(**data[start : start + 4]).loss_terms
            expected.append({name: float(terms[name]) for name in TERMS})
    for name in TERMS[:3]:
        first, second, third = (terms[name] for terms in expected)
        assert abs(first - second) > 1e-3 * first
        assert abs(second - third) > 1e-3 * second
    trainer = make_trainer(tmp_path, data, model, **settings)
    trainer.train()
    logs = [{name: log[name] for name in TERMS} for log in logged(trainer)]
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
    weighted, change = model(**batch), 0.0
    alpha = model.active_peft_config.alpha
    for name, share in (("class", alpha), ("prototype", 1 - alpha)):
        expected = F.cross_entropy(plain[f"logits_{name}"], LABELS, weight=weights.float())
        before, after = (each.loss_terms[f"cross_entropy_{name}"] for each in (plain, weighted))
        torch.testing.assert_close(after, expected.detach())
        assert not torch.isclose(expected, before, rtol=1e-3)
        change += share * (after - before)
    for name in ("similarity_image", "similarity_text", "waloss"):
        assert torch.equal(weighted.loss_terms[name], plain.loss_terms[name])
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
    settings = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 12,
        "learning_rate": 0.0,
        "save_strategy": "no",
    }
    trainer = make_trainer(tmp_path, rows.with_transform(read), model, class_weights="balanced", **settings)
    assert not reads
    expected = torch.from_numpy(compute_class_weight("balanced", classes=np.arange(3), y=np.array(labels)))
    torch.testing.assert_close(model.anprompt_state.class_weights["default"], expected.float())
    torch.testing.assert_close(balanced_class_weights(labels, ["a", "b", "c"]), torch.tensor([12 / 18, 1.0, 2.0]))
    trainer.train()
    with torch.no_grad():
        output = model(pixel_values=data["pixel_values"][:])
    (log,) = logged(trainer)
    loss = F.cross_entropy(output.logits_class, torch.tensor(labels), weight=expected.float())
    assert log["cross_entropy_class"] == pytest.approx(float(loss), rel=1e-4)


def test_class_weights_need_labels_of_every_class(data: Dataset, tmp_path: Path) -> None:
    balanced = partial(make_trainer, tmp_path, class_weights="balanced", max_steps=1, warmup_epochs=None)
    for unlabelled in (double(data), data.to_iterable_dataset(), data.remove_columns("labels")):
        with pytest.raises(ValueError, match=r"column 'label' or 'labels'.*call model\.set_class_weights"):
            balanced(unlabelled)
    with pytest.raises(ValueError, match=r"none of: \['small fish'\]"):
        balanced(data.select([0, 1, 3, 4]))
    with pytest.raises(ValueError, match="labels go up to 5, but there are 2 classes"):
        balanced_class_weights([0, 1, 5], ["a", "b"])


def test_terms_are_means_over_images(data: Dataset, tmp_path: Path) -> None:
    """Evaluation batches of 5, 5 and 2 count by their images, as in Trainer's own loss."""
    model = adapted(scattered=False, dtype=torch.float64, waloss_weight=0.0)
    trainer = make_trainer(tmp_path, double(data), model, per_device_eval_batch_size=5)
    metrics = trainer.evaluate()
    with torch.no_grad():
        output = model(pixel_values=data["pixel_values"][:].double(), labels=data["labels"][:])
    (log,) = logged(trainer, "eval_loss")
    for name in TERMS[:4]:
        assert log[f"eval_{name}"] == pytest.approx(float(output.loss_terms[name]), rel=1e-6)
    assert metrics["eval_loss"] == pytest.approx(float(output.loss), rel=1e-6)
    right = (output.logits.argmax(-1) == data["labels"][:]).double().mean()
    assert metrics["eval_accuracy"] == pytest.approx(float(right))


def test_classes_are_encoded_once_per_step(data: Dataset, tmp_path: Path) -> None:
    model = adapted()
    batches = count_calls(model.text_projection)
    make_trainer(tmp_path, data, model, num_train_epochs=1).train()
    assert batches == [3] * 3


@pytest.mark.parametrize("workers", [0, 2])
def test_bf16_and_workers(workers: int, data: Dataset, tmp_path: Path) -> None:
    model = adapted(scattered=False)
    dtypes = set()
    model.text_projection.register_forward_hook(lambda module, args, output: dtypes.add(output.dtype))
    settings = {
        "bf16": True,
        "dataloader_num_workers": workers,
        "num_train_epochs": 6,
        "logging_strategy": "epoch",
    }
    trainer = make_trainer(tmp_path, data, model, **settings)
    trainer.train()
    assert dtypes == {torch.bfloat16}
    losses = [record["loss"] for record in logged(trainer)]
    assert losses[-1] < losses[0]
    assert {weight.dtype for weight in trainable(model).values()} == {torch.float32}


def test_early_stopping_restores_the_best(data: Dataset, tmp_path: Path) -> None:
    """A rate that spoils the adapter after the gentle first epoch: training stops, and the first weights come back."""
    model = adapted(scattered=False, similarity_weight=0.5, text_update_rank=None)
    settings: Any = dict.fromkeys(("eval_strategy", "save_strategy"), "epoch")
    settings |= {"num_train_epochs": 8, "learning_rate": 3.0, "warmup_epochs": 1}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    trainer = make_trainer(tmp_path, data, model, [EarlyStoppingCallback(2)], **settings)
    trainer.train()
    losses = [record["eval_loss"] for record in logged(trainer, "eval_loss")]
    assert len(losses) == 3
    assert losses.index(min(losses)) == 0
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-3")
    best = load_file(tmp_path / "checkpoint-3" / "adapter_model.safetensors")
    for name, weight in trainable(model).items():
        assert torch.equal(weight, best[name.replace(".default", "")])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses))


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
    assert not getattr(model.get_base_model().config, "keys_to_ignore_at_inference", None)


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
def test_batches_without_labels_are_refused_before_a_step(column: str, data: Dataset, tmp_path: Path) -> None:
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


def test_accuracy_takes_what_plain_trainer_gives() -> None:
    scores = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]]).numpy()
    labels = torch.tensor([0, 1, 1]).numpy()
    for predictions in (scores, (scores, {"waloss": 1.0})):
        prediction: Any = type("Prediction", (), {"predictions": predictions, "label_ids": labels})
        assert accuracy(prediction) == {"accuracy": pytest.approx(2 / 3)}
    left_out: Any = EvalPrediction(scores, np.array([0, -100, -100]))
    assert accuracy(left_out) == {"accuracy": 1.0}


@pytest.mark.parametrize(
    ("former", "name"),
    [("RepeatableRows", "SeededDataset"), ("TellEpoch", "SetEpochCallback"), ("alone_in", "lock_folder")],
)
def test_former_names_stay(former: str, name: str) -> None:
    assert getattr(training, former) is getattr(training, name)
    assert {former, name} <= set(training.__all__)
