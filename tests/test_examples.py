"""The examples, on the embedded digits at reduced size, and the site."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from datasets import load_dataset
from peft import AutoPeftModel, PeftModel, get_peft_model
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import (
    BitsAndBytesConfig,
    CLIPModel,
    CLIPProcessor,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

import train_trainer
from anprompt_peft import ANPromptConfig
from anprompt_peft.training import ANPromptTrainer, ANPromptTrainingArguments
from export_folder import export

ROOT = Path(__file__).resolve().parents[1]
TINY_CLIP = ROOT / "examples" / "embedded" / "tiny_clip"
TEMPLATE = "a photo of the digit {}."


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as an image folder, ten per class and split."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    export(folder, limit=10)
    return folder


def test_trainer_example(digits: Path, tmp_path: Path) -> None:
    settings = ["--shots", "8", "--num_train_epochs", "4", "--report_to", "none", "--seed", "1"]
    options = ["--model", str(TINY_CLIP), "--template", TEMPLATE, "--output_dir", str(tmp_path / "out")]
    metrics = train_trainer.main([str(digits), *options, *settings])
    assert metrics["eval_accuracy"] > 0.6
    assert metrics["eval_loss"] > 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{metrics['eval_accuracy']:g}" in card
    model = AutoPeftModel.from_pretrained(tmp_path / "out")
    assert model.class_names[:2] == ["eight", "five"], "folders come in alphabetical order"


def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    api = (tmp_path / "site" / "api" / "index.html").read_text()
    for name in ("ANPromptConfig", "load_image_data", "ANPromptTrainer", "export_onnx", "num_virtual_tokens"):
        assert name in api


@pytest.mark.slow
def test_the_script_of_a_tutorial(digits: Path, tmp_path: Path) -> None:
    """What image classification tutorials do, in their words, with a CLIP and an adapter in place of a ViT."""
    data = load_dataset("imagefolder", data_dir=str(digits))
    names = data["train"].features["label"].names
    processor = CLIPProcessor.from_pretrained(TINY_CLIP).image_processor

    def transform(examples: dict[str, Any]) -> dict[str, Any]:
        pixels = processor([image.convert("RGB") for image in examples["image"]], return_tensors="pt")["pixel_values"]
        return {"pixel_values": list(pixels), "labels": examples["label"]}

    train, test = data["train"].with_transform(transform), data["test"].with_transform(transform)

    def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        pixels = torch.stack([example["pixel_values"] for example in examples])
        return {"pixel_values": pixels, "labels": torch.tensor([example["labels"] for example in examples])}

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        predicted = np.argmax(prediction.predictions, axis=1)
        return {"accuracy": float((predicted == prediction.label_ids).mean())}

    config = ANPromptConfig(class_names=names, template=TEMPLATE)

    def model_init() -> Any:
        torch.manual_seed(0)
        return get_peft_model(CLIPModel.from_pretrained(TINY_CLIP), config)

    def arguments(name: str, **settings: Any) -> dict[str, Any]:
        common: dict[str, Any] = {
            "output_dir": str(tmp_path / name), "num_train_epochs": 3, "per_device_train_batch_size": 20,
            "learning_rate": 1e-3, "eval_strategy": "epoch", "save_strategy": "epoch", "report_to": "none",
            "load_best_model_at_end": True, "metric_for_best_model": "accuracy", "remove_unused_columns": False,
            "use_cpu": True, "disable_tqdm": True, "seed": 1,
        }  # fmt: skip
        return {**common, **settings}

    parts: dict[str, Any] = {
        "train_dataset": train, "eval_dataset": test, "data_collator": collate, "compute_metrics": compute_metrics
    }  # fmt: skip
    frozen = CLIPModel.from_pretrained(TINY_CLIP)
    with get_peft_model(frozen, config).disable_adapter():
        zero_shot = Trainer(frozen, TrainingArguments(**arguments("zero")), **parts).evaluate()["eval_accuracy"]

    stock = Trainer(model_init=model_init, args=TrainingArguments(**arguments("stock")), **parts)
    stock.train()
    best = stock.evaluate()["eval_accuracy"]
    assert best == stock.state.best_metric > zero_shot

    settings = arguments("own", label_smoothing_factor=0.1, class_weights="balanced")
    own = ANPromptTrainer(model_init=model_init, args=ANPromptTrainingArguments(**settings), **parts)
    own.train()
    assert own.evaluate()["eval_accuracy"] == own.state.best_metric > zero_shot
    first = sorted((tmp_path / "own").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[0]
    resumed = ANPromptTrainer(model_init=model_init, args=ANPromptTrainingArguments(**settings), **parts)
    resumed.train(resume_from_checkpoint=str(first))
    weights = dict(own.model.named_parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in resumed.model.named_parameters())

    model = own.model.eval()
    batch = collate([test[row] for row in range(10)])
    predicted = model(batch["pixel_values"]).logits
    model.save_pretrained(tmp_path / "adapter")
    model.load_adapter(tmp_path / "adapter", "second", is_trainable=True)
    model.set_adapter("second")
    assert torch.equal(model(**batch).logits, predicted)

    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    for _ in range(3):
        model.train()(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        averaged.update_parameters(model)
    ema: Any = averaged.module.eval()
    ema.save_pretrained(tmp_path / "averaged", selected_adapters=["second"])
    again = PeftModel.from_pretrained(CLIPModel.from_pretrained(TINY_CLIP), tmp_path / "averaged" / "second")
    torch.testing.assert_close(again(**batch).logits, ema(**batch).logits)
    assert not torch.equal(model.eval()(**batch).logits, ema(**batch).logits)
    model.set_adapter("default")
    assert torch.equal(model(**batch).logits, predicted)

    hooked = CLIPModel.from_pretrained(TINY_CLIP, device_map={"": "cpu"})
    add_hook_to_module(hooked, AlignDevicesHook(io_same_device=True))
    assert torch.equal(PeftModel.from_pretrained(hooked, tmp_path / "adapter")(**batch).logits, predicted)


@pytest.mark.slow
def test_a_base_model_in_8_bits(digits: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="it is no dependency: pip install bitsandbytes")

    def load(*skipped: str) -> CLIPModel:
        quantisation = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[*skipped] or None)
        return CLIPModel.from_pretrained(TINY_CLIP, quantization_config=quantisation, device_map={"": "cpu"})

    config = ANPromptConfig(class_names=["cat", "dog"])
    with pytest.raises(ValueError, match=r"quantised visual_projection .*llm_int8_skip_modules="):
        get_peft_model(load(), config)
    model: Any = get_peft_model(load("visual_projection", "text_projection"), config)
    side = model.config.vision_config.image_size
    pixels = torch.randn(2, 3, side, side)
    model(pixel_values=pixels, labels=[0, 1]).loss.backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in model.parameters())
    model.save_pretrained(str(tmp_path))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="This CLIP is not the one")
        again = PeftModel.from_pretrained(load("visual_projection", "text_projection"), tmp_path)
    assert torch.equal(again(pixel_values=pixels).logits, model.eval()(pixel_values=pixels).logits)
