"""What cannot be adapted, and inputs that do not fit: one message each, with the cure."""

from __future__ import annotations

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
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderModel,
)

from helpers import CLASSES, adapt, adapted, make_clip, make_config

TINY = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
VISION = {**TINY, "image_size": 8, "patch_size": 8}
TEXT = {**TINY, "vocab_size": 99}


class Wrapper(nn.Module):
    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"clip": clip})


def others() -> dict[str, Any]:
    bert = {**TEXT, "max_position_embeddings": 16, "project_dim": 8}
    return {
        "SiglipModel": SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION)),
        "ChineseCLIPModel": ChineseCLIPModel(ChineseCLIPConfig(text_config=bert, vision_config=VISION)),
        "AltCLIPModel": AltCLIPModel(AltCLIPConfig(text_config=bert, vision_config=VISION)),
        "Linear": nn.Linear(2, 2),
    }


def test_other_architectures_are_named_with_what_to_load() -> None:
    for name, model in others().items():
        with pytest.raises(
            TypeError, match=rf"not {name}, whose encoders are built differently\. Choose a checkpoint"
        ):
            get_peft_model(model, make_config())


def test_a_dual_encoder_is_refused() -> None:
    clip = make_clip()
    text = CLIPTextModel(clip.config.text_config)
    model = VisionTextDualEncoderModel(vision_model=make_clip().vision_model, text_model=text)
    with pytest.raises(TypeError, match="not VisionTextDualEncoderModel"):
        get_peft_model(model, make_config())


def test_a_module_around_clip_says_where_clip_is(clip: CLIPModel) -> None:
    with pytest.raises(
        TypeError, match=r"Wrapper holds a CLIPModel at 'encoder\.clip'\. Adapt that one: get_peft_model"
    ):
        get_peft_model(Wrapper(clip), make_config())


def test_a_model_that_is_adapted_already_takes_another_adapter(clip: CLIPModel) -> None:
    model = get_peft_model(clip, make_config())
    with pytest.raises(TypeError, match=r"has an ANPrompt adapter already\. Add another one with model\.add_adapter"):
        get_peft_model(model, make_config())


def test_a_subclass_is_refused(clip: CLIPModel) -> None:
    class Own(CLIPModel):
        pass

    clip.__class__ = Own
    with pytest.raises(TypeError, match="Own is a subclass of CLIPModel, and adapting replaces the class"):
        get_peft_model(clip, make_config())


def test_a_single_tower_is_refused() -> None:
    from transformers import CLIPVisionModel

    with pytest.raises(TypeError, match="both towers of transformers' CLIPModel together, not CLIPVisionModel alone"):
        get_peft_model(CLIPVisionModel(CLIPVisionConfig(**VISION)), make_config())


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
    with pytest.raises(
        ValueError, match=r"ClipImageProcessor\w* is no tokenizer|CLIPImageProcessor\w* is no tokenizer"
    ):
        get_peft_model(clip, make_config(processor.image_processor))
    model = adapt(clip, processor.tokenizer)
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
    model = adapted()
    with pytest.raises(
        ValueError, match=r"labels must be one class number per image, torch\.int64 of shape \[3\], got"
    ):
        model(pixel_values=pixels, labels=labels)
