"""ANPromptConfig: round trips, defaults and one clear error per wrong value."""

from __future__ import annotations

import copy
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftConfig, get_peft_model
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModel,
    SiglipConfig,
    SiglipModel,
)

from anprompt_peft import ANPromptConfig
from anprompt_peft.method.config import resolve_layers
from conftest import MakeClip
from helpers import CLASSES, make_config

names = st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=5, unique=True)
templates = st.text().filter(lambda text: "{" not in text and "}" not in text).map(lambda text: text + "{}")
layers = st.none() | st.integers(1, 12) | st.lists(st.integers(1, 12), min_size=1, unique=True)
weights = st.floats(0, 1e6, allow_nan=False)


@st.composite
def configs(draw: st.DrawFn) -> ANPromptConfig:
    class_names, tokens = draw(names), draw(st.integers(1, 8))
    described = st.fixed_dictionaries(
        {name: st.lists(st.text(min_size=1).filter(str.strip), min_size=1) for name in class_names}
    )
    return ANPromptConfig(
        class_names=class_names,
        template=draw(templates | st.lists(templates, min_size=1, max_size=3, unique=True)),
        tokenizer_name_or_path=draw(st.none() | st.text(min_size=1)),
        num_virtual_tokens=tokens,
        num_noise_tokens=tokens,
        latent_dim=draw(st.none() | st.integers(1, 1024)),
        text_layers=draw(layers),
        vision_layers=draw(layers),
        noise_integration=draw(st.sampled_from(["concat", "add"])),
        noise_map=draw(st.sampled_from(["fixed", "learned"])),
        projection_rank=draw(st.none() | st.integers(1, 64)),
        prototype_rank=draw(st.none() | st.integers(1, 64)),
        prompt_mixing=draw(st.floats(0, 1)),
        noise_source=draw(
            st.none() | st.lists(st.sampled_from(["text", "descriptions", "gaussian"]), min_size=1, unique=True)
        ),
        descriptions=draw(described),
        noise_scale=draw(weights),
        noise_draws=draw(st.integers(1, 9)),
        noise_seed=draw(st.integers(0, 2**32 - 1)),
        alpha=draw(st.floats(0, 1)),
        similarity_weight=draw(weights),
        waloss_weight=draw(weights),
        inference_logits=draw(st.sampled_from(["auto", "fused", "class", "prototype"])),
        init_noise_prompts=draw(st.booleans()),
    )


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(config=configs())
def test_round_trip(config: ANPromptConfig, tmp_path: Path) -> None:
    config.save_pretrained(str(tmp_path))
    loaded = PeftConfig.from_pretrained(str(tmp_path))
    assert type(loaded) is ANPromptConfig
    assert loaded == config


def test_every_field_is_documented() -> None:
    own = [each for each in fields(ANPromptConfig) if each.name in ANPromptConfig.__annotations__]
    assert own
    for each in own:
        assert each.metadata["help"]
        assert f"        {each.name} (" in (ANPromptConfig.__doc__ or "")


@pytest.mark.parametrize(
    ("depth", "expected"), [(12, list(range(6, 13))), (24, list(range(11, 25))), (4, [3, 4]), (1, [1])]
)
def test_default_layers(depth: int, expected: list[int]) -> None:
    assert resolve_layers("text_layers", None, depth) == expected


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"class_names": []}, "at least two classes"),
    ({"class_names": ["cat"]}, "at least two classes"),
    ({"class_names": "cat"}, "list of strings"),
    ({"class_names": ["cat", "dog", "cat"]}, r"repeated: \['cat'\]"),
    ({"class_names": ["cat", " "]}, r"empty strings: check position\(s\) \[1\]"),
    ({"template": "a photo."}, r"must contain \{\} exactly once"),
    ({"template": []}, "non-empty list"),
    ({"template": ["{}", "{}"]}, "twice"),
    ({"num_virtual_tokens": -1}, "num_virtual_tokens=-1 must be an integer, at least 0"),
    ({"num_noise_tokens": 2.5}, "num_noise_tokens=2.5"),
    ({"latent_dim": 0}, "latent_dim=0"),
    ({"projection_rank": 0}, "projection_rank=0"),
    ({"noise_draws": 0}, "noise_draws=0"),
    ({"noise_seed": -1}, "noise_seed=-1"),
    ({"prompt_mixing": 1.5}, "prompt_mixing=1.5 must be a finite number, between 0 and 1"),
    ({"alpha": float("nan")}, "alpha=nan"),
    ({"noise_scale": -0.1}, "noise_scale=-0.1"),
    ({"waloss_weight": float("inf")}, "waloss_weight=inf"),
    ({"noise_integration": "sum"}, r"'sum' is not one of \['concat', 'add'\]"),
    ({"noise_integration": "add"}, "num_virtual_tokens=5 and num_noise_tokens=4"),
    ({"noise_map": "none"}, "noise_map='none'"),
    ({"noise_source": "typos"}, "noise_source='typos'"),
    ({"noise_source": []}, "must name one or more"),
    ({"noise_source": "descriptions"}, r"check \['cat', 'dog'\]"),
    ({"descriptions": {"cat": ["fur"]}}, r"check \['dog'\]"),
    ({"descriptions": {"cat": ["fur"], "dog": [" "]}}, r"check \['dog'\]"),
    ({"inference_logits": "best"}, "inference_logits='best'"),
    ({"num_virtual_tokens": 0, "num_noise_tokens": 0, "inference_logits": "prototype"}, "needs prompts"),
    ({"task_type": "FEATURE_EXTRACTION"}, "Leave it None"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[str(wrong) for wrong, _ in WRONG])
