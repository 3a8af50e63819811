"""An adapter that holds a text denoiser: all its texts are those of a CLIP that the denoiser is merged into."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer

from anprompt_cli import main as command_line
from anprompt_peft.denoising import Denoising, load_denoised, save_denoiser, train_denoiser
from anprompt_peft.evaluation.peers import make_method
from anprompt_peft.evaluation.peers.equipped import Equipped
from anprompt_peft.fast import Savings
from anprompt_peft.publish.hub import hide_local_names
from anprompt_peft.serve import predict
from helpers import (
    CLASSES,
    LABELS,
    WEIGHTS,
    adapted,
    assert_exact,
    assert_same,
    logits,
    make_clip,
    make_config,
    tiny_tokenizer,
    train_by_command,
    trainable,
)
from peers import BACKBONE, BASE, MIXED, NEW, image_set

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
OTHERS = ["red bird", "dog", "drawing"]
TINY_DENOISER = Path(__file__).parents[1] / "examples" / "embedded" / "tiny_denoiser"
NO_PROMPTS: dict[str, Any] = {"num_virtual_tokens": 0, "num_noise_tokens": 0, "text_update_rank": None}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "frozen first layers": {"text_update_rank": None},
    "attention updates": {"text_update_rank": None, "text_lora_rank": 2, "vision_lora_rank": 2},
    "rephrased": {"rephrased_weight": 2.0, "rephrased_texts": 5},
    "rephrased, frozen first layers": {"rephrased_weight": 2.0, "rephrased_texts": 5, "text_update_rank": None},
    "templates": {"template": ["a photo of a {}.", "the drawing of one {}."], "noise_scale": 0.5},
    "other sources": {
        "noise_source": ["descriptions", "gaussian"],
        "descriptions": {name: [f"{name} again", f"see the {name}"] for name in CLASSES},
    },
    "no prompts": {**NO_PROMPTS, "text_lora_rank": 2},
}


def make_denoiser(folder: Path, seed: int = 1, rank: int = 3) -> Path:
    how = Denoising(rank=rank, steps=4, batch_size=2, learning_rate=0.05, seed=seed)
    save_denoiser(train_denoiser(make_clip(), tiny_tokenizer(), how), folder, how)
    return folder


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser of the tests' CLIP, whose rank has no whole root."""
    return make_denoiser(tmp_path_factory.mktemp("denoiser"))


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def double(denoiser: Path | None = None, **settings: Any) -> Any:
    """An adapter of a float64 CLIP with a denoiser within."""
    given: dict[str, Any] = {} if denoiser is None else {"denoiser": str(denoiser)}
    return adapted(dtype=torch.float64, **given, **settings)


def merged(denoiser: Path, like: Any, **settings: Any) -> Any:
    """An adapter with the same trained weights around a CLIP that the denoiser is merged into."""
    model = adapted(load_denoised(make_clip(dtype=torch.float64), denoiser), **settings)
    with torch.no_grad():
        for name, weight in trainable(model).items():
            weight.copy_(trainable(like)[name])
    return model


def answers(model: Any, pixels: Tensor, labels: Tensor | None = LABELS) -> dict[str, Tensor]:
    """Loss terms, logits of all kinds and the gradients of all trained weights."""
    torch.manual_seed(3)  # of rephrased texts
    model.zero_grad()
    found = model(pixel_values=pixels, labels=labels)
    if found.loss is not None:
        found.loss.backward()
    terms = {f"term {name}": value for name, value in (found.loss_terms or {}).items()}
    gradients = {name: weight.grad for name, weight in trainable(model).items() if weight.grad is not None}
    return {**{name: value.detach() for name, value in found.items() if name != "loss_terms"}, **terms, **gradients}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_exact(found[name], value, name)


# the same as with a CLIP that it is merged into


