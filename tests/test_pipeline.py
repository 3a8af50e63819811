"""transformers' pipelines with an adapted model, by every way to hand one in, and a processor beside the adapter."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModel, LoraConfig, get_peft_model
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModelForImageClassification,
    AutoTokenizer,
    CLIPForImageClassification,
    CLIPModel,
    CLIPPreTrainedModel,
    CLIPProcessor,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedModel,
    pipeline,
)

from anprompt_peft import ANPromptConfig, tuner
from helpers import CLASSES, adapted, cached, make_clip, make_config, needs_add_adapter, scatter

TASK = "zero-shot-image-classification"
FIXED = "image-classification"
TEMPLATE = "a photo of a {}."
UNSEEN = ["bird", "large red fish", "drawing of one dog"]
OF_ADD_ADAPTER = pytest.param("folder of add_adapter", marks=needs_add_adapter)
WAYS = ["PeftModel", "its base model", "folder", OF_ADD_ADAPTER, "AutoPeftModel"]


RANDOM = np.random.default_rng(0)
IMAGES = [Image.fromarray(RANDOM.integers(0, 256, (*size, 3), np.uint8)) for size in ((16, 16), (20, 33), (50, 17))]


@pytest.fixture(scope="module")
def fitted(clip_folder: Path) -> Any:
    clip = CLIPModel.from_pretrained(clip_folder)
    torch.manual_seed(1)  # with the same weights, whatever tests ran before
    return scatter(get_peft_model(clip, ANPromptConfig(class_names=CLASSES)).eval())


@pytest.fixture(scope="module")
def folder(fitted: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `save_pretrained` writes; no processor lies beside the adapter."""
    folder = tmp_path_factory.mktemp("adapter")
    fitted.save_pretrained(folder)
    files = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert {path.name for path in folder.iterdir()} == files
    return folder


@pytest.fixture(scope="module")
def processor(clip_folder: Path) -> CLIPProcessor:
    return CLIPProcessor.from_pretrained(clip_folder)


@pytest.fixture
def build(fitted: Any, folder: Path, processor: CLIPProcessor, tmp_path: Path) -> Callable[..., Any]:
    """Makes a pipeline in one of the ways."""

    def make(way: str, task: Any = TASK) -> Any:
        parts: dict[str, Any] = {"image_processor": processor.image_processor, "device": "cpu"}
        if task == TASK:
            parts["tokenizer"] = processor.tokenizer
        if way == "folder":
            return pipeline(task, model=str(folder), device="cpu")
        if way == "folder of add_adapter":
            CLIPModel.from_pretrained(folder).save_pretrained(tmp_path)
            return pipeline(task, model=str(tmp_path), device="cpu")
        if way == "AutoPeftModel":
            return pipeline(task, model=AutoPeftModel.from_pretrained(folder), **parts)
        return pipeline(task, model=fitted if way == "PeftModel" else fitted.get_base_model(), **parts)

    return make


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
    way: str, labels: list[str], fitted: Any, processor: CLIPProcessor, build: Callable[..., Any]
) -> None:
    classifier = build(way)
    ours, expected = scores(classifier, IMAGES, labels), own_scores(fitted, processor, IMAGES, labels)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(scores(classifier, IMAGES, labels, batch_size=2), expected, rtol=0, atol=1e-6)
    with fitted.disable_adapter():
        assert (own_scores(fitted, processor, IMAGES, labels) - expected).abs().max() > 0.01


