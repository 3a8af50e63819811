"""ANPromptConfig: round trips, defaults and one clear error per wrong value."""

from __future__ import annotations

import copy
import inspect
import json
import re
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
    Siglip2Config,
    Siglip2Model,
)

from anprompt_peft import ANPromptConfig, TrainingFacts
from anprompt_peft.method.config import TYPES, resolve_layers
from helpers import CLASSES, make_clip, make_config

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
        text_update_rank=draw(st.none() | st.integers(1, 64)),
        vision_lora_rank=draw(st.none() | st.integers(1, 64)),
        text_lora_rank=draw(st.none() | st.integers(1, 64)),
        rephrased_weight=draw(st.floats(0, 1e9)),
        rephrased_texts=draw(st.integers(0, 64)),
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
        inference_logits=draw(st.sampled_from(["auto", "fused", "class", "prototype", "ensemble"])),
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
        assert f"\n    {each.name} (" in (inspect.getdoc(ANPromptConfig) or "")


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
    ({"projection_rank": 0}, "projection_rank=0"),
    ({"text_layers": 2.5}, r"text_layers=2\.5 must be of type int \| list\[int\] \| None"),
    ({"vision_layers": "34"}, r"vision_layers='34' must be of type int"),
    ({"vision_layers": [3, None]}, r"vision_layers=\[3, None\] must be of type int"),
    ({"descriptions": "a sentence"}, r"descriptions='a sentence' must be of type dict"),
    ({"prompt_mixing": 1.5}, "prompt_mixing=1.5 must be a finite number, between 0 and 1"),
    ({"alpha": float("nan")}, "alpha=nan"),
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
    ({"text_update_rank": 33}, "text_update_rank=33 must be an integer, between 1 and 32"),
    ({"text_lora_rank": 33}, "text_lora_rank=33 must be an integer, between 1 and 32"),
    ({"vision_lora_rank": 49}, "vision_lora_rank=49 must be an integer, between 1 and 48"),
    ({"template": "a photo of a " + "very " * 60 + "small {}."}, "tokens, more than the 48 of CLIP's context"),
    ({"descriptions": {name: ["long " * 60] for name in CLASSES}}, "more than the 48"),
    ({"tokenizer_name_or_path": None}, "Pass tokenizer_name_or_path"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "message"), UNFIT, ids=[str(wrong)[:60] for wrong, _ in UNFIT])
def test_values_that_do_not_fit_the_backbone(wrong: dict[str, Any], message: str) -> None:
    clip = make_clip()
    before = {name: type(module) for name, module in clip.named_modules()}
    with pytest.raises(ValueError, match=message):
        get_peft_model(clip, make_config(**wrong))
    assert {name: type(module) for name, module in clip.named_modules()} == before
    assert all(parameter.requires_grad for parameter in clip.parameters())


def test_foreign_tokenizer() -> None:
    with pytest.raises(ValueError, match="does not belong to this CLIP"):
        get_peft_model(make_clip(eos_token_id=5), make_config())


def test_backbones_that_are_not_clip() -> None:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 99}, vision_config={**small, "image_size": 16, "patch_size": 8}
    )
    naflex = Siglip2Model(
        Siglip2Config(
            text_config={**small, "vocab_size": 99}, vision_config={**small, "num_patches": 4, "patch_size": 8}
        )
    )
    for other in (
        CLIPTextModel(config.text_config),
        CLIPVisionModel(config.vision_config),
        naflex,
        torch.nn.Linear(2, 2),
    ):
        with pytest.raises(TypeError, match=f"not {type(other).__name__}"):
            get_peft_model(other, make_config())


def test_an_end_of_text_that_came_too_late_is_refused(clip: CLIPModel) -> None:
    clip.config.text_config.eos_token_id = 2
    with pytest.raises(ValueError, match=r"eos_token_id=2 .* came too late.*from_pretrained\(name, config=config\)"):
        get_peft_model(clip, make_config())


