"""A call is planned on the host and then run: the run is one graph, and a plan holds what its call began with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import CLIPModel, CLIPTokenizer

from anprompt_peft import ANPromptConfig
from anprompt_peft.fast import text
from helpers import CLASSES, LABELS, adapted, logits, make_clip, scatter, trainable

CONFIGURATIONS: dict[str, Callable[..., ANPromptConfig]] = {
    "default": ANPromptConfig,
    "paper": ANPromptConfig.paper,
    "updates": partial(ANPromptConfig, num_virtual_tokens=0, num_noise_tokens=0, vision_lora_rank=2, text_lora_rank=2),
}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def small() -> CLIPModel:
    """With two layers per encoder, for compiling takes a second for each."""
    clip = make_clip()
    for tower in (clip.text_model, clip.vision_model):
        tower.encoder.layers = tower.encoder.layers[:2]
        tower.config.num_hidden_layers = 2
    return clip


def build(configuration: str, clip: CLIPModel, tokenizer: CLIPTokenizer) -> Any:
    config = CONFIGURATIONS[configuration](class_names=CLASSES, tokenizer_name_or_path=tokenizer)
    return scatter(get_peft_model(clip, config)).train()


def step(run: Any, model: Any, pixels: Tensor, **plan: Any) -> list[Tensor]:
    """The loss and all gradients of a step that draws the same texts in each call."""
    torch.manual_seed(3)
    loss = run(pixel_values=pixels, labels=LABELS.repeat(len(pixels) // 3), **plan).loss
    return [loss.detach(), *torch.autograd.grad(loss, list(trainable(model).values()))]


@pytest.mark.parametrize(
    ("configuration", "backend"),
    [
        ("default", "eager"),
        ("paper", "eager"),
        pytest.param("updates", "eager", marks=pytest.mark.slow),
        pytest.param("default", "aot_eager", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_model_is_one_graph(
    configuration: str, backend: str, small: CLIPModel, tokenizer: CLIPTokenizer, pixels: Tensor
) -> None:
    """With the same bits in training with gradients and in evaluation; `fullgraph` raises at any graph break.

    `aot_eager` traces the backward pass as well, and torch 2.15 sums some gradients there in another order.
    """
    model = build(configuration, small, tokenizer)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    bound = 0 if backend == "eager" else 1e-6
    torch.testing.assert_close(step(compiled, model, pixels), step(model, model, pixels), rtol=bound, atol=bound)
    model.eval()
    assert torch.equal(logits(compiled, pixels), logits(model, pixels))
    assert counter.frame_count == 2


def test_a_plan_goes_into_any_module_around_the_model(small: CLIPModel, pixels: Tensor) -> None:
    """There nothing runs before the graph, so that without a plan it is not one, and the message says what to do."""

    class Around(nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: Any) -> Any:
            return self.model(**inputs)

    model = adapted(small)
    expected = logits(model, pixels)
    for inner in (model, model.get_base_model()):
        compiled = torch.compile(Around(inner), fullgraph=True, backend="eager")
        with torch.no_grad():
            assert torch.equal(compiled(pixel_values=pixels, plan=model.plan()).logits, expected)
            torch._dynamo.reset()
            with pytest.raises(torch._dynamo.exc.Unsupported, match=r"give it plan=model\.plan\(labels\)"):
                compiled(pixel_values=pixels)


@pytest.mark.slow
@pytest.mark.parametrize(("packs", "most"), [(True, 6), (False, 4)], ids=["packed texts", "whole texts"])
def test_few_graphs_serve_many_steps(
    packs: bool, most: int, small: CLIPModel, tokenizer: CLIPTokenizer, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten steps with other drawn texts, one with another batch; packed texts differ in groups by length, too."""
    monkeypatch.setattr(text, "packs", lambda _: packs)
    model = build("default", small, tokenizer)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for number in range(10):
        torch.manual_seed(number)
        compiled(pixel_values=pixels.repeat(1 + (number == 5), 1, 1, 1), labels=LABELS.repeat(1 + (number == 5)))
    assert counter.frame_count <= most


def test_a_plan_holds_what_its_call_began_with(small: CLIPModel, pixels: Tensor) -> None:
    """Whatever is chosen before it is run; and it may be run again."""
    model = adapted(small)
    expected = logits(model, pixels)
    with torch.no_grad():
        plan = model.plan()
        model.set_classes(["cow", "red bird"])
        for _ in range(2):
            assert torch.equal(model(pixel_values=pixels, plan=plan).logits, expected)
        assert model(pixel_values=pixels, plan=model.plan()).logits.shape == (3, 2)


def test_a_plan_for_another_call_is_refused(pixels: Tensor) -> None:
    model = adapted()
    with pytest.raises(ValueError, match=r"made for a call without labels\. Make it with model\.plan\(labels\)"):
        model(pixel_values=pixels, labels=LABELS, plan=model.plan())
    plan = model.train().plan(LABELS)
    with pytest.raises(ValueError, match=r"made in training mode\. Make it with .* in the call's mode"):
        model.eval()(pixel_values=pixels, labels=LABELS, plan=plan)


def test_a_copy_of_the_model_plans_its_own_calls(small: CLIPModel, pixels: Tensor) -> None:
    model = adapted(small)
    other = scatter(copy.deepcopy(model), scale=1.0)
    compiled = torch.compile(other, fullgraph=True, backend="eager")
    assert torch.equal(logits(compiled, pixels), logits(other, pixels))
    assert not torch.equal(logits(other, pixels), logits(model, pixels))


def test_plans_of_other_models_are_refused(small: CLIPModel, pixels: Tensor) -> None:
    model = adapted(small)
    plan, other = model.plan(), copy.deepcopy(model)
    model.add_adapter("default 2", plan.config)
    model.set_adapter("default 2")
    model(pixel_values=pixels, plan=plan)
    model.delete_adapter("default")
    for each in (other, model):
        with pytest.raises(ValueError, match="another model, or an adapter 'default' that is gone"):
            each(pixel_values=pixels, plan=plan)
    with pytest.raises(TypeError, match=r"plan must be what model\.plan\(labels\) returned, got 'no'"):
        model(pixel_values=pixels, plan="no")