@pytest.mark.parametrize("labels", [CLASSES, UNSEEN], ids=["trained", "unseen"])
def test_scores_are_class_logits_alone(labels: list[str], folder: Path, processor: CLIPProcessor) -> None:
    model = AutoPeftModel.from_pretrained(folder).eval()
    model.set_classes(labels)
    with torch.no_grad():
        output = model(**processor(images=IMAGES, return_tensors="pt"))
    ours = scores(pipeline(TASK, model=str(folder), device="cpu"), IMAGES, labels)
    torch.testing.assert_close(ours, output.logits_class.softmax(dim=-1), rtol=0, atol=1e-6)
    assert (ours - output.logits.softmax(dim=-1)).abs().max() > 0.001


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, fitted: Any, folder: Path, processor: CLIPProcessor) -> None:
    exact = own_scores(fitted, processor, IMAGES, UNSEEN)
    from_folder = pipeline(TASK, model=str(folder), dtype=dtype, device="cpu")
    assert {weight.dtype for weight in from_folder.model.parameters()} == {dtype}
    loaded = AutoPeftModel.from_pretrained(folder, dtype=dtype)
    adapter_dtypes = {weight.dtype for name, weight in loaded.named_parameters() if "anprompt_" in name}
    assert adapter_dtypes == {torch.float32}
    parts = {"image_processor": processor.image_processor, "tokenizer": processor.tokenizer}
    from_model = pipeline(TASK, model=loaded, device="cpu", **parts)
    assert from_model.dtype == dtype
    for classifier in (from_folder, from_model):
        ours = scores(classifier, IMAGES, UNSEEN)
        torch.testing.assert_close(ours, exact, rtol=0, atol=0.05)
        expected = torch.cat([own_scores(classifier.model, processor, [image], UNSEEN) for image in IMAGES])
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_fixed_classes(way: str, fitted: Any, processor: CLIPProcessor, build: Callable[..., Any]) -> None:
    """The image-classification pipeline names the adapter's classes and gives the model's own, fused logits."""
    classifier = build(way, FIXED)
    with torch.no_grad():
        logits = fitted(**processor(images=IMAGES, return_tensors="pt")).logits
    expected = logits.softmax(dim=-1)
    for settings in ({}, {"batch_size": 2}):
        for rows, row in zip(classifier(IMAGES, **settings), expected, strict=True):
            found = {each["label"]: each["score"] for each in rows}
            assert found == pytest.approx(dict(zip(CLASSES, row.tolist(), strict=True)), abs=1e-6)
            assert [each["score"] for each in rows] == sorted(found.values(), reverse=True)
    assert [each["label"] for each in classifier(IMAGES[0], top_k=1)] == [CLASSES[int(expected[0].argmax())]]


