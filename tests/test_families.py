"""Models of other families than CLIP's: what holds for each, beside `test_method.py` and `test_savings.py`."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModel, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, Siglip2Config, Siglip2Model

from anprompt_cli import main as command_line
from anprompt_peft.classifier import load_classifier, save_classifier
from anprompt_peft.compare import plan_comparison
from anprompt_peft.denoising import Denoising, load_denoised, save_denoiser, train_denoiser
from anprompt_peft.evaluation.grid import read_results
from anprompt_peft.evaluation.peers import METHODS, make_method
from anprompt_peft.evaluation.peers.prompted import encode_images
from anprompt_peft.evaluation.peers.prompts import CoOp
from anprompt_peft.evaluation.peers.training import Recipe
from anprompt_peft.fast import Savings, set_precision
from anprompt_peft.method.class_texts import tokenize
from anprompt_peft.method.families import FAMILIES
from command import call, done, refused
from helpers import (
    CLASSES,
    LABELS,
    adapted,
    assert_exact,
    logits,
    make_config,
    make_model,
    needs_add_adapter,
    scatter,
    tokenizer_of,
    train_by_command,
    trainable,
)
from peers import BASE, MIXED, NEW, backbone_of, image_set, processor_of, quick

OTHERS = [each for each in FAMILIES if each != "clip"]
every_family = pytest.mark.parametrize("family", FAMILIES)
other_families = pytest.mark.parametrize("family", OTHERS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By family, a folder with the tiny model, its tokenizer and an adapter of it, in `base` and `adapter`."""
    folders = {}
    for family in FAMILIES:
        folders[family] = folder = tmp_path_factory.mktemp(family)
        make_model(family).save_pretrained(folder / "base")
        tokenizer_of(family).save_pretrained(folder / "base")
        base = FAMILIES[family].model.from_pretrained(folder / "base")
        settings = {"tokenizer_name_or_path": None, "classifier_weight": 0.0}
        scatter(get_peft_model(base, make_config(**settings))).save_pretrained(folder / "adapter")
    return folders


@every_family
def test_no_text_sees_another(family: str) -> None:
    model = adapted(make_model(family, dtype=torch.float64))
    ids = tokenize([f"a photo of a {name}." for name in CLASSES], tokenizer_of(family), model.config)
    with torch.no_grad():
        together = model.get_text_features(ids).pooler_output
        for row, alone in zip(ids, together, strict=True):
            assert_exact(model.get_text_features(row[None]).pooler_output[0], alone)
        changed = torch.cat([ids[:1], ids[2:], ids[1:2]])
        assert_exact(model.get_text_features(changed).pooler_output[0], together[0])


@every_family
def test_order_of_classes_and_of_the_batch(family: str, pixels: Tensor) -> None:
    model = adapted(make_model(family, dtype=torch.float64))
    expected = logits(model, pixels.double())
    assert_exact(logits(model, pixels.double().flip(0)), expected.flip(0))
    model.set_classes(CLASSES[::-1])
    assert_exact(logits(model, pixels.double()), expected.flip(1))


@every_family
@pytest.mark.parametrize("savings", [Savings(), Savings.none()], ids=["decomposed", "plain"])
def test_padding_is_read_where_the_model_was_trained_so(family: str, savings: Savings) -> None:
    model, tokenizer = adapted(make_model(family, dtype=torch.float64)), tokenizer_of(family)
    model.set_savings(savings)
    before = model.encode_classes()
    with torch.no_grad():
        model.text_model.embeddings.token_embedding.weight[tokenizer.pad_token_id].add_(0.1)
    reads = family == "siglip"
    if family != "clip":  # whose padding is its end-of-text token
        assert torch.equal(model.encode_classes(), before) is not reads
    assert model.classes.input_ids.shape[1] == model.config.text_config.max_position_embeddings or not reads


def test_siglip_reads_lower_case_padded_on_the_right() -> None:
    left, config = copy.deepcopy(tokenizer_of("siglip")), make_model("siglip").config
    left.padding_side = "left"
    expected = tokenize(["a cat"], tokenizer_of("siglip"), config)
    assert torch.equal(tokenize(["A Cat"], left, config), expected)
    assert expected[0, -1] == left.pad_token_id
    model = adapted(make_model("siglip"))
    with pytest.raises(ValueError, match=r"\[\['cat', 'CAT'\]\] become the same tokens"):
        model.set_classes(["cat", "CAT"])
    adapted(make_model("metaclip_2")).set_classes(["cat", "CAT"])


@every_family
def test_a_training_step_lowers_the_loss(family: str, pixels: Tensor) -> None:
    model = adapted(make_model(family), scattered=False, rephrased_weight=1.0).train()
    optimizer, losses = torch.optim.SGD(trainable(model).values(), lr=0.02), []
    for _ in range(4):
        torch.manual_seed(0)  # the same rephrased texts
        output = model(pixel_values=pixels, labels=LABELS)
        losses.append(float(output.loss))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert output.loss_terms["similarity_rephrased"] > 0


