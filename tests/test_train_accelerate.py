"""examples/train_accelerate.py on one process, its checkpoints, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import CLIPModel

import distributed_worker as worker
from anprompt_peft.training import keep_adapter_only, newest, save_newest
from helpers import logits, trainable

TINY_CLIP = worker.EXAMPLES / "embedded" / "tiny_clip"
EPOCH_STEPS = 5  # 10 batches, 2 for a step of the optimizer
STEPS = 2 * EPOCH_STEPS
STATE = {"optimizer.bin", "scheduler.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl"}
ADAPTER = {"adapter_model.safetensors", "adapter_config.json", "README.md"}


@pytest.fixture(autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
    yield
    worker.forget_accelerators(leave_group=True)


@pytest.mark.parametrize(
    ("recipe", "rates", "optimizer"),
    [
        ("default", [1e-5] + [1e-3] * EPOCH_STEPS + [0.5e-3] * 4, [("decay", 0.0)] + [("clip", 1.0)] * STEPS),
        ("paper", [1e-5] * EPOCH_STEPS + [1e-3] * EPOCH_STEPS, [("decay", 5e-4)]),
    ],
)
def test_recipes_are_those_of_the_trainer_and_every_step_is_logged(
    recipe: str,
    rates: list[float],
    optimizer: list[Any],
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Loss terms, learning rates and the accuracy go to TensorBoard."""
    seen: list[Any] = []
    adamw, clip = torch.optim.AdamW, Accelerator.clip_grad_norm_

    def make(weights: Any, rate: float, weight_decay: float, fused: bool) -> torch.optim.AdamW:
        seen.append(("decay", weight_decay))
        assert not fused, "on a CPU"
        return adamw(weights, rate, weight_decay=weight_decay)

    def clip_and_note(self: Accelerator, weights: Any, norm: float) -> Any:
        seen.append(("clip", norm))
        return clip(self, weights, norm)

    monkeypatch.setattr(torch.optim, "AdamW", make)
    monkeypatch.setattr(Accelerator, "clip_grad_norm_", clip_and_note)
    record = worker.run_script(digits, tmp_path, "--report-to", "tensorboard", "--recipe", recipe)
    assert record is not None
    assert seen == optimizer
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    logged = {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert logged.pop("accuracy") == [pytest.approx(record["accuracy"])]
    assert logged.pop("learning_rate") == pytest.approx(rates)
    assert {name: len(values) for name, values in logged.items()} == dict.fromkeys(record["loss_terms"][0], STEPS)
    for epoch, means in enumerate(record["loss_terms"]):
        for name, mean in means.items():
            steps = logged[name][EPOCH_STEPS * epoch :][:EPOCH_STEPS]
            assert sum(steps) / EPOCH_STEPS == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_stopped_training_resumes_exactly(workers: str, digits: Path, tmp_path: Path) -> None:
    """Stopped within the second epoch; images are augmented, here or by a process that reads ahead."""
    options = ("--workers", workers, "--save-every", "1")
    whole = worker.run_script(digits, tmp_path / "whole", "--workers", workers)
    assert worker.run_script(digits, tmp_path / "parts", *options, stop_after=EPOCH_STEPS + 2) is None
    resumed = worker.run_script(digits, tmp_path / "parts", *options, "--resume")
    assert whole is not None
    assert resumed is not None
    assert resumed["loss_terms"] == whole["loss_terms"]
    checkpoint = newest(tmp_path / "parts" / "checkpoints")
    assert checkpoint == tmp_path / "parts" / "checkpoints" / f"step-{STEPS:08d}"
    assert {path.name for path in checkpoint.iterdir()} == STATE | ADAPTER, "an adapter, and no base model"
    folders = (checkpoint, tmp_path / "parts" / "result" / "adapter", tmp_path / "whole" / "result" / "adapter")
    saved, *ended = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    for other in ended:
        assert [name for name in other if name not in saved] == [
            "base_model.model.visual_projection.anprompt_classifier"
        ]
        assert all(torch.equal(saved[name], other[name]) for name in saved)
    assert all(torch.equal(ended[0][name], ended[1][name]) for name in ended[0])
    models = [PeftModel.from_pretrained(CLIPModel.from_pretrained(TINY_CLIP), folder) for folder in folders[:2]]
    models[1].active_peft_config.classifier_weight = 0.0
    pixels = torch.randn(4, 3, 32, 32)
    assert torch.equal(*(logits(model, pixels) for model in models))


@pytest.fixture
def kept(clip_folder: Path) -> tuple[Accelerator, Any]:
    """An Accelerator that saves the active one of a model's two adapters."""
    accelerator, model = worker.fresh_accelerator(), worker.adapted_model(clip_folder)
    model.add_adapter("second", model.peft_config["default"])
    model.set_adapter("second")
    keep_adapter_only(accelerator, model)
    accelerator.prepare(model)
    return accelerator, model


def test_only_the_active_adapter_is_kept(kept: tuple[Accelerator, Any], tmp_path: Path) -> None:
    """The active one is saved and restored, whatever its name, and the other is left alone."""
    accelerator, model = kept
    before = copies(model)
    save_newest(accelerator, tmp_path, 1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    after = copies(model)
    accelerator.load_state(str(newest(tmp_path)))
    second = trainable(model).keys()
    assert second
    for name, weight in copies(model).items():
        assert torch.equal(weight, before[name] if name in second else after[name])


def copies(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_a_checkpoint_that_breaks_off_replaces_nothing(
    kept: tuple[Accelerator, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator, model = kept
    save_newest(accelerator, tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(model, "save_pretrained", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            save_newest(accelerator, tmp_path, 2)
    assert newest(tmp_path) == tmp_path / "step-00000001"
    save_newest(accelerator, tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_resuming_needs_a_checkpoint_made_with_the_same_settings(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        worker.run_script(digits, tmp_path, "--resume")
    assert "has no checkpoint" in capsys.readouterr().err
    worker.run_script(digits, tmp_path, stop_after=1)
    with pytest.raises(SystemExit):
        worker.run_script(digits, tmp_path)
    assert "has a checkpoint: give --resume" in capsys.readouterr().err
    with pytest.raises(ValueError, match=re.escape("made with {'batch_size': '2'}")):
        worker.run_script(digits, tmp_path, "--resume", "--batch-size", "4")


@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_sharded_weights_are_refused(engine: str, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch --use_fsdp` and its like, and Accelerate's plugins, say so in the environment."""
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(NotImplementedError, match=f"{engine}.*--multi_gpu"):
        worker.run_script(digits, digits)


def test_fp16_is_not_ignored_on_a_cpu(digits: Path) -> None:
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        worker.run_script(digits, digits, "--mixed-precision", "fp16")


def test_a_missing_tracker_is_named_before_training(digits: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(SystemExit):
        worker.run_script(digits, digits, "--report-to", "tensorboard")
    assert "--report-to tensorboard: not installed (pip install tensorboard)" in capsys.readouterr().err