def test_other_attention_is_refused() -> None:
    clip = make_clip()
    clip.text_model.config._attn_implementation = "flex_attention"
    with pytest.raises(NotImplementedError, match=r"'flex_attention' is not supported.*sdpa"):
        get_peft_model(clip, make_config())


def test_an_adapter_has_a_config_of_its_own(clip: CLIPModel, tmp_path: Path) -> None:
    """Completed from the backbone, while the user's object stays as it is. What is saved has no noise to compute."""
    config = make_config(text_layers=None)
    model = get_peft_model(clip, config)
    head: Any = clip.visual_projection
    own = model.peft_config["default"]
    assert head.configs["default"] is own
    assert (own.text_layers, own.latent_dim, own.noise_source) == ([3, 4], 24, ["text"])
    assert (config.text_layers, config.latent_dim, config.noise_source) == (None, None, None)
    assert config.init_noise_prompts is own.init_noise_prompts is True
    model.save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["init_noise_prompts"] is False
    assert own.init_noise_prompts is True


def test_descriptions_are_found_under_composed_names() -> None:
    names, texts = ["Cafe\u0301", "dog"], {"Cafe\u0301": ["a place"], "dog": ["an animal"]}
    config = ANPromptConfig(class_names=names, noise_source="descriptions", descriptions=texts)
    assert config.descriptions == {"Caf\u00e9": ["a place"], "dog": ["an animal"]}


def test_a_config_used_twice_stays_open() -> None:
    config = make_config(text_layers=None, vision_layers=None)
    shallow, deep = (get_peft_model(make_clip(num_hidden_layers=depth), config) for depth in (4, 6))
    assert shallow.peft_config["default"].text_layers == [3, 4]
    assert deep.peft_config["default"].text_layers == [3, 4, 5, 6]
    shallow.add_adapter("b", config)
    shallow.describe_training(TrainingFacts(training_data="Two cats."))
    assert shallow.peft_config["default"].training_facts
    assert not shallow.peft_config["b"].training_facts
    shallow.peft_config["b"].class_names.append("cow")
    assert config.class_names == shallow.peft_config["default"].class_names == CLASSES


def test_a_config_makes_the_same_adapter_again() -> None:
    config = make_config(text_layers=None, noise_seed=3)
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
    config = make_config(**wrong)
    before = copy.deepcopy({**vars(config), "tokenizer": None})
    tokenizer_before = config.tokenizer
    with pytest.raises(ValueError, match=message):
        get_peft_model(clip, config)
    assert {**vars(config), "tokenizer": None, "base_model_name_or_path": None} == before
    assert config.tokenizer is tokenizer_before


def test_defaults_are_the_documented_ones() -> None:
    documented = {
        "template": "a photo of a {}.", "num_virtual_tokens": 5, "num_noise_tokens": 4, "latent_dim": None,
        "text_layers": None, "vision_layers": None, "noise_integration": "concat", "noise_map": "fixed",
        "projection_rank": None, "prototype_rank": None, "prompt_mixing": 1.0, "noise_source": None,
        "descriptions": None, "noise_scale": 0.1, "noise_draws": 4, "noise_seed": 0, "alpha": 0.7,
        "similarity_weight": 3.0, "waloss_weight": 1.0, "inference_logits": "auto", "frozen_share": 0.5,
        "classifier_weight": 2.0, "classifier_strength": None,
        "init_noise_prompts": True, "text_update_rank": 8, "rephrased_weight": 10.0, "rephrased_texts": 16,
        "vision_lora_rank": None, "text_lora_rank": None, "denoiser": None, "denoiser_rank": None,
        "tokenizer_name_or_path": None, "training_facts": None, "class_names": ["cat", "dog"],
    }  # fmt: skip
    config = ANPromptConfig(class_names=["cat", "dog"])
    own = [each.name for each in fields(ANPromptConfig) if each.name in ANPromptConfig.__annotations__]
    assert {name: getattr(config, name) for name in own} == documented