@other_families
def test_bfloat16(family: str, pixels: Tensor) -> None:
    model, exact = adapted(make_model(family)), adapted(make_model(family))
    assert set_precision(model, "bf16") == "bf16"
    kept = {
        name for name, weight in model.named_parameters() if weight.dtype == torch.float32 and "anprompt" not in name
    }
    expected = {"logit_scale", "logit_bias"} if family == "siglip" else {"logit_scale"}
    assert {name.rsplit(".", 1)[-1] for name in kept} == expected
    for savings in (Savings(), Savings.none()):
        model.set_savings(savings)
        output = model(pixel_values=pixels, labels=LABELS)
        assert output.logits.dtype == torch.float32
        torch.testing.assert_close(output.logits, exact(pixel_values=pixels).logits, rtol=0.05, atol=0.3)
        output.loss.backward()
    assert all(weight.grad.isfinite().all() for weight in trainable(model).values())


@other_families
@torch.no_grad()
def test_unloading_gives_the_model_back(family: str, pixels: Tensor) -> None:
    model = make_model(family).requires_grad_(False)  # torch's pooling rounds by that
    ids = tokenize(["a cat", "a dog"], tokenizer_of(family), model.config)
    before, kinds = model(ids, pixels).logits_per_image, [type(each) for each in model.modules()]
    own = adapted(model, text_lora_rank=1)
    assert type(model).__name__ == f"ANPrompt{FAMILIES[family].model.__name__}"
    assert type(pickle.loads(pickle.dumps(model))) is type(model)
    assert not torch.equal(model(ids, pixels).logits_per_image, before)
    with own.disable_adapter():
        assert torch.equal(model(ids, pixels).logits_per_image, before)
    assert own.unload() is model
    assert [type(each) for each in model.modules()] == kinds
    assert torch.equal(model(ids, pixels).logits_per_image, before)