@pytest.mark.parametrize("task", [FIXED, TASK])
@pytest.mark.parametrize("way", WAYS)
def test_a_pipeline_logs_nothing(
    way: str, task: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, build: Callable[..., Any]
) -> None:
    """Neither a report on weights that a class without prompts would need, nor that the task is not supported."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    build(way, task)
    assert caplog.messages == []


def test_the_image_classifier_of_an_adapter_is_the_adapted_clip(
    fitted: Any, folder: Path, processor: CLIPProcessor
) -> None:
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    assert_labels(model, CLASSES)
    pixels = processor(images=IMAGES, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**pixels).logits, fitted(**pixels).logits)


@pytest.mark.parametrize("cls", [CLIPForImageClassification, CLIPVisionModel])
def test_an_adapter_enters_no_other_class_of_clip(
    cls: Any, folder: Path, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes before the base model is loaded, and base models load as before."""
    assert type(cls.from_pretrained(clip_folder)) is cls
    assert CLIPVisionModel.from_pretrained(None, config=CLIPVisionConfig(num_hidden_layers=1), state_dict={})
    monkeypatch.setattr(CLIPPreTrainedModel, "_load_pretrained_model", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(TypeError, match=r"is an ANPrompt adapter.*CLIPModel\.from_pretrained\('"):
        cls.from_pretrained(str(folder))


@needs_add_adapter
def test_an_adapter_of_another_method_enters_clips_other_classes(clip_folder: Path, tmp_path: Path) -> None:
    lora = LoraConfig(target_modules=["q_proj"])
    get_peft_model(CLIPVisionModel.from_pretrained(clip_folder), lora).save_pretrained(str(tmp_path))
    assert CLIPVisionModel.from_pretrained(str(tmp_path)).active_adapters() == ["default"]


def test_fixed_classes_in_half_precision(folder: Path) -> None:
    exact = pipeline(FIXED, model=str(folder), device="cpu")(IMAGES)
    for rows, reference in zip(
        pipeline(FIXED, model=str(folder), device="cpu", dtype=torch.bfloat16)(IMAGES), exact, strict=True
    ):
        scores = {each["label"]: each["score"] for each in rows}
        assert scores == pytest.approx({each["label"]: each["score"] for each in reference}, abs=0.05)


def test_asked_classes_are_the_pipelines(folder: Path, processor: CLIPProcessor) -> None:
    """Also those that were asked for after the pipeline was made."""
    model = AutoPeftModel.from_pretrained(folder)
    classifier = pipeline(FIXED, model=model, image_processor=processor.image_processor, device="cpu")
    model.set_classes(UNSEEN, template=TEMPLATE)
    with torch.no_grad():
        expected = model.eval()(**processor(images=IMAGES, return_tensors="pt")).logits.softmax(dim=-1)
    for rows, row in zip(classifier(IMAGES), expected, strict=True):
        found = {each["label"]: each["score"] for each in rows}
        assert found == pytest.approx(dict(zip(UNSEEN, row.tolist(), strict=True)), abs=1e-6)


def assert_labels(model: Any, names: list[str]) -> None:
    assert model.config.id2label == dict(enumerate(names))
    assert model.config.label2id == {name: number for number, name in enumerate(names)}
    assert model.config.num_labels == len(names)


BASE_LABELS = ["LABEL_0", "LABEL_1"]
OTHER = ["one", "two", "three", "four"]


def test_labels_follow_the_adapter_and_the_classes(clip: CLIPModel) -> None:
    assert_labels(clip, BASE_LABELS)
    model = adapted(clip)
    assert_labels(model, CLASSES)
    model.add_adapter("other", make_config(class_names=OTHER))
    assert_labels(model, CLASSES)
    model.set_adapter("other")
    assert_labels(model, OTHER)
    model.set_classes(UNSEEN)
    assert_labels(model, UNSEEN)
    model.set_adapter("default")
    assert_labels(model, UNSEEN)
    model.set_classes(None)
    with model.disable_adapter():
        assert_labels(model, CLASSES)
    model.delete_adapter("default")
    assert_labels(model, OTHER)
    model.delete_adapter("other")
    assert_labels(model, BASE_LABELS)


@pytest.mark.parametrize("labels", [None, ["plant", "animal", "stone"]], ids=["without labels", "with labels"])
def test_unload_gives_the_labels_back(labels: list[str] | None) -> None:
    clip = make_clip()
    if labels:
        clip.config.id2label = dict(enumerate(labels))
        clip.config.label2id = {name: number for number, name in enumerate(labels)}
    before = clip.config.to_dict()
    model = adapted(clip)
    model.set_classes(OTHER)
    assert_labels(model, OTHER)
    base = model.unload()
    assert_labels(base, labels or BASE_LABELS)
    assert base.config.to_dict() == before
    assert_labels(adapted(base), CLASSES)


@needs_add_adapter
def test_labels_follow_transformers_own_verbs(clip: CLIPModel, folder: Path) -> None:
    clip.add_adapter(make_config(class_names=OTHER), "other")
    assert_labels(clip, OTHER)
    clip.load_adapter(folder, "loaded")
    assert_labels(clip, CLASSES)
    clip.set_adapter("other")
    assert_labels(clip, OTHER)
    clip.delete_adapter("other")
    assert_labels(clip, CLASSES)
    clip.delete_adapter("loaded")
    assert_labels(clip, BASE_LABELS)


def test_a_processor_beside_the_adapter(fitted: Any, processor: CLIPProcessor, tmp_path: Path) -> None:
    """A folder with both loads by every door, and gives back the processor that was saved."""
    fitted.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    found = CLIPProcessor.from_pretrained(tmp_path)
    assert found.image_processor.to_dict() == processor.image_processor.to_dict()
    assert type(found.tokenizer) is type(processor.tokenizer)
    assert found.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert found.tokenizer.model_max_length == processor.tokenizer.model_max_length
    assert found.tokenizer.special_tokens_map == processor.tokenizer.special_tokens_map
    texts = [TEMPLATE.format(name) for name in UNSEEN]
    assert AutoTokenizer.from_pretrained(tmp_path)(texts)["input_ids"] == processor.tokenizer(texts)["input_ids"]
    expected = own_scores(fitted, processor, IMAGES, UNSEEN)
    for model in (AutoPeftModel.from_pretrained(tmp_path), CLIPModel.from_pretrained(tmp_path)):
        assert torch.equal(own_scores(model.eval(), found, IMAGES, UNSEEN), expected)
    classifier = pipeline(TASK, model=model, image_processor=str(tmp_path), tokenizer=str(tmp_path), device="cpu")
    torch.testing.assert_close(scores(classifier, IMAGES, UNSEEN), expected, rtol=0, atol=1e-6)


def test_input_embeddings_of_transformers_are_kept(tokenizer: CLIPTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make_clip()
    for model in (clip, adapted()):
        assert model.get_input_embeddings().weight.shape == (len(tokenizer), 32)
    monkeypatch.setattr(CLIPModel, "get_input_embeddings", PreTrainedModel.get_input_embeddings)
    with pytest.raises(NotImplementedError):
        clip.get_input_embeddings()
    tuner.patch_models()
    assert clip.get_input_embeddings() is clip.text_model.embeddings.token_embedding
    monkeypatch.setattr(CLIPModel, "get_input_embeddings", lambda self: "transformers' own")
    tuner.patch_models()
    assert clip.get_input_embeddings() == "transformers' own"


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
assert type(pipeline({FIXED!r}, model="user/adapter", device="cpu").model).__name__ == "ANPromptCLIPModel"
"""
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert "MISSING" not in done.stderr
