"""Every saving, alone and with others, changes no result: loss and gradients against the plain reference."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from anprompt_peft.fast import Savings
from conftest import IMAGE_SIZE, MakeClip
from helpers import LABELS, adapt, assert_exact, trainable
from oracle import reference_adapter, reference_outputs

SWITCHES = [each.name for each in fields(Savings) if each.name != "text_chunk"]
WORDS = ["cat", "dog", "red", "small", "bird", "fish", "drawing"]

names = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
some_layers = st.integers(1, 4) | st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True)
savings = st.builds(Savings, **{name: st.booleans() for name in SWITCHES}, text_chunk=st.none() | st.integers(1, 5))


@st.composite
def adapters(draw: st.DrawFn) -> dict[str, Any]:
    add = draw(st.booleans())
    tokens = draw(st.integers(1, 4))
    return {
        "class_names": draw(st.lists(names, min_size=2, max_size=7, unique=True)),
        "template": draw(
            st.sampled_from(
                ["a photo of a {}.", "{}", "{} texture.", ["a photo of a {}.", "one {}"], ["{}", "a {}", "{}!"]]
            )
        ),
        "noise_integration": "add" if add else "concat",
        "num_virtual_tokens": tokens,
        "num_noise_tokens": tokens if add else draw(st.integers(0, 3)),
        "text_layers": draw(some_layers),
        "vision_layers": draw(some_layers),
        "prompt_mixing": draw(st.sampled_from([1.0, 0.6, 0.0])),
        "projection_rank": draw(st.sampled_from([None, 2])),
    }


def expected_outputs(model: Any, clip: CLIPModel, tokenizer: CLIPTokenizer, pixels: Tensor, labels: Tensor) -> Any:
    config = model.peft_config["default"]
    texts = [template.replace("{}", name) for name in config.class_names for template in config.templates]
    tokens = tokenizer(texts, padding="max_length", return_tensors="pt")
    perturbed = model.visual_projection.anprompt_perturbed_features["default"]
    return reference_outputs(clip, reference_adapter(model), pixels, tokens, labels, perturbed, len(config.templates))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(adapter=adapters(), chosen=savings, images=st.integers(1, 4), attention=st.sampled_from(["sdpa", "eager"]))
def test_against_the_reference(
    adapter: dict[str, Any],
    chosen: Savings,
    images: int,
    attention: str,
    make_clip: MakeClip,
    tokenizer: CLIPTokenizer,
) -> None:
    model = adapt(make_clip("sdpa", torch.float64), tokenizer, **adapter).train()
    model.set_savings(chosen)
    generator = torch.Generator().manual_seed(images)
    pixels = torch.randn(images, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator, dtype=torch.float64)
    labels = torch.randint(len(adapter["class_names"]), (images,), generator=generator)
    expected = expected_outputs(model, make_clip(dtype=torch.float64), tokenizer, pixels, labels)
    weights = trainable(model)
    theirs = torch.autograd.grad(expected["loss"], list(weights.values()), allow_unused=True)
    for _ in range(2):
        output = model(pixel_values=pixels, labels=labels)
        for name in ("logits_class", "logits_prototype", "loss"):
            assert_exact(output[name], expected[name], name)
        ours = torch.autograd.grad(output.loss, list(weights.values()), allow_unused=True)
        for name, mine, other in zip(weights, ours, theirs, strict=True):
            if other is not None:
                assert_exact(mine, other, name)
            else:
                assert mine is None or not mine.any(), name


@pytest.mark.parametrize("switch", [*SWITCHES, "all", "none"])
def test_float32(switch: str, make_clip: MakeClip, tokenizer: CLIPTokenizer, pixels: Tensor) -> None:
    model = adapt(make_clip(), tokenizer)
    chosen = {"all": Savings(), "none": Savings.none()}.get(switch) or replace(Savings.none(), **{switch: True})
    exact = adapt(make_clip(dtype=torch.float64), tokenizer)
    exact.load_state_dict(model.state_dict())
    exact.set_savings(Savings.none())
    model.set_savings(chosen)
    expected, output = exact(pixel_values=pixels.double(), labels=LABELS), model(pixel_values=pixels, labels=LABELS)
    torch.testing.assert_close(output.loss.double(), expected.loss, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(output.loss, list(trainable(model).values()))
    theirs = torch.autograd.grad(expected.loss, list(trainable(exact).values()))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=1e-4, atol=1e-5)