def test_wrong_values(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ANPromptConfig(**{"class_names": ["cat", "dog"], **wrong})


UNFIT: list[tuple[dict[str, Any], str]] = [
    ({"text_layers": [3, 5]}, "text_layers=5 must be an integer, between 1 and 4"),
    ({"vision_layers": 6}, "vision_layers=6 must be an integer, between 1 and 5"),
    ({"vision_layers": [2, 2]}, "different layer numbers"),
    ({"text_layers": []}, "at least one"),
    ({"num_noise_tokens": 13}, r"more clusters than there are distinct perturbed features \(12\)"),
    ({"projection_rank": 25}, "projection_rank=25"),
    ({"prototype_rank": 25}, "prototype_rank=25"),
    ({"template": "a photo of a " + "very " * 60 + "small {}."}, "tokens, more than the 48 of CLIP's context"),
    ({"descriptions": {name: ["long " * 60] for name in CLASSES}}, "more than the 48"),
    ({"tokenizer_name_or_path": None}, "Pass tokenizer_name_or_path"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "message"), UNFIT, ids=[str(wrong)[:60] for wrong, _ in UNFIT])
def test_values_that_do_not_fit_the_backbone(
    wrong: dict[str, Any], message: str, make_clip: MakeClip, tokenizer: CLIPTokenizer
) -> None:
    clip = make_clip()
    before = {name: type(module) for name, module in clip.named_modules()}
    with pytest.raises(ValueError, match=message):
        get_peft_model(clip, make_config(tokenizer, **wrong))
    assert {name: type(module) for name, module in clip.named_modules()} == before
    assert all(parameter.requires_grad for parameter in clip.parameters())


def test_foreign_tokenizer(make_clip: MakeClip, tokenizer: CLIPTokenizer) -> None:
    with pytest.raises(ValueError, match="does not belong to this CLIP"):
        get_peft_model(make_clip(eos_token_id=5), make_config(tokenizer))


def test_backbones_that_are_not_clip(clip: torch.nn.Module, make_clip: MakeClip, tokenizer: CLIPTokenizer) -> None:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 99}, vision_config={**small, "image_size": 16, "patch_size": 8}
    )
    siglip = SiglipModel(
        SiglipConfig(
            text_config={**small, "vocab_size": 99}, vision_config={**small, "image_size": 16, "patch_size": 8}
        )
    )
    for other in (
        CLIPTextModel(config.text_config),
        CLIPVisionModel(config.vision_config),
        siglip,
        torch.nn.Linear(2, 2),
    ):
        with pytest.raises(TypeError, match=f"not {type(other).__name__}"):
            get_peft_model(other, make_config(tokenizer))


def test_other_attention_is_refused(make_clip: MakeClip, tokenizer: CLIPTokenizer) -> None:
    clip = make_clip()
    clip.text_model.config._attn_implementation = "flex_attention"
    with pytest.raises(NotImplementedError, match=r"'flex_attention' is not supported.*sdpa"):
        get_peft_model(clip, make_config(tokenizer))


def test_the_users_config_is_the_adapters(clip: CLIPModel, tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    """As in PEFT's own methods: one object, completed from the backbone. What is saved has no noise to compute."""
    config = make_config(tokenizer, text_layers=None)
    model = get_peft_model(clip, config)
    assert model.peft_config["default"] is config
    head: Any = clip.visual_projection
    assert head.configs["default"] is config
    assert config.text_layers == [3, 4]
    assert config.latent_dim == 24
    assert config.init_noise_prompts is True
    model.save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["init_noise_prompts"] is False
    assert config.init_noise_prompts is True


def test_a_config_makes_the_same_adapter_again(make_clip: MakeClip, tokenizer: CLIPTokenizer) -> None:
    config = make_config(tokenizer, text_layers=None, noise_seed=3)
    models = [get_peft_model(make_clip(), config) for _ in range(2)]
    first, second = (dict(model.named_buffers()) for model in models)
    assert first.keys() == second.keys()
    assert any("noise_prompts" in name for name in first)
    for name, buffer in first.items():
        assert torch.equal(buffer, second[name]), name


@pytest.mark.parametrize(("wrong", "message"), UNFIT, ids=[str(wrong)[:60] for wrong, _ in UNFIT])
def test_a_failed_injection_leaves_the_config_as_it_was(
    wrong: dict[str, Any], message: str, clip: torch.nn.Module, tokenizer: CLIPTokenizer
) -> None:
    config = make_config(tokenizer, **wrong)
    before = copy.deepcopy({**vars(config), "tokenizer": None})
    tokenizer_before = config.tokenizer
    with pytest.raises(ValueError, match=message):
        get_peft_model(clip, config)
    assert {**vars(config), "tokenizer": None, "base_model_name_or_path": None} == before
    assert config.tokenizer is tokenizer_before
