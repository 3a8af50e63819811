"""Trainer: accumulation, evaluation, loss terms in the logs, the schedule, few-shot sampling, evaluation figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import CLIPTokenizer, Trainer, TrainingArguments

from anprompt_peft.evaluation import base_to_new, harmonic_mean
from anprompt_peft.provenance import provenance, whole_folder
from anprompt_peft.sampling import sample_shots
from anprompt_peft.training import ANPromptTrainer, warmup_cosine
from conftest import IMAGE_SIZE, MakeClip
from helpers import make_config, trainable

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
        compute_metrics=lambda p: {"accuracy": float((p.predictions[0].argmax(-1) == p.label_ids).mean())},
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


def test_shots() -> None:
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 2])
    shots = sample_shots(labels, 2, seed=0)
    assert sorted(labels[shots]) == [0, 0, 1, 1, 2, 2]
    assert len(set(shots)) == 6
    assert shots == sample_shots(labels.tolist(), 2, seed=0)
    assert any(shots != sample_shots(labels, 2, seed=seed) for seed in range(1, 5))
    only = sample_shots(np.where(labels == 1, 1, labels + 10), 2, seed=0)
    assert [at for at in only if labels[at] == 1] == [at for at in shots if labels[at] == 1]
    with pytest.raises(ValueError, match=r"more examples than class 0 has \(3\)"):
        sample_shots(labels, 4, seed=0)
    with pytest.raises(ValueError, match="shots=0"):
        sample_shots(labels, 0, seed=0)


def test_base_to_new_figures() -> None:
    base = np.array([[True, True, True, False], [True, False, True, False]])
    new = np.array([[True, False], [False, False]])
    result = base_to_new(base, new)
    assert result.base.value == pytest.approx(62.5)
    assert result.new.value == pytest.approx(25.0)
    assert result.harmonic_mean.value == pytest.approx(100 * (2 * 0.75 * 0.5 / 1.25 + 0) / 2)
    assert harmonic_mean(np.array([0.0]), np.array([0.0])) == 0
    assert result == base_to_new(base, new)
    for wrong in (base[:1], base[:, :0], base[0]):
        with pytest.raises(ValueError, match="need"):
            base_to_new(wrong, new)


def test_interval_of_one_run_is_that_of_a_proportion() -> None:
    """With one run only images are resampled: close to the normal interval of 300 hits in 400."""
    correct = (np.arange(400) < 300)[None]
    estimate = base_to_new(correct, correct).base
    half_width = 196 * math.sqrt(0.75 * 0.25 / 400)
    assert (estimate.low, estimate.high) == pytest.approx((75 - half_width, 75 + half_width), abs=0.4)


def test_interval_covers_runs_and_images() -> None:
    """Four runs that differ widen the interval; copies of one run do not narrow it."""
    rng = np.random.default_rng(0)
    one = rng.random((1, 500)) < 0.8
    copies = base_to_new(one.repeat(4, axis=0), one.repeat(4, axis=0)).base
    single = base_to_new(one, one).base
    assert (copies.low, copies.high) == pytest.approx((single.low, single.high), abs=0.5)
    differing = rng.random((4, 500)) < np.array([[0.6], [0.7], [0.9], [1.0]])
    wide = base_to_new(differing, differing).base
    assert wide.high - wide.low > 2 * (single.high - single.low)


def test_provenance_names_versions_and_commit() -> None:
    record = provenance()
    assert record["versions"]["torch"] == torch.__version__
    assert record["hardware"]["cpu_count"] >= 1
    assert record["git_commit"] is None or len(record["git_commit"].removesuffix("-dirty")) == 40


def interrupted_write(folder: Path) -> None:
    with whole_folder(folder, replaces="a") as fresh:
        (fresh / "a").write_text("two")
        raise KeyboardInterrupt


def test_folders_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    with whole_folder(folder) as fresh:
        (fresh / "a").write_text("one")
        assert not folder.exists()
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(folder)
    assert (folder / "a").read_text() == "one"
    with whole_folder(folder, replaces="a") as fresh:
        (fresh / "b").write_text("three")
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    assert [path.name for path in folder.iterdir()] == ["b"]


@pytest.mark.parametrize(("target", "message"), [("full", "is not empty"), ("full/mine.txt", "is a file")])
def test_nothing_else_is_replaced(target: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=message), whole_folder(tmp_path / target, replaces="results.json"):
        pass
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
