"""What only a GPU can show; these run where there is one, and are skipped elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from transformers import CLIPImageProcessorPil

from anprompt_peft.data import ClipTransform
from anprompt_peft.fast import Savings
from anprompt_peft.training import ANPromptTrainer, ANPromptTrainingArguments
from conftest import IMAGE_SIZE
from helpers import CLASSES, LABELS, adapted, make_clip, trainable

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
KINDS = [Savings(), Savings(text_chunk=2), Savings.none()]
HALF = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
DEPTH = 9  # of layers, each of which may add a rounding error


def step(model: Any, pixels: Tensor, **autocast: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and all gradients of one training step whose draws are always the same."""
    torch.manual_seed(5)
    with torch.autocast("cuda", **autocast, enabled=bool(autocast)):
        loss = model(pixel_values=pixels.to(model.device), labels=LABELS.to(model.device)).loss
    weights = trainable(model)
    return loss.detach(), dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


@pytest.mark.parametrize("savings", KINDS)
def test_equals_the_cpu(savings: Savings, pixels: Tensor) -> None:
    model = adapted(dtype=torch.float64, prototype_rank=2, rephrased_weight=10.0).double().train()
    model.set_savings(savings)
    loss, gradients = step(model, pixels.double())
    found, others = step(model.to("cuda"), pixels.double())
    torch.testing.assert_close(found.cpu(), loss, rtol=0, atol=1e-10)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name].cpu(), gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("savings", KINDS)
@pytest.mark.parametrize("frozen_half", [False, True])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_mixed_precision(dtype: torch.dtype, frozen_half: bool, savings: Savings, pixels: Tensor) -> None:
    """All gradients together are off by less than one rounding of each layer, forth and back."""
    base = dtype if frozen_half else torch.float32
    model = adapted(make_clip(dtype=base).float(), prototype_rank=2, rephrased_weight=10.0).train().to("cuda")
    loss, gradients = step(model, pixels)
    for name, weight in model.named_parameters():
        if "anprompt_" not in name:
            weight.data = weight.data.to(base)
    model.set_savings(savings)
    found, rough = step(model, pixels, dtype=dtype)
    bound = 2 * DEPTH * HALF[dtype]
    assert abs(found - loss) < bound * loss
    exact, ours = (torch.cat([each.float().flatten() for each in run.values()]) for run in (gradients, rough))
    assert (ours - exact).norm() < bound * exact.norm()
    assert all(weight.dtype == torch.float32 for weight in trainable(model).values())


@pytest.mark.parametrize("savings", KINDS[:2])
def test_no_step_waits_for_the_device(savings: Savings, pixels: Tensor) -> None:
    model = adapted(rephrased_weight=10.0).train().to("cuda")
    model.set_savings(savings)
    step(model, pixels)
    pixels, labels = pixels.to("cuda"), LABELS.to("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(pixel_values=pixels, labels=labels).loss.backward()
        with pytest.raises(RuntimeError, match="synchronizing"):
            labels.sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_attention_has_fast_kernels(dtype: torch.dtype, pixels: Tensor) -> None:
    """Without the plain kernel that PyTorch falls back to, images need no mask and texts a bool one."""
    clip = make_clip(hidden_size=64)  # heads of 16
    model = adapted(clip, rephrased_weight=10.0).train().to("cuda")
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
        step(model, pixels, dtype=dtype)


def test_nccl(pixels: Tensor, tmp_path: Path) -> None:
    model = adapted().train().to("cuda")
    _, gradients = step(model, pixels)
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch.manual_seed(5)
        model.shard_class_texts()
        both = DistributedDataParallel(model, device_ids=[0])
        both(pixel_values=pixels.to("cuda"), labels=LABELS.to("cuda")).loss.backward()
    finally:
        torch.distributed.destroy_process_group()
    for name, weight in trainable(model).items():
        torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mixed", ["bf16", "fp16"])
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16], ids=str)
def test_trainer(mixed: str, base: torch.dtype, tmp_path: Path) -> None:
    features = Features({"image": Image(), "label": ClassLabel(names=CLASSES)})
    images = [Pillow.new("RGB", (20, 20), (80 * (at % 3), 30, 200 - 80 * (at % 3))) for at in range(12)]
    dataset = Dataset.from_dict({"image": images, "label": [at % 3 for at in range(12)]}, features=features)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    arguments = ANPromptTrainingArguments(
        str(tmp_path),
        num_train_epochs=10,
        learning_rate=0.01,
        bf16=mixed == "bf16",
        fp16=mixed == "fp16",
        report_to="none",
        save_strategy="no",
    )
    model = adapted(make_clip(dtype=base), rephrased_weight=10.0)
    trainer = ANPromptTrainer(model, arguments, train_dataset=ClipTransform(processor).apply(dataset))
    trainer.train()
    first, last = (each["cross_entropy_class"] for each in trainer.state.log_history[:-1:9])
    assert last < first
    assert all(weight.isfinite().all() for weight in trainable(model).values())
