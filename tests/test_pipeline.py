"""transformers' zero-shot pipeline with an adapted model, by every way to hand one in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModel, get_peft_model
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor, pipeline

from anprompt_peft import ANPromptConfig
from helpers import CLASSES, scatter

TASK = "zero-shot-image-classification"
TEMPLATE = "a photo of a {}."
UNSEEN = ["bird", "large red fish", "drawing of one dog"]
WAYS = ["PeftModel", "its base model", "folder", "folder of add_adapter", "AutoPeftModel"]


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)) for size in ((16, 16), (20, 33), (50, 17))]


@pytest.fixture(scope="module")
def adapted(clip_folder: Path) -> Any:
    clip = CLIPModel.from_pretrained(clip_folder)
    return scatter(get_peft_model(clip, ANPromptConfig(class_names=CLASSES)).eval())


@pytest.fixture(scope="module")
def folder(adapted: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `save_pretrained` writes; no processor lies beside the adapter."""
    folder = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    return folder


@pytest.fixture(scope="module")
def processor(clip_folder: Path) -> CLIPProcessor:
    return CLIPProcessor.from_pretrained(clip_folder)


def build(way: str, adapted: Any, folder: Path, processor: CLIPProcessor, tmp_path: Path) -> Any:
    parts = {"image_processor": processor.image_processor, "tokenizer": processor.tokenizer, "device": "cpu"}
    if way == "folder":
        return pipeline(TASK, model=str(folder), device="cpu")
    if way == "folder of add_adapter":
        CLIPModel.from_pretrained(folder).save_pretrained(tmp_path)
        return pipeline(TASK, model=str(tmp_path), device="cpu")
    if way == "AutoPeftModel":
        return pipeline(TASK, model=AutoPeftModel.from_pretrained(folder), **parts)
    return pipeline(TASK, model=adapted if way == "PeftModel" else adapted.get_base_model(), **parts)


def scores(classifier: Any, images: list[Image.Image], labels: list[str], **settings: Any) -> Tensor:
    """The pipeline's scores `[n, C]`, in the order of the labels."""
    results = classifier(images, candidate_labels=labels, hypothesis_template=TEMPLATE, **settings)
    return torch.tensor(
        [[{row["label"]: row["score"] for row in rows}[label] for label in labels] for rows in results]
    )


@torch.no_grad()
def own_scores(model: Any, processor: CLIPProcessor, images: list[Image.Image], labels: list[str]) -> Tensor:
    """The model's scores `[n, C]` from its form as a `CLIPModel`."""
    texts = [TEMPLATE.format(label) for label in labels]
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt").to(model.dtype)
    assert not inputs["attention_mask"].all()
    return model(**inputs).logits_per_image.softmax(dim=-1).float()


@pytest.mark.parametrize("labels", [CLASSES, UNSEEN], ids=["trained", "unseen"])
@pytest.mark.parametrize("way", WAYS)
def test_scores_are_the_models_own(
    way: str,
    labels: list[str],
    adapted: Any,
    folder: Path,
    processor: CLIPProcessor,
    images: list[Image.Image],
    tmp_path: Path,
) -> None:
    classifier = build(way, adapted, folder, processor, tmp_path)
    ours, expected = scores(classifier, images, labels), own_scores(adapted, processor, images, labels)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(scores(classifier, images, labels, batch_size=2), expected, rtol=0, atol=1e-6)
    with adapted.disable_adapter():
        assert (own_scores(adapted, processor, images, labels) - expected).abs().max() > 0.01


@pytest.mark.parametrize("labels", [CLASSES, UNSEEN], ids=["trained", "unseen"])
def test_scores_are_class_logits_and_never_fused(
    labels: list[str], folder: Path, processor: CLIPProcessor, images: list[Image.Image]
) -> None:
    model = AutoPeftModel.from_pretrained(folder).eval()
    model.set_classes(labels)
    with torch.no_grad():
        output = model(**processor(images=images, return_tensors="pt"))
    ours = scores(pipeline(TASK, model=str(folder), device="cpu"), images, labels)
    torch.testing.assert_close(ours, output.logits_class.softmax(dim=-1), rtol=0, atol=1e-6)
    distance = (ours - output.logits.softmax(dim=-1)).abs().max()
    assert distance > 0.001 if labels is CLASSES else distance < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(
    dtype: torch.dtype, adapted: Any, folder: Path, processor: CLIPProcessor, images: list[Image.Image]
) -> None:
    exact = own_scores(adapted, processor, images, UNSEEN)
    from_folder = pipeline(TASK, model=str(folder), dtype=dtype, device="cpu")
    assert {weight.dtype for weight in from_folder.model.parameters()} == {dtype}
    loaded = AutoPeftModel.from_pretrained(folder, dtype=dtype)
    adapter_dtypes = {weight.dtype for name, weight in loaded.named_parameters() if "anprompt_" in name}
    assert adapter_dtypes == {torch.float32}
    parts = {"image_processor": processor.image_processor, "tokenizer": processor.tokenizer}
    from_model = pipeline(TASK, model=loaded, device="cpu", **parts)
    assert from_model.dtype == dtype
    for classifier in (from_folder, from_model):
        ours = scores(classifier, images, UNSEEN)
        torch.testing.assert_close(ours, exact, rtol=0, atol=0.05)
        expected = torch.cat([own_scores(classifier.model, processor, [image], UNSEEN) for image in images])
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_hub_ids_from_the_offline_cache(folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    """An adapter and its base model in two Hub repositories, each at a commit of its own."""
    cached(tmp_path, "user/clip", clip_folder, "a" * 40)
    snapshot = cached(tmp_path, "user/adapter", folder, "b" * 40)
    config = json.loads((snapshot / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "user/clip", "tokenizer_name_or_path": "user/clip"}
    (snapshot / "adapter_config.json").write_text(json.dumps(config))
    program = f"""
import anprompt_peft
from PIL import Image
from transformers import pipeline
classifier = pipeline({TASK!r}, model="user/adapter", device="cpu")
assert type(classifier.model).__name__ == "ANPromptCLIPModel"
assert len(classifier(Image.new("RGB", (16, 16)), candidate_labels={UNSEEN})) == 3
"""
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def cached(cache: Path, repository: str, files: Path, commit: str) -> Path:
    """Lay a repository out as `huggingface_hub` keeps it after a download."""
    root = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(files, root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    return root / "snapshots" / commit