@torch.no_grad()
def test_saved_and_loaded_in_a_fresh_process(saved: dict[str, Path], tmp_path: Path, pixels: Tensor) -> None:
    """By `AutoPeftModel`, which finds the base model's class and the tokenizer."""
    save_file({"pixels": pixels}, tmp_path / "in.safetensors")
    program = f"""
import torch, anprompt_peft
from peft import AutoPeftModel
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
torch.set_grad_enabled(False)
pixels, found = load_file({str(tmp_path / "in.safetensors")!r})["pixels"], {{}}
for folder in {[str(saved[family] / "adapter") for family in OTHERS]!r}:
    model = AutoPeftModel.from_pretrained(folder).eval()
    found[f"{{folder}} own"] = model(pixel_values=pixels).logits_fused.contiguous()
    model.set_classes(["red bird", "drawing"])
    found[f"{{folder}} others"] = model(pixel_values=pixels).logits.contiguous()
save_file(found, {str(tmp_path / "out.safetensors")!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    reloaded = load_file(tmp_path / "out.safetensors")
    for family in OTHERS:
        model = AutoPeftModel.from_pretrained(saved[family] / "adapter").eval()
        assert torch.equal(reloaded[f"{saved[family] / 'adapter'} own"], model(pixel_values=pixels).logits_fused)
        model.set_classes(["red bird", "drawing"])
        assert torch.equal(reloaded[f"{saved[family] / 'adapter'} others"], logits(model, pixels))


@needs_add_adapter
@other_families
def test_transformers_own_loading(family: str, saved: dict[str, Path], tmp_path: Path, pixels: Tensor) -> None:
    expected = logits(AutoPeftModel.from_pretrained(saved[family] / "adapter").eval(), pixels)
    model = AutoModel.from_pretrained(saved[family] / "adapter").eval()
    assert torch.equal(logits(model, pixels), expected)
    model.save_pretrained(tmp_path)
    again = make_model(family)
    again.load_adapter(str(tmp_path))
    assert torch.equal(logits(again, pixels), expected)


@other_families
def test_the_card_names_the_classes_of_the_family(family: str, saved: dict[str, Path]) -> None:
    card, own = (saved[family] / "adapter" / "README.md").read_text(), FAMILIES[family]
    model, processor = own.model.__name__, own.processor.__name__
    assert f"from transformers import {', '.join(sorted((model, processor)))}\n" in card
    assert f"processor = {processor}.from_pretrained(base)" in card
    assert f"PeftModel.from_pretrained({model}.from_pretrained(base), adapter)" in card
    assert f"\n- {family}\n" in card
    assert "CLIPModel" not in card.replace("MetaCLIPModel", "")


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_command_line_trains_and_knows_an_adapter_of_siglip(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, output = tmp_path / "base", tmp_path / "adapter"
    make_model("siglip").save_pretrained(base)
    processor_of("siglip").save_pretrained(base)
    assert train_by_command(digits, output, "--model", base) == 0
    assert command_line(["info", str(output)]) == 0
    assert str(base) in capsys.readouterr().out
    assert command_line(["predict", str(output), str(next(digits.rglob("*.png")))]) == 0


@pytest.mark.parametrize("made_for", FAMILIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_of_another_family_changes_nothing(family: str, made_for: str, saved: dict[str, Path]) -> None:
    if family == made_for:
        return
    names = FAMILIES[made_for].model.__name__, FAMILIES[family].model.__name__
    message = (
        f"made for transformers' {names[0]} and does not fit a {names[1]}. Load the model that it was trained with"
    )
    model = make_model(family)
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(model, saved[made_for] / "adapter")
    assert type(model) is FAMILIES[family].model
    assert not [name for name, _ in model.named_modules() if "anprompt" in name or "base_layer" in name]
    own = adapted(model)
    with pytest.raises(ValueError, match=message):
        own.load_adapter(saved[made_for] / "adapter", "second")
    assert list(own.peft_config) == ["default"]


def test_naflex_is_refused_by_name(tmp_path: Path) -> None:
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 9, "projection_size": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    model = Siglip2Model(Siglip2Config(text_config=text, vision_config=small))
    message = r"not Siglip2Model.*fixed resolution, as google/siglip2-base-patch16-224, a SiglipModel: NaFlex"
    with pytest.raises(TypeError, match=message):
        get_peft_model(model, make_config())
    model.save_pretrained(tmp_path / "base")
    assert "NaFlex" in refused("denoise", tmp_path / "base", "--output", tmp_path / "out")


@every_family
@pytest.mark.parametrize("other", FAMILIES)
def test_the_tokenizer_of_another_family_is_refused(family: str, other: str) -> None:
    if family == other:
        return
    model = make_model(family)
    with pytest.raises(ValueError, match=r"The tokenizer .* does not belong to this CLIP \(vocabulary of"):
        get_peft_model(model, make_config(tokenizer_of(other)))
    assert type(model) is FAMILIES[family].model


METHOD_OF_CLASS = {preset.method: name for name, preset in METHODS.items()}


@other_families
@pytest.mark.parametrize("name", METHOD_OF_CLASS.values())
def test_every_method_learns_or_says_why_not(family: str, name: str) -> None:
    method, backbone, shots = quick(name), backbone_of(family), image_set([0, 1, 2, 2, 1, 0])
    before = {key: value.clone() for key, value in backbone.clip.state_dict().items()}
    if (name, family) == ("prolip", "siglip"):
        with pytest.raises(ValueError, match=r"ProLIP trains the linear map .* SiglipModel has none"):
            method.fit(backbone, shots, BASE, 1)
        return
    fitted = method.fit(backbone, shots, BASE, 1)
    assert all(torch.equal(value, before[key]) for key, value in backbone.clip.state_dict().items())
    for classes in (NEW, MIXED, BASE):
        found = fitted.logits(shots, classes)
        assert found.shape == (6, len(classes.names))
        assert bool(found.isfinite().all())
    if METHODS[name].settings.get("recipe"):
        assert not torch.equal(found, make_method("zero-shot").fit(backbone, shots, BASE, 1).logits(shots, BASE))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By family, a folder with the tiny model and its whole processor."""
    folders = {family: tmp_path_factory.mktemp(family) for family in OTHERS}
    for family, folder in folders.items():
        make_model(family).save_pretrained(folder)
        processor_of(family).save_pretrained(folder)
    return folders