def test_a_denoiser_turns_rephrased_texts_off_unless_they_are_asked_for() -> None:
    def weight(**settings: Any) -> float:
        return ANPromptConfig(class_names=["cat", "dog"], **settings).rephrased_weight

    assert weight() == 10
    assert weight(denoiser="folder") == 0
    assert weight(denoiser="folder", rephrased_weight=2.0) == 2


def test_the_papers_configuration_is_that_of_format_1() -> None:
    paper = ANPromptConfig.paper(class_names=["cat", "dog"], noise_seed=3)
    theirs: dict[str, Any] = {
        "similarity_weight": 0.5,
        "frozen_share": 0.0,
        "text_update_rank": None,
        "rephrased_weight": 0.0,
        "classifier_weight": 0.0,
    }
    expected = ANPromptConfig(class_names=["cat", "dog"], noise_seed=3, **theirs)
    assert paper.to_dict() == expected.to_dict()
    assert ANPromptConfig.paper(class_names=["cat", "dog"], similarity_weight=2.0).similarity_weight == 2


EDGES: list[dict[str, Any]] = [
    {"alpha": 0.0, "prompt_mixing": 0.0, "noise_scale": 0.0, "similarity_weight": 0.0, "waloss_weight": 0.0},
    {"alpha": 1, "prompt_mixing": 1, "noise_scale": 1e9, "noise_seed": 2**32 - 1},
    {"num_virtual_tokens": 0, "noise_draws": 1, "latent_dim": 1, "projection_rank": 1, "prototype_rank": 1},
    {"num_virtual_tokens": 0, "num_noise_tokens": 0, "inference_logits": "class"},
    {"num_virtual_tokens": 1, "num_noise_tokens": 0, "inference_logits": "prototype"},
    {"num_virtual_tokens": 3, "num_noise_tokens": 3, "noise_integration": "add"},
    {"noise_source": ["gaussian", "text"]},
    {"class_names": ("cat", "dog"), "template": ("{}", "a {}")},
]


@pytest.mark.parametrize("edge", EDGES, ids=[str(edge) for edge in EDGES])
def test_values_at_the_edge_are_allowed(edge: dict[str, Any]) -> None:
    config = ANPromptConfig(**{"class_names": ["cat", "dog"], **edge})
    assert config.class_names == ["cat", "dog"]
    for name, value in edge.items():
        assert getattr(config, name) == (list(value) if name == "class_names" else value)


NUMBERS = [name for name, kind in TYPES.items() if kind in (int, float, int | None)]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [True, -1, "1", [1]])
def test_numbers_are_numbers(name: str, value: Any) -> None:
    """Every one has a range, a field that is new included."""
    with pytest.raises(ValueError, match=rf"^{name}={re.escape(repr(value))} must be a(n integer|\s?finite number), "):
        ANPromptConfig(**{"class_names": ["cat", "dog"], name: value})


@pytest.mark.parametrize(
    ("wrong", "allowed"),
    [
        ({"noise_seed": 2**32}, "an integer, between 0 and 4294967295"),
        ({"alpha": 1.01}, "a finite number, between 0 and 1"),
        ({"frozen_share": 1.5}, "a finite number, between 0 and 1"),
        ({"waloss_weight": -0.5}, "a finite number, at least 0"),
        ({"noise_draws": 0}, "an integer, at least 1"),
        ({"latent_dim": 0}, "an integer, at least 1"),
        ({"num_noise_tokens": -1}, "an integer, at least 0"),
        ({"text_update_rank": 0}, "an integer, at least 1"),
        ({"rephrased_texts": -1}, "an integer, at least 0"),
        ({"rephrased_weight": -0.5}, "a finite number, at least 0"),
    ],
)
def test_messages_name_what_is_allowed(wrong: dict[str, Any], allowed: str) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"^{name}={value!r} must be {allowed}\.$"):
        ANPromptConfig(**{"class_names": ["cat", "dog"], **wrong})


