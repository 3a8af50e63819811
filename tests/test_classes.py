"""Classes at inference: asking for others, cached text features, the choice of logits, CLIPModel's own form."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from anprompt_peft.method.features import evaluating
from helpers import CLASSES, adapted, count_calls, logits, make_config, scatter, trainable

NEW = ["red bird", "cow"]
LABELS = torch.tensor([0, 2, 1])


def expected_text(model: Any, tokenizer: CLIPTokenizer, names: list[str], template: str) -> Tensor:
    """Prompted, normalised features of class texts, through CLIPModel's own method."""
    tokens = tokenizer([template.format(name) for name in names], padding=True, return_tensors="pt")
    with torch.no_grad():
        features = model.get_text_features(**tokens).pooler_output
    return features / features.norm(dim=-1, keepdim=True)


def test_decomposed_names_are_those_trained_on(pixels: Tensor) -> None:
    model = adapted(class_names=["Cafe\u0301", "dog", "cat"])
    assert model.class_names == ["Caf\u00e9", "dog", "cat"]
    trained = logits(model, pixels)
    for accent in ("e\u0301", "\u00e9"):
        model.set_classes([f"Caf{accent}", "dog", "cat"])
        assert torch.allclose(logits(model, pixels), trained)


def test_set_classes(tokenizer: CLIPTokenizer, pixels: Tensor) -> None:
    model = adapted()
    trained = logits(model, pixels)
    model.set_classes(NEW)
    assert model.class_names == NEW
    torch.testing.assert_close(model.encode_classes(), expected_text(model, tokenizer, NEW, "a photo of a {}."))
    assert logits(model, pixels).shape == (3, 2)
    model.set_classes(NEW, template="{} texture.")
    torch.testing.assert_close(model.encode_classes(), expected_text(model, tokenizer, NEW, "{} texture."))
    model.set_classes(None)
    assert model.class_names == CLASSES
    assert torch.equal(logits(model, pixels), trained)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(4)))
def test_permuted_classes_permute_the_logits(order: list[int], pixels: Tensor) -> None:
    """And leave the loss, perturbed targets of the asked classes included."""
    names = [*CLASSES, "cow"]
    model = adapted(dtype=torch.float64)
    model.set_classes(names)
    expected = model(pixel_values=pixels.double(), labels=LABELS)
    model.set_classes([names[index] for index in order])
    labels = torch.tensor([order.index(label) for label in LABELS])
    output = model(pixel_values=pixels.double(), labels=labels)
    for name in ("logits", "logits_class", "logits_prototype", "logits_fused"):
        torch.testing.assert_close(output[name], expected[name][:, order], rtol=0, atol=1e-10)
    for name, term in expected.loss_terms.items():
        torch.testing.assert_close(output.loss_terms[name], term, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "at least two classes"),
        ((["cat", "cat"],), "repeated"),
        ((NEW, "no place"), "exactly once"),
        ((["cat", "dog " * 60],), "more than the 48"),
    ],
)
def test_wrong_classes_change_nothing(arguments: Any, message: str) -> None:
    model = adapted()
    with pytest.raises(ValueError, match=message):
        model.set_classes(*arguments)
    assert model.class_names == CLASSES


@pytest.mark.parametrize(
    ("choice", "names", "used"),
    [
        ("auto", None, "fused"),
        ("auto", ["dog", "cat"], "fused"),
        ("auto", ["Dog ", "small  FISH"], "fused"),
        ("auto", ["dog", "cow"], "ensemble"),
        ("auto", NEW, "ensemble"),
        ("ensemble", None, "ensemble"),
        ("fused", NEW, "fused"),
        ("class", None, "class"),
        ("prototype", NEW, "prototype"),
    ],
)
def test_inference_logits(choice: str, names: list[str] | None, used: str, pixels: Tensor) -> None:
    model = adapted(inference_logits=choice)
    model.set_classes(names)
    with torch.no_grad():
        output = model(pixel_values=pixels)
        assert output.logits is output[f"logits_{used}"]
        assert not torch.equal(output.logits_class, output.logits_prototype)
        assert model.train()(pixel_values=pixels).logits is not None
        trained = model(pixel_values=pixels)
    assert trained.logits is trained.logits_fused