@other_families
@pytest.mark.parametrize("name", ["tip-adapter-f", "lora"])
def test_a_saved_classifier_answers_alike(family: str, name: str, bases: dict[str, Path], tmp_path: Path) -> None:
    backbone, shots = backbone_of(family), image_set([0, 1, 2, 2, 1, 0])
    fitted = quick(name).fit(backbone, shots, BASE, 1)
    save_classifier(fitted, tmp_path, BASE.names, BASE.templates, str(bases[family]))
    loaded = load_classifier(tmp_path)
    assert type(loaded.clip) is type(loaded.frozen.clip) is FAMILIES[family].model
    expected = fitted.logits(shots, BASE)
    torch.testing.assert_close(loaded(shots.pixels()).logits, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(loaded.frozen.zero_shot_logits(shots, BASE), expected)


def test_methods_are_compared_where_the_model_has_a_place_for_them(
    bases: dict[str, Path], digits: Path, tmp_path: Path
) -> None:
    for family in OTHERS:
        photos = {"train": image_set([0, 0, 1, 1, 2, 2]).dataset}
        plan = plan_comparison(photos, str(bases[family]), tmp_path / "plan", shots=1)
        assert ("prolip" in plan.cells) is (family != "siglip")
    common = ("compare", digits, "--output", tmp_path / "out", "--model", bases["siglip"], "--draws", 2, "--shots", 1)
    assert "ProLIP trains the linear map" in refused(*common, "--method", "prolip")
    assert not (tmp_path / "out").exists()
    done(*common, "--method", "zero-shot", "--save", "zero-shot")
    assert "%" in done("predict", tmp_path / "out" / "zero-shot", next(digits.rglob("*.png"))).out


@other_families
def test_the_benchmark_of_every_kind_of_prompts(
    family: str, bases: dict[str, Path], digits: Path, tmp_path: Path
) -> None:
    recipe = "{recipe: {epochs: 1, batch_size: 20}}"
    methods = ("coop", "cocoop", "vpt", "ivlp", "maple", "promptsrc", "anprompt", "prolip")
    (tmp_path / "grid.yaml").write_text(
        f"data: {digits}\nmodel: {bases[family]}\nseeds: [1]\nshots: 1\nmethods:\n  zero-shot:\n"
        + "".join(f"  {name}: {recipe}\n" for name in methods)
    )
    run = ("benchmark", "--config", tmp_path / "grid.yaml", "--output", tmp_path / "grid")
    answer = call(*run)
    assert answer.code == (1 if family == "siglip" else 0), answer.err
    assert ("SiglipModel has none" in answer.err) is (family == "siglip")
    records = [each["configuration"]["method"]["name"] for each in read_results(tmp_path / "grid")]
    assert set(records) == {"zero-shot", *methods} - ({"prolip"} if family == "siglip" else set())


@other_families
@pytest.mark.parametrize("words", ["a photo of a", "A photo of a"])
def test_a_context_that_has_not_moved_is_the_model(family: str, words: str) -> None:
    """Texts are read, and images pooled, as the model does it."""
    backbone, shots = backbone_of(family, torch.float64), image_set([0, 1, 2])
    fitted = CoOp(Recipe(learning_rate=0, epochs=1), words=words).fit(backbone, shots, BASE, 1)
    expected = backbone.zero_shot_logits(shots, replace(BASE, templates=(f"{words} {{}}.",)))
    assert_exact(fitted.logits(shots, BASE), expected)
    assert_exact(encode_images(backbone.clip, shots.pixels().double()), backbone.image_features(shots))


@other_families
def test_compiled_it_is_one_graph(family: str, pixels: Tensor) -> None:
    torch._dynamo.reset()
    model = adapted(make_model(family)).train()
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    ours, expected = (each(pixel_values=pixels, labels=LABELS).loss for each in (compiled, model))
    assert torch.equal(ours, expected)
    gradients = [torch.autograd.grad(loss, list(trainable(model).values())) for loss in (ours, expected)]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@other_families
def test_a_denoiser_within_is_one_that_is_merged(family: str, tmp_path: Path, pixels: Tensor) -> None:
    how, losses = Denoising(steps=30, batch_size=8, rank=8, learning_rate=0.01), list[float]()
    made = train_denoiser(
        make_model(family), tokenizer_of(family), how, lambda step, noisy, clean: losses.append(noisy)
    )
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    save_denoiser(made, tmp_path, how)
    card, name = (tmp_path / "README.md").read_text(), FAMILIES[family].model.__name__
    assert f"({name}.from_pretrained(base), adapter)" in card
    assert f"\n- {family}\n" in card
    clean = load_denoised(make_model(family, dtype=torch.float64), tmp_path)
    assert type(clean) is FAMILIES[family].model
    expected = adapted(clean)
    for savings in (Savings(), Savings.none()):
        model = adapted(make_model(family, dtype=torch.float64), denoiser=str(tmp_path))
        model.set_savings(savings)
        model.load_state_dict(trainable(expected), strict=False)
        assert_exact(logits(model, pixels.double()), logits(expected, pixels.double()))
    for other in (each for each in FAMILIES if each != family):
        message = f"is a denoiser of a {name}, and this is a {FAMILIES[other].model.__name__}"
        with pytest.raises(ValueError, match=message):
            load_denoised(make_model(other), tmp_path)


@every_family
def test_a_step_takes_less_than_the_models_own_forward(family: str, pixels: Tensor) -> None:
    """In operations on images and texts of training; the rest is what prompts before the last layers ask for."""
    counts = []
    for savings in (Savings(), Savings.none()):
        model = adapted(make_model(family), text_update_rank=None).train()
        model.set_savings(savings)
        model(pixel_values=pixels, labels=LABELS)
        with FlopCounterMode(display=False) as counted:
            model(pixel_values=pixels, labels=LABELS).loss.backward()
        counts.append(counted.get_total_flops())
    assert counts[0] < (0.75 if family == "siglip" else 0.6) * counts[1]