def test_sources_default_to_text_and_to_descriptions_where_there_are_any() -> None:
    described: dict[str, Any] = {"cat": "fur", "dog": ["a bark", "a tail"]}

    def sources(**settings: Any) -> list[str]:
        return [*ANPromptConfig(class_names=["cat", "dog"], **settings).noise_sources]

    assert sources() == ["text"]
    assert sources(descriptions=described) == ["text", "descriptions"]
    assert sources(descriptions=described, noise_source="gaussian") == ["gaussian"]
    config = ANPromptConfig(class_names=["cat", "dog"], descriptions=described)
    assert config.descriptions == {"cat": ["fur"], "dog": ["a bark", "a tail"]}


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 9),
        ({"num_virtual_tokens": 0}, 4),
        ({"num_noise_tokens": 0}, 5),
        ({"num_virtual_tokens": 3, "num_noise_tokens": 3, "noise_integration": "add"}, 3),
    ],
)
def test_number_of_prompts(settings: dict[str, Any], count: int) -> None:
    assert ANPromptConfig(class_names=["cat", "dog"], **settings).num_prompts == count


@pytest.mark.parametrize(
    ("layers", "expected"), [(1, [12]), (12, [*range(1, 13)]), ([12], [12]), ((1, 3), [1, 3]), ([7, 2, 5], [2, 5, 7])]
)
def test_layers(layers: Any, expected: list[int]) -> None:
    assert resolve_layers("text_layers", layers, 12) == expected


@pytest.mark.parametrize("layers", [0, 13, True, [0], [13], [1, True], [], [1, 1], [1.5]])
def test_wrong_layers(layers: Any) -> None:
    with pytest.raises(ValueError, match=r"^text_layers=.*between 1 and 12"):
        resolve_layers("text_layers", layers, 12)


def test_ranks_may_be_as_large_as_what_they_apply_to(clip: CLIPModel) -> None:
    """Widths 32 and 48, joint 24; a smaller latent dim is the bound of `projection_rank` alone."""
    for fits in (
        {"projection_rank": 24, "prototype_rank": 24},
        {"latent_dim": 40, "projection_rank": 32, "text_update_rank": 32},
    ):
        make_config(**fits).resolve(clip.config)
    for wrong, bound in (({"latent_dim": 10, "projection_rank": 11}, 10), ({"prototype_rank": 25}, 24)):
        with pytest.raises(ValueError, match=f"between 1 and {bound}"):
            make_config(**wrong).resolve(clip.config)
    config = make_config(latent_dim=10, prototype_rank=24)
    config.resolve(clip.config)
    assert config.latent_dim == 10


def test_the_tokenizer_is_a_name_or_an_object(tokenizer: CLIPTokenizer) -> None:
    named = ANPromptConfig(class_names=["cat", "dog"], tokenizer_name_or_path="some/clip")
    assert (named.tokenizer, named.tokenizer_name_or_path) == (None, "some/clip")
    given_ = copy.copy(tokenizer)
    given_.name_or_path = "other/clip"
    config = ANPromptConfig(class_names=["cat", "dog"], tokenizer_name_or_path=given_)
    assert config.tokenizer is given_
    assert config.tokenizer_name_or_path == "other/clip"
    given_.name_or_path = ""
    for nameless in (given_, object()):
        config = ANPromptConfig(class_names=["cat", "dog"], tokenizer_name_or_path=nameless)
        assert config.tokenizer is nameless
        assert config.tokenizer_name_or_path is None


def test_the_base_model_is_recorded_as_the_plain_clip_it_is(clip: CLIPModel, tmp_path: Path) -> None:
    get_peft_model(clip, make_config()).save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["auto_mapping"] == {"base_model_class": "CLIPModel", "parent_library": "transformers"}
    config = make_config()
    config.save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["auto_mapping"] is None
    assert saved["init_noise_prompts"] is True
