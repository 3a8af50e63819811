"""What holds for any images, classes and weights. Permuted classes are in test_classes.py and test_losses.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import get_peft_model

from conftest import IMAGE_SIZE
from helpers import CLASSES, adapted, assert_exact, make_clip, make_config, scatter

COUNT = 5
KINDS = ("logits_class", "logits_prototype", "logits_fused", "logits_ensemble")

several = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def model() -> Any:
    return adapted(dtype=torch.float64, inference_logits="ensemble")


def images(seed: int, count: int = COUNT) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator, dtype=torch.float64)


@several
@given(order=st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=2 * COUNT), seed=st.integers(0, 99))
def test_images_answer_alike_in_any_batch(order: list[int], seed: int, model: Any) -> None:
    """In any order, repeated, and beside any others."""
    pixels = images(seed)
    with torch.no_grad():
        expected, found = model(pixel_values=pixels), model(pixel_values=pixels[order])
    assert not torch.allclose(expected.logits[0], expected.logits[1], atol=1e-4)
    for kind in KINDS:
        assert_exact(found[kind], expected[kind][order], kind)


@several
@given(words=st.integers(1, 8), place=st.integers(0, len(CLASSES)))
def test_padding_by_a_longer_class_changes_no_other(words: int, place: int, model: Any) -> None:
    """A long name lengthens the rows of all texts; the logits of the others stay."""
    pixels, names = images(0), [*CLASSES[:place], "bird " * words + "cow", *CLASSES[place:]]
    answers = []
    with torch.no_grad():
        for asked in (CLASSES, names):
            model.set_classes(asked)
            answers.append(model(pixel_values=pixels))
    kept = [at for at in range(len(names)) if at != place]
    for kind in KINDS:
        assert_exact(answers[1][kind][:, kept], answers[0][kind], kind)


@settings(several, max_examples=6)
@given(
    seed=st.integers(0, 99),
    parts=st.sampled_from(
        [
            {},
            {"projection_rank": 2, "text_update_rank": 3, "prototype_rank": 2},
            {"latent_dim": 8, "noise_map": "learned"},
            {"vision_lora_rank": 2, "text_lora_rank": 3},
        ]
    ),
    name=st.sampled_from(["two", "other adapter", "default2"]),
)
def test_twins_answer_alike(seed: int, parts: dict[str, Any], name: str) -> None:
    """Adapters with the same weights under two names in one model."""
    pixels, choices = images(seed), {**parts, "inference_logits": "ensemble"}
    model: Any = get_peft_model(make_clip(dtype=torch.float64), make_config(**choices)).eval()
    scatter(model, seed=seed)
    model.add_adapter(name, make_config(**choices))
    values = dict([*model.named_parameters(), *model.named_buffers()])
    with torch.no_grad():
        for own, tensor in values.items():
            if own.endswith(f".{name}") or f".{name}." in own:
                tensor.copy_(values[own.replace(f".{name}", ".default")])
    found = {}
    for each in ("default", name):
        model.set_adapter(each)
        with torch.no_grad():
            found[each] = model(pixel_values=pixels)
    for kind in KINDS:
        assert torch.equal(found[name][kind], found["default"][kind]), kind
