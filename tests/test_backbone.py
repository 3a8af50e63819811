"""What cannot be adapted, and inputs that do not fit: one message each, with the cure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPModel,
    CLIPProcessor,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipTextModel,
    VisionTextDualEncoderModel,
)

from helpers import CLASSES, adapted, make_clip, make_config

TINY = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
VISION = {**TINY, "image_size": 8, "patch_size": 8}
TEXT = {**TINY, "vocab_size": 99}


BERT = {**TEXT, "max_position_embeddings": 16, "project_dim": 8}
BUILT_DIFFERENTLY = r"not {}, whose encoders are built differently\. Choose a checkpoint"


class Own(CLIPModel):
    """A subclass."""


def own() -> CLIPModel:
    clip = make_clip()
    clip.__class__ = Own
    return clip


UNFIT: dict[str, tuple[Callable[[], Any], str]] = {
    "SigLIP 2 of any size": (
        lambda: Siglip2Model(Siglip2Config(text_config=TEXT, vision_config={**TINY, "num_patches": 4})),
        BUILT_DIFFERENTLY.format("Siglip2Model"),
    ),
    "one tower of SigLIP": (
        lambda: SiglipTextModel(SiglipTextConfig(**TEXT)),
        "both towers of transformers' SiglipModel together, not SiglipTextModel alone",
    ),
    "SigLIP without its pooling": (
        lambda: SiglipModel(SiglipConfig(text_config=TEXT, vision_config={**VISION, "vision_use_head": False})),
        r"This SiglipModel has no vision_model\.head: its configuration leaves it out",
    ),
    "Chinese CLIP": (
        lambda: ChineseCLIPModel(ChineseCLIPConfig(text_config=BERT, vision_config=VISION)),
        BUILT_DIFFERENTLY.format("ChineseCLIPModel"),
    ),
    "AltCLIP": (
        lambda: AltCLIPModel(AltCLIPConfig(text_config=BERT, vision_config=VISION)),
        BUILT_DIFFERENTLY.format("AltCLIPModel"),
    ),
    "a layer": (lambda: nn.Linear(2, 2), BUILT_DIFFERENTLY.format("Linear")),
    "a dual encoder": (
        lambda: VisionTextDualEncoderModel(
            vision_model=make_clip().vision_model, text_model=CLIPTextModel(make_clip().config.text_config)
        ),
        "not VisionTextDualEncoderModel",
    ),
    "a module around CLIP": (
        lambda: nn.ModuleDict({"encoder": nn.ModuleDict({"clip": make_clip()})}),
        r"ModuleDict holds a CLIPModel at 'encoder\.clip'\. Adapt that one: get_peft_model",
    ),
    "a model that is adapted already": (
        lambda: adapted(),
        r"has an ANPrompt adapter already\. Add another one with model\.add_adapter",
    ),
    "a subclass": (own, "Own is a subclass of CLIPModel, and adapting replaces the class"),
    "a single tower": (
        lambda: CLIPVisionModel(CLIPVisionConfig(**VISION)),
        "both towers of transformers' CLIPModel together, not CLIPVisionModel alone",
    ),
}


@pytest.mark.parametrize("what", UNFIT)
def test_models_that_cannot_be_adapted_are_named_with_the_cure(what: str) -> None:
    make, message = UNFIT[what]
    with pytest.raises(TypeError, match=message):
        get_peft_model(make(), make_config())


def test_a_base_of_another_size_is_named(tmp_path: Path) -> None:
    adapted().save_pretrained(tmp_path)
    size: Any
    for size, message in (
        ({"num_hidden_layers": 2}, r"text_layers.*between 1 and 2"),
        ({"hidden_size": 64}, r"anprompt_update\.down has the shape \[8, 32\], and \[8, 64\] is needed here"),
    ):
        with pytest.raises(ValueError, match=message):
            PeftModel.from_pretrained(make_clip(**size), tmp_path)


def test_a_processor_is_no_tokenizer(clip: CLIPModel, clip_folder: Path) -> None:
    processor = CLIPProcessor.from_pretrained(clip_folder)
    with pytest.raises(ValueError, match=r"CLIPProcessor is no tokenizer\. Pass its \.tokenizer\."):
        get_peft_model(clip, make_config(processor))
    with pytest.raises(ValueError, match=r"(?i)ClipImageProcessor\w* is no tokenizer"):
        get_peft_model(clip, make_config(processor.image_processor))
    model = adapted(clip, tokenizer_name_or_path=processor.tokenizer)
    with pytest.raises(ValueError, match=r"CLIPProcessor is no tokenizer"):
        model.set_classes(["cat", "dog"], tokenizer=processor)


def test_names_with_equal_tokens_are_refused(clip: CLIPModel) -> None:
    with pytest.raises(ValueError, match=r"\[\['cat', 'Cat'\]\] become the same tokens"):
        get_peft_model(clip, make_config(class_names=["cat", "dog", "Cat"]))
    assert type(clip) is CLIPModel
    model = adapted(clip)
    with pytest.raises(ValueError, match=r"\[\['a  cat', 'a cat'\]\] become the same tokens"):
        model.set_classes(["a  cat", "a cat"])
    assert model.class_names == CLASSES


@pytest.mark.parametrize(
    "labels", [torch.tensor([0.0, 1.0, 2.0]), torch.tensor([[0, 1, 2]]), torch.tensor([0, 1, 2], dtype=torch.int32)]
)
def test_labels_are_class_numbers(pixels: Tensor, labels: Tensor) -> None:
    message = r"labels must be one class number per image, torch\.int64 of shape \[3\], got"
    with pytest.raises(ValueError, match=message):
        adapted()(pixel_values=pixels, labels=labels)
