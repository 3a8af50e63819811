"""Frozen weights in bfloat16: which device takes it, what is cast, and that what changes is rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from torch import Tensor

from anprompt_peft.fast import Savings, choose_precision, multiplies_bfloat16, precision, set_precision
from anprompt_peft.training import ANPromptTrainer, ANPromptTrainingArguments
from helpers import LABELS, adapted, logits, make_clip, make_config, trainable

UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}


@pytest.mark.parametrize(("native", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_auto_follows_the_device(native: bool, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: native)
    assert choose_precision("auto", "cpu") == chosen
    assert choose_precision("fp32", "cpu") == "fp32"
    assert choose_precision("bf16", "cpu") == "bf16"


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"precision='half' is unknown\. Choose one of: auto, fp32, bf16"):
        choose_precision("half", "cpu")


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="needs Linux")
def test_the_processor_is_asked() -> None:
    """The kernel's own list of the processor's instructions says the same."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert multiplies_bfloat16("cpu") == bool(flags & {"avx512_bf16", "amx_tile"})
    assert not multiplies_bfloat16("meta")


def test_frozen_weights_are_cast_and_nothing_else(pixels: Tensor, tmp_path: Path) -> None:
    """Class features that were kept are computed anew, and the saved adapter is in float32."""
    model = adapted()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    exact, kept = logits(model, pixels), model.encode_classes().detach()
    assert set_precision(model, "bf16") == "bf16"
    for name, weight in model.named_parameters():
        stays = "anprompt_" in name or name.endswith("logit_scale")
        assert weight.dtype == (torch.float32 if stays else torch.bfloat16), name
        assert weight.requires_grad == ("anprompt_" in name)
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    with torch.no_grad():
        assert not torch.equal(model.encode_classes(), kept)
    assert logits(model, pixels).dtype == torch.float32
    assert 0 < (logits(model, pixels) - exact).abs().max() < 0.5
    model.save_pretrained(tmp_path)
    assert {value.dtype for value in load_file(tmp_path / "adapter_model.safetensors").values()} <= {
        torch.float32,
        torch.int64,
    }


def test_weights_that_are_trained_stay() -> None:
    model = adapted()
    model.base_model.model.vision_model.post_layernorm.requires_grad_(True)
    set_precision(model, "bf16")
    assert model.base_model.model.vision_model.post_layernorm.weight.dtype == torch.float32
    assert model.base_model.model.text_model.final_layer_norm.weight.dtype == torch.bfloat16


def relative_errors(dtype: torch.dtype, pixels: Tensor, savings: Savings) -> dict[str, float]:
    """Relative errors of logits and of every gradient with frozen weights of a dtype, against float64."""

    def run(dtype: torch.dtype) -> dict[str, Tensor]:
        clip = make_clip(dtype=torch.float64)
        generator = torch.Generator().manual_seed(5)
        for weight in clip.parameters():  # no number of bits short of float64's holds them
            weight.data *= 1 + 1e-3 * torch.rand(weight.shape, generator=generator, dtype=torch.float64)
        model = adapted(clip, text_update_rank=2)
        if dtype != torch.float64:
            model.float()
            for weight in model.parameters():
                weight.data = weight.data if weight.requires_grad or not weight.dim() else weight.data.to(dtype)
        model.set_savings(savings)
        output = model(pixel_values=pixels.to(dtype), labels=LABELS)
        output.loss.backward()
        return {"logits": output.logits.detach(), **{name: each.grad for name, each in trainable(model).items()}}

    exact, rounded = run(torch.float64), run(dtype)
    return {name: float((rounded[name] - value).norm() / value.norm()) for name, value in exact.items()}


@pytest.mark.parametrize("savings", [Savings(), Savings.none()], ids=["fast", "plain"])
def test_bfloat16_errs_by_its_unit_roundoff(savings: Savings, pixels: Tensor) -> None:
    """First-order error analysis: the same roundings, each 2**16 times as large, give 2**16 times the error.

    Sums inside products, norms and softmaxes are float32 in both, and so are logits, losses and the adapter, so that
    it should be somewhat less; and both errors are one draw each. Far less would mean that nothing was rounded.
    """
    pixels = pixels.double()
    of_float32, of_bfloat16 = (relative_errors(dtype, pixels, savings) for dtype in UNIT_ROUNDOFF)
    ratio = UNIT_ROUNDOFF[torch.bfloat16] / UNIT_ROUNDOFF[torch.float32]
    for name, error in of_bfloat16.items():
        assert 1 / 32 < error / (of_float32[name] * ratio) < 2, name


def test_trainer_casts_once(pixels: Tensor, tmp_path: Path) -> None:
    """No weight of a layer is cast again in a step, and the adapter is trained in float32."""
    settings: dict[str, Any] = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "num_train_epochs": 1}
    arguments = ANPromptTrainingArguments(str(tmp_path), precision="bf16", **settings)
    rows = [{"pixel_values": image, "labels": int(label)} for image, label in zip(pixels, LABELS, strict=True)]
    model: Any = get_peft_model(make_clip(), make_config())
    trainer = ANPromptTrainer(model, arguments, train_dataset=rows)
    frozen = {name: weight.data_ptr() for name, weight in model.named_parameters() if not weight.requires_grad}
    trainer.train()
    for name, weight in model.named_parameters():
        assert weight.dtype == (torch.float32 if "anprompt_" in name or "scale" in name else torch.bfloat16)
        assert weight.requires_grad or weight.data_ptr() == frozen[name]
    assert all(weight.isfinite().all() for weight in trainable(model).values())


def test_trainer_writes_down_what_auto_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: True)
    arguments = ANPromptTrainingArguments(str(tmp_path), precision="auto", use_cpu=True, report_to="none")
    assert arguments.precision == "bf16"


@pytest.mark.parametrize("other", [{"bf16": True}, {"fp16": True}], ids=["bf16", "fp16"])
def test_autocast_and_precision_exclude_each_other(other: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision='auto' and bf16 or fp16 exclude each other"):
        ANPromptTrainingArguments(str(tmp_path), precision="auto", **other)
