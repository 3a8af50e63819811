"""transformers' Trainer and ours: accumulation, evaluation, loss terms, schedule, best model, resuming."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import CLIPTokenizer, EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from anprompt_peft.training import ANPromptTrainer, ANPromptTrainingArguments, accuracy, warmup_cosine
from conftest import IMAGE_SIZE, MakeClip
from helpers import logits, make_config, trainable

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
    trainer_class: type[Trainer], make_clip: MakeClip, tokenizer: CLIPTokenizer, data: Dataset, tmp_path: Path
) -> None:
    """Without WALoss, whose scale is a batch statistic, four small batches weigh as much as the one they make up."""
    results = []
    for batch, steps in ((12, 1), (3, 4)):
        model = get_peft_model(make_clip(dtype=torch.float64), make_config(tokenizer, waloss_weight=0.0))
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


def test_plain_trainer_evaluates(make_clip: MakeClip, tokenizer: CLIPTokenizer, data: Dataset, tmp_path: Path) -> None:
    """Loss and accuracy come out without naming the labels; the first prediction is the logits."""
    model = get_peft_model(make_clip(), make_config(tokenizer)).eval()
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


def test_loss_terms_are_logged(make_clip: MakeClip, tokenizer: CLIPTokenizer, data: Dataset, tmp_path: Path) -> None:
    config = make_config(tokenizer)
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


def test_training_is_repeatable(make_clip: MakeClip, tokenizer: CLIPTokenizer, data: Dataset, tmp_path: Path) -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(7)
        model = get_peft_model(make_clip(), make_config(tokenizer))
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


COSINE = [0.5e-3 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1e-5] * 3 + COSINE),
        ({"gradient_accumulation_steps": 3}, [1e-5, 1e-3, 0.5e-3]),
        ({"max_steps": 2}, [1e-5] * 2),
        ({"max_steps": 9}, [1e-5] * 3 + COSINE),
        ({"warmup_epochs": None, "warmup_steps": 2, "max_steps": 3}, [0.0, 0.5e-3, 1e-3]),
    ],
    ids=str,
)
def test_learning_rates(
    settings: dict[str, Any],
    expected: list[float],
    make_clip: MakeClip,
    tokenizer: CLIPTokenizer,
    data: Dataset,
    tmp_path: Path,
) -> None:
    """12 images in batches of 4: by default one epoch of three steps at 1e-5, then a cosine over the other two."""
    model = get_peft_model(make_clip(), make_config(tokenizer))
    assert learning_rates(tmp_path, model, data, **settings) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"warmup_epochs": -1}, "warmup_epochs=-1"), ({"warmup_steps": 5}, "both set the warm-up")],
)
def test_wrong_warmups(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        method_arguments(tmp_path, **settings)


def test_streams_need_a_warmup_in_steps(
    make_clip: MakeClip, tokenizer: CLIPTokenizer, data: Dataset, tmp_path: Path
) -> None:
    model = get_peft_model(make_clip(), make_config(tokenizer))
    stream = data.to_iterable_dataset()
    with pytest.raises(ValueError, match=r"a stream has none\. Set warmup_epochs=None"):
        ANPromptTrainer(model, method_arguments(tmp_path, max_steps=3), train_dataset=stream).train()
    arguments = method_arguments(tmp_path, max_steps=3, warmup_epochs=None, warmup_steps=1)
    trainer = ANPromptTrainer(model, arguments, train_dataset=stream)
    assert trainer.train().global_step == 3


def test_terms_are_means_over_images(
    make_clip: MakeClip, tokenizer: CLIPTokenizer, data: Dataset, tmp_path: Path
) -> None:
    """Evaluation batches of 5, 5 and 2 count by their images, as in Trainer's own loss."""
    model = get_peft_model(make_clip(dtype=torch.float64), make_config(tokenizer, waloss_weight=0.0)).eval()
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


def test_only_the_logits_are_gathered(
    make_clip: MakeClip, tokenizer: CLIPTokenizer, data: Dataset, tmp_path: Path
) -> None:
    model = get_peft_model(make_clip(), make_config(tokenizer)).eval()
    predictions = ANPromptTrainer(model, method_arguments(tmp_path)).predict(data).predictions
    with torch.no_grad():
        expected = model(pixel_values=data["pixel_values"][:]).logits
    torch.testing.assert_close(torch.from_numpy(predictions), expected, rtol=1e-5, atol=1e-5)


def test_classes_are_encoded_once_per_step(
    make_clip: MakeClip, tokenizer: CLIPTokenizer, data: Dataset, tmp_path: Path
) -> None:
    model = get_peft_model(make_clip(), make_config(tokenizer))
    batches: list[int] = []
    model.text_projection.register_forward_hook(lambda module, args, output: batches.append(len(output)))
    ANPromptTrainer(model, method_arguments(tmp_path, num_train_epochs=1), train_dataset=data).train()
    assert batches == [3] * 3


@pytest.mark.parametrize("workers", [0, 2])
def test_bf16_and_workers(
    workers: int, make_clip: MakeClip, tokenizer: CLIPTokenizer, data: Dataset, tmp_path: Path
) -> None:
    model = get_peft_model(make_clip(), make_config(tokenizer))
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
def test_resuming_mid_epoch_is_bitwise(
    workers: int, make_clip: MakeClip, tokenizer: CLIPTokenizer, data: Dataset, tmp_path: Path
) -> None:
    """Saved after step 4 of 3 per epoch, stopped after step 5, resumed in a new model: nothing tells it."""
    settings = {"save_strategy": "steps", "save_steps": 4, "seed": 3, "dataloader_num_workers": workers}
    noisy = data.with_transform(add_noise)

    def fresh(folder: str, *callbacks: TrainerCallback) -> ANPromptTrainer:
        torch.manual_seed(11)
        model = get_peft_model(make_clip(), make_config(tokenizer))
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


def test_checkpoints_hold_the_adapter_alone(
    make_clip: MakeClip, tokenizer: CLIPTokenizer, data: Dataset, tmp_path: Path
) -> None:
    model = get_peft_model(make_clip(), make_config(tokenizer))
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


def test_early_stopping_restores_the_best(
    make_clip: MakeClip, tokenizer: CLIPTokenizer, data: Dataset, tmp_path: Path
) -> None:
    """A rate that spoils the adapter after the gentle first epoch: training stops, and the first weights come back."""
    model = get_peft_model(make_clip(), make_config(tokenizer))
    arguments = method_arguments(
        tmp_path, num_train_epochs=8, learning_rate=3.0, eval_strategy="epoch", save_strategy="epoch",
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


def test_accuracy_takes_what_plain_trainer_gives() -> None:
    scores = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]]).numpy()
    labels = torch.tensor([0, 1, 1]).numpy()
    for predictions in (scores, (scores, {"waloss": 1.0})):
        prediction: Any = type("Prediction", (), {"predictions": predictions, "label_ids": labels})
        assert accuracy(prediction) == {"accuracy": pytest.approx(2 / 3)}