def test_weights_written_through_data_count_at_once(pixels: Tensor) -> None:
    """As torch_ema and diffusers' EMAModel write a moving average; also where the sum of a tensor stays."""
    model = adapted()
    for change in (lambda data: data + 0.1, lambda data: data.flip(0)):
        before = logits(model, pixels)
        for parameter in trainable(model).values():
            parameter.data.copy_(change(parameter.data))
        after = logits(model, pixels)
        model.set_classes(["cow", "red bird"])
        model.set_classes(None)
        copied = copy.deepcopy(model)
        copied.anprompt_state._memos.clear()
        assert torch.equal(after, logits(copied, pixels))
        assert not torch.allclose(after, before)


def test_all_trained_weights_written_through_data_count(pixels: Tensor) -> None:
    """Those of CLIP that are trained along, before and behind the first prompts, and an adapter's noise prompts."""
    model = adapted(text_update_rank=None)
    text, head = model.get_base_model().text_model, model.get_base_model().head
    layers = text.encoder.layers
    for weight in (
        layers[0].mlp.fc1.weight.requires_grad_(),
        text.final_layer_norm.weight.requires_grad_(),
        head.anprompt_noise_prompts["default"],
    ):
        before = logits(model, pixels)
        weight.data.copy_(1.5 * weight.data)
        after = logits(model, pixels)
        assert not torch.allclose(after, before)
        model.anprompt_state._memos.clear()
        assert torch.equal(after, logits(model, pixels))


def test_hooks_on_the_text_encoder_count(pixels: Tensor) -> None:
    """As interpretability scripts set them between two calls, here also on what the frozen texts pass."""
    model = adapted()
    model.set_classes(["cow", "red bird"])
    before = logits(model, pixels)
    layer = model.get_base_model().text_model.encoder.layers[-1].get_base_layer()
    hook = layer.mlp.fc1.register_forward_hook(lambda module, args, output: -output)
    hooked = logits(model, pixels)
    assert not torch.allclose(hooked, before)
    model.anprompt_state._memos.clear()
    assert torch.equal(logits(model, pixels), hooked)
    hook.remove()
    assert torch.equal(logits(model, pixels), before)