@pytest.mark.parametrize("savings", [Savings(), Savings(text_chunk=1), Savings.none()], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_all_is_as_with_a_merged_clip(variant: str, savings: Savings, denoiser: Path, pixels: Tensor) -> None:
    settings = VARIANTS[variant]
    model = double(denoiser, **settings)
    expected, plain = merged(denoiser, model, **settings), double(**settings)
    for name in ("noise_prompts", "clean_features", "perturbed_features"):
        ours, theirs = (getattr(each.head, f"anprompt_{name}")["default"] for each in (model, expected))
        assert_exact(ours, theirs, name)
    for each in (model, expected, plain):
        each.set_savings(savings)
    for training in (True, False):
        found = answers(model.train(training), pixels)
        assert len(found) > 15
        assert_equal(found, answers(expected.train(training), pixels))
        assert (found["loss"] - answers(plain.train(training), pixels)["loss"]).abs() > 1e-3


@pytest.mark.parametrize("savings", [Savings(), Savings.none()], ids=str)
def test_other_classes_and_their_frozen_share(savings: Savings, denoiser: Path, pixels: Tensor) -> None:
    model = double(denoiser, text_update_rank=None, rephrased_weight=2.0)
    expected = merged(denoiser, model, text_update_rank=None, rephrased_weight=2.0)
    for each in (model, expected):
        each.set_savings(savings)
        each.set_classes(OTHERS)
    with torch.no_grad():
        shared = model(pixel_values=pixels)
    assert (shared.logits - shared.logits_class).abs().max() > 1e-3
    assert_exact(shared.logits, logits(expected, pixels))
    assert_equal(answers(model.train(), pixels), answers(expected.train(), pixels))


def test_without_anything_trained(denoiser: Path, pixels: Tensor) -> None:
    """Zero-shot CLIP with denoised texts."""
    model, clip = double(denoiser, **NO_PROMPTS), load_denoised(make_clip(dtype=torch.float64), denoiser)
    tokens = tiny_tokenizer()([f"a photo of a {name}." for name in CLASSES], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = clip(pixel_values=pixels, input_ids=tokens["input_ids"])
        pairs = model(pixel_values=pixels, input_ids=tokens["input_ids"])
    assert_exact(logits(model, pixels), expected.logits_per_image)
    assert_exact(pairs.logits_per_image, expected.logits_per_image)
    assert not trainable(model)


def test_the_classifier_starts_from_denoised_texts(denoiser: Path, pixels: Tensor) -> None:
    model = double(denoiser, classifier_weight=0.5)
    expected = merged(denoiser, model, classifier_weight=0.5)
    for each in (model, expected):
        each.fit_classifier([{"pixel_values": pixels, "labels": LABELS}], strength=0.1)
    assert_exact(model.head.anprompt_classifier["default"], expected.head.anprompt_classifier["default"])
    assert_exact(logits(model, pixels), logits(expected, pixels))


def test_checkpointed_layers(denoiser: Path, pixels: Tensor) -> None:
    model = double(denoiser).train()
    expected = answers(model, pixels)
    model.get_base_model().gradient_checkpointing_enable()
    for savings in (Savings(), Savings.none()):
        model.set_savings(savings)
        assert_equal(answers(model, pixels), expected)


def test_cached_texts_follow_the_denoiser(denoiser: Path, pixels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the prompted encoder, its frozen first layers, and the frozen share, also where no values are read."""
    monkeypatch.setattr("anprompt_peft.fast.planning.checksum", lambda tensor: None)
    model = double(denoiser, text_update_rank=None)
    model.set_classes(OTHERS)
    before = answers(model, pixels, None)
    model.head.anprompt_denoiser_up["default"].mul_(2)
    after = answers(model, pixels, None)
    model.get_base_model().anprompt_state.forget("")
    assert_same(after, answers(model, pixels, None))
    for name in ("logits_class", "logits_ensemble"):
        assert (after[name] - before[name]).abs().max() > 1e-3
    with torch.no_grad():
        model.get_base_model().requires_grad_(False)
    texts = model.encode_classes()
    model.head.anprompt_denoiser_down["default"].mul_(2)
    assert (model.encode_classes() - texts).abs().max() > 1e-3


def test_a_compiled_model(denoiser: Path, pixels: Tensor) -> None:
    model = double(denoiser, text_update_rank=None)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    expected = model(pixel_values=pixels, labels=LABELS).loss
    assert_exact(compiled(pixel_values=pixels, labels=LABELS, plan=model.plan(LABELS)).loss, expected)


# what PEFT's users expect


def test_it_is_saved_within(denoiser: Path, tmp_path: Path, pixels: Tensor) -> None:
    copy = shutil.copytree(denoiser, tmp_path / "copy")
    model = double(copy)
    model.save_pretrained(tmp_path / "adapter")
    shutil.rmtree(copy)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is not the one that the adapter.*")
        loaded: Any = PeftModel.from_pretrained(make_clip(dtype=torch.float64), tmp_path / "adapter").eval()
    assert torch.equal(logits(loaded, pixels), logits(model, pixels))
    for each in (loaded, model):
        each.active_config.tokenizer = tiny_tokenizer()
        each.set_classes(OTHERS)
    assert torch.equal(logits(loaded, pixels), logits(model, pixels))
    assert (loaded.active_config.denoiser, loaded.active_config.denoiser_rank) == (str(copy), 3)
    loaded.save_pretrained(tmp_path / "again")
    for name in (WEIGHTS, CONFIG):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()


def test_it_predicts(denoiser: Path, clip_folder: Path) -> None:
    model = adapted(denoiser=str(denoiser))
    image = Image.new("RGB", (16, 16), (200, 10, 10))
    processor = CLIPProcessor.from_pretrained(clip_folder)
    (found,) = predict(model, [image], processor, top_k=3)
    shares = logits(model, processor(images=image, return_tensors="pt")["pixel_values"])[0].softmax(dim=-1)
    assert dict(found.ranking) == pytest.approx(dict(zip(CLASSES, shares.tolist(), strict=True)), abs=1e-5)


def test_adapters_with_other_denoisers_and_none(denoiser: Path, tmp_path: Path, pixels: Tensor) -> None:
    """On one CLIP they answer as each does alone; without them the CLIP is as it was."""
    other = make_denoiser(tmp_path / "other", seed=2, rank=2)
    given: dict[str, dict[str, Any]] = {
        "one": {"denoiser": str(denoiser)},
        "two": {"denoiser": str(other)},
        "none": {},
    }
    alone = {name: adapted(dtype=torch.float64, scattered=False, **each) for name, each in given.items()}
    clip = make_clip(dtype=torch.float64)
    before = {name: weight.clone() for name, weight in clip.state_dict().items()}
    tokens = tiny_tokenizer()(["a photo of a cat."], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        text = clip.get_text_features(input_ids=tokens).pooler_output
    model = adapted(clip, adapter_name="one", scattered=False, **given["one"])
    for name in ("two", "none"):
        model.add_adapter(name, make_config(**given[name]))
    with torch.no_grad():
        for name, each in alone.items():
            own = {key.replace(".default", f".{name}"): value for key, value in each.state_dict().items()}
            for key, value in model.state_dict().items():
                if f".{name}" in key:
                    assert "denoiser" not in key or torch.equal(value, own[key])
                    if "clean" in key or "noise_prompts" in key:
                        assert_exact(value, own[key], key)
                    value.copy_(own[key])
    model.eval()
    for classes in (None, OTHERS):
        for name in (*given, *given):
            model.set_adapter(name)
            model.set_classes(classes)
            alone[name].set_classes(classes)
            assert_exact(logits(model, pixels), logits(alone[name], pixels), name)
    model.set_adapter("two")
    with model.disable_adapter(), torch.no_grad():
        assert torch.equal(clip.get_text_features(input_ids=tokens).pooler_output, text)
        disabled = logits(model, pixels)
    with torch.no_grad():
        assert (clip.get_text_features(input_ids=tokens).pooler_output - text).abs().max() > 1e-3
    with alone["none"].disable_adapter():
        assert_exact(disabled, logits(alone["none"], pixels))
    model.delete_adapter("two")
    model.set_adapter("one")
    assert_exact(logits(model, pixels), logits(alone["one"], pixels))
    plain = model.unload()
    assert type(plain) is CLIPModel
    assert_same(plain.state_dict(), before)
    layers = plain.text_model.encoder.layers
    assert {(type(layer), type(layer.self_attn)) for layer in layers} == {(CLIPEncoderLayer, CLIPAttention)}
    with torch.no_grad():
        assert torch.equal(plain.get_text_features(input_ids=tokens).pooler_output, text)


def test_the_configuration_that_was_given_stays_open(denoiser: Path) -> None:
    config = make_config(denoiser=str(denoiser))
    for _ in range(2):
        model: Any = PeftModel(make_clip(), config)
        assert (config.denoiser_rank, model.active_config.denoiser_rank) == (None, 3)


def test_equipped_gives_the_same(denoiser: Path) -> None:
    shots, images = image_set([0, 1, 2, 2, 1, 0]), image_set([0, 1, 2, 3], MIXED.names, seed=1)
    recipe = {"steps": 2, "learning_rate": 0.01, "augment": False}
    config = {"frozen_share": 0.5, "classifier_weight": 0.7}
    given = {"recipe": recipe, "config": config}
    worn = Equipped("anprompt", given, denoiser=str(denoiser)).fit(BACKBONE, shots, BASE, 1)
    settings = {"recipe": recipe, "config": {**config, "denoiser": str(denoiser)}}
    own = make_method("anprompt", **settings).fit(BACKBONE, shots, BASE, 1)
    plain = make_method("anprompt", **given).fit(BACKBONE, shots, BASE, 1)
    for classes in (BASE, NEW, MIXED):
        assert_exact(own.logits(images, classes), worn.logits(images, classes))
        assert (own.logits(images, classes) - plain.logits(images, classes)).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"denoiser='d': anprompt has a denoiser of its own, .* both would add up"):
        Equipped("anprompt", settings, denoiser="d")
    bare = {"recipe": recipe, "config": {"frozen_share": 0.0, "classifier_weight": 0.0, "denoiser": str(denoiser)}}
    for share, weight in ((0.5, 0.0), (None, 0.5)):
        with pytest.raises(ValueError, match="the frozen CLIP beside it would read texts without it"):
            Equipped("anprompt", bare, share, classifier_weight=weight)


# what is refused


def test_what_is_no_denoiser_of_this_clip(denoiser: Path, tmp_path: Path) -> None:
    adapted().save_pretrained(tmp_path / "adapter")
    clip = make_clip()
    before = {name: type(module) for name, module in clip.named_modules()}
    for given, error, message in (
        (tmp_path / "none", FileNotFoundError, "neither a folder"),
        (tmp_path, ValueError, f"holds no denoiser: there is no {CONFIG}"),
        (tmp_path / "adapter", ValueError, "is not the configuration of a LoRA adapter"),
    ):
        with pytest.raises(error, match=message):
            adapted(clip, denoiser=str(given))
    assert {name: type(module) for name, module in clip.named_modules()} == before
    with pytest.raises(ValueError, match=r"is not a denoiser of this CLIP's text encoder.*layers\.3"):
        adapted(make_clip(num_hidden_layers=3), denoiser=str(denoiser))
    with pytest.raises(ValueError, match=r"denoiser=PosixPath\(.*\) must be of type str"):
        make_config(denoiser=denoiser)
    with pytest.raises(ValueError, match="denoiser_rank=3 belongs to a denoiser, which a new adapter reads"):
        adapted(denoiser_rank=3)
    scaled = shutil.copytree(denoiser, tmp_path / "scaled")
    record = json.loads((scaled / CONFIG).read_text())
    (scaled / CONFIG).write_text(json.dumps({**record, "lora_alpha": "much"}))
    with pytest.raises(ValueError, match="lora_alpha='much' and use_rslora=True must be a finite number"):
        adapted(denoiser=str(scaled))


def test_an_attention_that_was_replaced(denoiser: Path) -> None:
    class Own(CLIPAttention):
        pass

    clip = make_clip()
    clip.text_model.encoder.layers[0].self_attn.__class__ = Own
    with pytest.raises(TypeError, match="denoiser updates the matrices of CLIPAttention, and found Own"):
        adapted(clip, denoiser=str(denoiser))


def _nan(tensors: dict[str, Tensor]) -> None:
    tensors[DOWN][1, 2, 0, 3] = float("nan")


DOWN = f"{PREFIX}visual_projection.anprompt_denoiser_down"
Edit = Callable[[dict[str, Tensor]], Any]
BROKEN: list[tuple[Edit, dict[str, Any], str]] = [
    (lambda each: each.pop(DOWN), {}, "missing: .*anprompt_denoiser_down"),
    (lambda each: each.update({DOWN: each[DOWN][:3].clone()}), {}, r"\[3, 4, 3, 32\], and \[4, 4, 3, 32\] is needed"),
    (_nan, {}, "anprompt_denoiser_down is not finite"),
    (lambda each: None, {"denoiser_rank": 2}, r"\[4, 4, 3, 32\], and \[4, 4, 2, 32\] is needed"),
    (lambda each: None, {"denoiser_rank": 33}, "denoiser_rank=33 must be an integer, between 1 and 32"),
    (lambda each: None, {"denoiser_rank": None}, "without denoiser_rank: the adapter has lost the denoiser"),
    (lambda each: None, {"denoiser_rank": None, "denoiser": None}, "no adapter of its configuration has.*denoiser"),
    (lambda each: None, {"denoiser": 5}, "denoiser=5 in an adapter's configuration must be of type"),
]


def test_files_that_were_changed(denoiser: Path, tmp_path: Path) -> None:
    adapted(denoiser=str(denoiser)).save_pretrained(tmp_path)
    tensors, record = load_file(tmp_path / WEIGHTS), json.loads((tmp_path / CONFIG).read_text())
    for edit, fields, message in BROKEN:
        changed = {name: tensor.clone() for name, tensor in tensors.items()}
        edit(changed)
        save_file(changed, tmp_path / WEIGHTS)
        (tmp_path / CONFIG).write_text(json.dumps({**record, **fields}))
        clip = make_clip()
        with pytest.raises(ValueError, match=message):
            PeftModel.from_pretrained(clip, tmp_path)
        assert type(clip) is CLIPModel


def test_weights_with_another_denoiser_s_rank(denoiser: Path, tmp_path: Path) -> None:
    adapted(denoiser=str(denoiser)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="denoiser_rank=None and 3"):
        adapted().load_adapter(tmp_path, "default")


# what is told of it


def test_pushed_files_name_no_folder(denoiser: Path, tmp_path: Path) -> None:
    model = adapted(denoiser=str(denoiser))
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "a text encoder with a denoiser of rank 3 in it" in card
    assert str(denoiser) not in card
    model.anprompt_state.pushed.add(tmp_path.resolve())
    hide_local_names(model.get_base_model(), tmp_path)
    assert str(denoiser) not in (tmp_path / CONFIG).read_text()
    assert PeftModel.from_pretrained(make_clip(), tmp_path).active_config.denoiser_rank == 3
    adapted().save_pretrained(tmp_path / "without")
    assert "with a denoiser" not in (tmp_path / "without" / "README.md").read_text()


def test_the_command(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(TINY_DENOISER, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    adapter = tmp_path / "adapter"
    assert train_by_command(digits, adapter, "--denoiser", "copy", "--no-augment") == 0
    assert f"denoiser: {copy}" in (adapter / "run.yaml").read_text()
    assert "denoiser_rank" not in (adapter / "run.yaml").read_text()
    shutil.rmtree(copy)
    capsys.readouterr()
    assert command_line(["info", str(adapter)]) == 0
    assert re.search(rf"^text denoiser +rank 16, from {re.escape(str(copy))}$", capsys.readouterr().out, re.MULTILINE)
    assert command_line(["evaluate", str(adapter), str(digits)]) == 0
    (tmp_path / "own.yaml").write_text("adapter: {denoiser_rank: 2}")
    assert train_by_command(digits, tmp_path / "b", "--config", tmp_path / "own.yaml") == 2
    assert "adapter.denoiser_rank cannot be set here: the denoiser has it" in capsys.readouterr().err