def test_kept_results_end_with_eval(pixels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where weights cannot be read without waiting, as on a GPU, and for frozen weights."""
    monkeypatch.setattr("anprompt_peft.fast.planning.checksum", lambda tensor: None)
    model = adapted()
    rows = count_calls(model.get_base_model().text_projection)
    before = logits(model, pixels)
    rows.clear()
    assert torch.equal(logits(model, pixels), before)
    with evaluating(model):
        assert torch.equal(logits(model, pixels), before)
    assert not rows
    model.get_base_model().text_projection.weight.data.mul_(-1)
    logits(model.eval(), pixels)
    assert rows


def test_losses_for_other_classes(pixels: Tensor) -> None:
    """Asked classes get clean and perturbed features by the same pipeline as trained ones."""
    model = adapted(num_noise_tokens=0)
    asked = [*NEW, "dog"]
    model.set_classes(asked)
    terms = model(pixel_values=pixels, labels=LABELS).loss_terms
    other = adapted(num_noise_tokens=0, class_names=asked)
    same = other(pixel_values=pixels, labels=LABELS).loss_terms
    assert set(terms) == set(same)
    for name, term in terms.items():
        torch.testing.assert_close(term, same[name])


def test_images_and_labels_as_other_classifiers_take_them(pixels: Tensor) -> None:
    """Images in the first place, labels as a list, and -100 for images without one."""
    model = adapted()
    expected = model(pixel_values=pixels, labels=LABELS)
    assert torch.equal(model(pixels).logits, expected.logits)
    assert torch.equal(model(pixels, labels=LABELS.tolist()).loss, expected.loss)
    some = model(pixel_values=pixels, labels=[0, -100, 1])
    cross_entropy = F.cross_entropy(expected.logits_class[[0, 2]], LABELS[[0, 2]])
    torch.testing.assert_close(some.loss_terms["cross_entropy_class"], cross_entropy.detach())


@pytest.mark.parametrize("name", ["label", "lables", "output_attentions", "output_hidden_states", "return_loss"])
def test_arguments_without_effect_are_refused(name: str, pixels: Tensor) -> None:
    with pytest.raises(TypeError, match=f"{name} would have no effect on images without input_ids"):
        adapted()(pixel_values=pixels, **{name: True})


@pytest.mark.parametrize("labels", [[0.5, 0.25, 0.25], [[1.0, 0, 0]] * 3, "abc", ["cat", "dog", "cat"], [0, 1]])
def test_labels_that_are_no_class_numbers(labels: Any, pixels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"labels must be one class number per image, .*got"):
        adapted()(pixel_values=pixels, labels=labels)


def test_labels_are_checked(tokenizer: CLIPTokenizer, pixels: Tensor) -> None:
    model = adapted()
    for wrong in ([0, 1, 3], [-1, 0, 1]):
        with pytest.raises(ValueError, match="between 0 and 2 for 3 classes"):
            model(pixel_values=pixels, labels=torch.tensor(wrong))
    tokens = tokenizer(["a cat"], return_tensors="pt")
    with pytest.raises(ValueError, match="call the model without input_ids"):
        model(**tokens, pixel_values=pixels, labels=LABELS)
    with pytest.raises(ValueError, match="Give pixel_values"):
        model(labels=LABELS)


def test_tuple_output(pixels: Tensor) -> None:
    model = adapted()
    output = model(pixel_values=pixels, labels=LABELS)
    assert torch.equal(model(pixel_values=pixels, labels=LABELS, return_dict=False)[0], output.loss)


def count_text_passes(model: Any) -> Callable[[], int]:
    """Counts runs of the text encoder."""
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    model.text_projection.register_forward_hook(count)
    return lambda: passes


@torch.no_grad()
def test_class_features_are_kept_at_inference(pixels: Tensor) -> None:
    model = adapted()
    passes = count_text_passes(model)
    first = logits(model, pixels)
    assert passes() == 1
    assert torch.equal(logits(model, pixels), first)
    model.encode_classes()
    assert passes() == 1
    with torch.enable_grad():
        model.encode_classes()
        model.encode_classes()
    assert passes() == 3
    for weight in trainable(model).values():
        weight.requires_grad_(False)
    with torch.enable_grad():
        model.encode_classes()
    assert passes() == 3


def train_step(model: Any, fused: bool) -> None:
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.1, fused=fused)
    with torch.enable_grad():
        model.encode_classes().sum().backward()
    model.encode_classes()
    optimizer.step()


CHANGES: dict[str, Callable[[Any, Path], Any]] = {
    "train step": lambda model, folder: train_step(model, fused=False),
    "train step, fused": lambda model, folder: train_step(model, fused=True),
    "set_classes": lambda model, folder: model.set_classes(["cat", "dog", "cow"]),
    "set_adapter": lambda model, folder: model.set_adapter("two"),
    "dtype": lambda model, folder: model.to(torch.bfloat16),
    "load": lambda model, folder: model.load_adapter(folder, "default"),
    "load_state_dict": lambda model, folder: model.load_state_dict(
        {name: tensor + 0.1 if "tokens" in name else tensor for name, tensor in model.state_dict().items()}
    ),
    "disable": lambda model, folder: model.base_model.disable_adapter_layers(),
    "delete": lambda model, folder: model.delete_adapter("default"),
    "base weights": lambda model, folder: model.text_projection.weight.mul_(2).add_(0.1),
    "noise prompts": lambda model, folder: model.visual_projection.anprompt_noise_prompts["default"].add_(0.5),
    "class ids": lambda model, folder: model.visual_projection.anprompt_class_ids["default"][0].copy_(
        model.visual_projection.anprompt_class_ids["default"][1]
    ),
}


@pytest.mark.filterwarnings("ignore:Adapter default was active")
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_kept_features_are_dropped_on_change(change: str, tmp_path: Path) -> None:
    scatter(adapted(), seed=9).save_pretrained(tmp_path)
    model = adapted()
    model.add_adapter("two", make_config(num_noise_tokens=1))
    before = model.encode_classes()
    CHANGES[change](model, tmp_path)
    after = model.encode_classes()
    assert not torch.equal(after, before)
    fresh = model.text_embeds(model.classes)
    assert torch.equal(after, fresh)


@torch.no_grad()
def test_kept_features_follow_autocast() -> None:
    model = adapted()
    before = model.encode_classes()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.equal(model.encode_classes(), before)
    assert torch.equal(model.encode_classes(), before)


def test_features_kept_in_inference_mode_do_not_reach_training(pixels: Tensor) -> None:
    model = adapted()
    with torch.inference_mode():
        model(pixel_values=pixels)
    model(pixel_values=pixels, labels=LABELS).loss.backward()


def test_asked_classes_survive_switching_adapters(pixels: Tensor) -> None:
    model = adapted()
    model.add_adapter("two", make_config(class_names=NEW))
    assert model.class_names == CLASSES
    model.set_adapter("two")
    assert model.class_names == NEW
    model.set_classes(["cow", "cat"])
    model.set_adapter("default")
    assert model.class_names == ["cow", "cat"]
    assert isinstance(model, PeftModel)
    assert logits(model, pixels).shape == (3, 2)
