"""Methods on frozen features, LoRA and ANPrompt: logits, losses and gradients in float64 against plain statements."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from anprompt_peft import ANPromptConfig
from anprompt_peft.evaluation.backbone import Backbone
from anprompt_peft.evaluation.peers import lora, make_method, prolip, seeded, tip_adapter
from anprompt_peft.evaluation.task import ClassTexts, ImageSet
from anprompt_peft.training import ANPromptTrainer, ANPromptTrainingArguments
from helpers import assert_exact, make_clip, scatter
from peers import BASE, MIXED, NEW, Spy, image_set, images_of, make_backbone, texts_of, unit

LABELS = [0, 1, 2, 2, 1, 0, 1]


@pytest.fixture
def backbone(clip_folder: Path) -> Backbone:
    return make_backbone(make_clip, clip_folder)


@pytest.fixture
def shots(backbone: Backbone) -> ImageSet:
    return image_set(backbone, LABELS, BASE.names)


@pytest.fixture
def images(backbone: Backbone) -> ImageSet:
    return image_set(backbone, [0, 1, 2, 3, 3], MIXED.names, seed=1)


def zero_shot(backbone: Backbone, images: ImageSet, classes: ClassTexts, templates: tuple[str, ...] = ()) -> Tensor:
    """CLIP's logits, class by class: the mean of normalised text features, normalised."""
    clip = backbone.clip
    rows = []
    for name in classes.written:
        texts = [template.replace("{}", name) for template in templates or classes.templates]
        rows.append(unit(texts_of(clip, backbone, texts).mean(dim=0)))
    return clip.logit_scale.exp() * images_of(clip, images) @ torch.stack(rows).T


def test_zero_shot_is_clip_with_the_mean_of_all_templates(
    backbone: Backbone, shots: ImageSet, images: ImageSet
) -> None:
    templates = ("a photo of a {}.", "the drawing of one {}.")
    classes = replace(MIXED, templates=templates, written=("red bir", "smal fish", "cat", "drawing"))
    logits = make_method("zero-shot").fit(backbone, shots, BASE, 0).logits(images, classes)
    assert_exact(logits, zero_shot(backbone, images, classes))
    more = ("an image of a {}.", "a photo of a {}.")
    ensemble = make_method("zero-shot-ensemble", templates=more).fit(backbone, shots, BASE, 0)
    expected = zero_shot(backbone, images, classes, (*templates, "an image of a {}."))
    assert_exact(ensemble.logits(images, classes), expected)
    assert (logits - expected).abs().max() > 1e-4


@pytest.mark.parametrize("labels", [LABELS, [0, 2, 2, 0]])
def test_the_probe_minimises_its_objective(backbone: Backbone, labels: list[int]) -> None:
    shots = image_set(backbone, labels, BASE.names)
    probe: Any = make_method("linear-probe", C=0.5, max_iterations=10_000).fit(backbone, shots, BASE, 0)
    assert probe.names == tuple(BASE.names[label] for label in sorted(set(labels)))
    weight, bias = probe.weight.requires_grad_(), probe.bias.requires_grad_()
    features = images_of(backbone.clip, shots)
    assert_exact(probe.logits(shots, ClassTexts(probe.names)).detach(), (features @ weight.T + bias).detach())
    targets = torch.tensor([sorted(set(labels)).index(label) for label in labels])
    norm = weight.pow(2).sum() / 2 if len(weight) > 2 else (weight[1] - weight[0]).pow(2).sum() / 2
    objective = 0.5 * F.cross_entropy(features @ weight.T + bias, targets, reduction="sum") + norm
    for gradient in torch.autograd.grad(objective, [weight, bias]):
        assert gradient.abs().max() < 1e-4 * len(labels)
    assert weight.abs().max() > 1e-3


def test_the_probe_knows_classes_by_name(backbone: Backbone, shots: ImageSet, images: ImageSet) -> None:
    probe: Any = make_method("linear-probe").fit(backbone, shots, BASE, 0)
    learned = images_of(backbone.clip, images) @ probe.weight.T + probe.bias
    turned = ClassTexts(("small fish", "cat"), written=("smll fish", "bird"))
    assert_exact(probe.logits(images, turned), learned[:, [2, 0]])
    assert_exact(probe.logits(images, NEW), zero_shot(backbone, images, NEW))


def test_a_probe_of_one_class_has_nothing_to_tell_apart(backbone: Backbone, images: ImageSet) -> None:
    probe = make_method("linear-probe").fit(backbone, image_set(backbone, [1, 1], BASE.names), BASE, 0)
    assert_exact(probe.logits(images, BASE).softmax(dim=1), zero_shot(backbone, images, BASE).softmax(dim=1))


def test_learned_classes_share_the_probability_that_zero_shot_gives_them(
    backbone: Backbone, shots: ImageSet, images: ImageSet
) -> None:
    probe: Any = make_method("linear-probe").fit(backbone, shots, BASE, 0)
    p = zero_shot(backbone, images, MIXED).softmax(dim=1)
    fish, cat = (images_of(backbone.clip, images) @ probe.weight.T + probe.bias)[:, [2, 0]].exp().T
    together = p[:, 1] + p[:, 2]
    expected = torch.stack([p[:, 0], together * fish / (fish + cat), together * cat / (fish + cat), p[:, 3]], dim=1)
    actual = probe.logits(images, MIXED).softmax(dim=1)
    assert_exact(actual, expected)
    assert_exact(actual.sum(dim=1), torch.ones(5, dtype=torch.float64))


def cached(backbone: Backbone, keys: Tensor, features: Tensor, classes: ClassTexts) -> Tensor:
    """Tip-Adapter, entry by entry."""
    texts = texts_of(backbone.clip, backbone, classes.texts)
    rows = []
    for feature in features:
        row = [backbone.clip.logit_scale.exp() * feature @ text for text in texts]
        for key, label in zip(keys, LABELS, strict=True):
            if BASE.names[label] in classes.names:
                column = classes.names.index(BASE.names[label])
                row[column] = row[column] + 1.5 * torch.exp(-(2.0 - 2.0 * feature @ key))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def test_tip_adapter_adds_the_cache_to_known_classes(backbone: Backbone, shots: ImageSet, images: ImageSet) -> None:
    fitted = make_method("tip-adapter", alpha=1.5, beta=2.0).fit(backbone, shots, BASE, 0)
    keys, features = images_of(backbone.clip, shots), images_of(backbone.clip, images)
    for classes in (BASE, MIXED, replace(MIXED, written=("red bird", "smal fish", "cat", "drawin"))):
        assert_exact(fitted.logits(images, classes), cached(backbone, keys, features, replace(classes)))
    assert_exact(fitted.logits(images, NEW), zero_shot(backbone, images, NEW))


def test_tip_adapter_f_trains_the_keys(
    backbone: Backbone, shots: ImageSet, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch, tip_adapter, scatter=0.1)
    fitted = make_method("tip-adapter-f", alpha=1.5, beta=2.0).fit(backbone, shots, BASE, 0)
    assert spy.recipe.epsilon == 1e-4
    keys = spy.parameters[0].detach().clone().requires_grad_()
    loss = F.cross_entropy(cached(backbone, keys, images_of(backbone.clip, shots), BASE), shots.labels)
    assert_exact(spy.loss.detach(), loss.detach())
    assert_exact(spy.gradients[0], torch.autograd.grad(loss, keys)[0])
    expected = cached(backbone, keys, images_of(backbone.clip, images), BASE)
    assert_exact(fitted.logits(images, BASE), expected.detach())


def test_keys_are_mean_features_of_random_views(backbone: Backbone) -> None:
    shots = image_set(backbone, LABELS, BASE.names, augment=True)
    fitted: Any = make_method("tip-adapter", views=2).fit(backbone, shots, BASE, 3)
    with seeded(3):
        views = [shots.pixels(augment=True).double() for _ in range(2)]
    features = [backbone.clip.get_image_features(pixels).pooler_output for pixels in views]
    expected = unit((features[0] + features[1]) / 2)
    assert_exact(fitted.keys, expected)
    assert (expected - unit(unit(features[0]) + unit(features[1]))).abs().max() > 1e-6


@pytest.mark.parametrize("name", ["tip-adapter", "prolip"])
def test_the_datas_ensemble_stands_for_its_templates_where_asked(
    name: str, backbone: Backbone, shots: ImageSet, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing learned, what is left of both methods is zero-shot CLIP in these texts."""
    monkeypatch.setattr(prolip, "train", lambda *_: None)
    nothing: dict[str, Any] = {"alpha": 0.0} if name == "tip-adapter" else {}
    seven = ("a {} in a video game.", "art of the {}.", "itap of a {}.")
    own, plain = (
        make_method(name, ensemble=wanted, **nothing).fit(backbone, shots, BASE, 0) for wanted in (True, False)
    )
    for classes in (BASE, MIXED, NEW):
        asked = replace(classes, ensemble=seven)
        assert_exact(plain.logits(images, asked), zero_shot(backbone, images, classes))
        assert_exact(own.logits(images, asked), zero_shot(backbone, images, classes, seven))
        assert_exact(own.logits(images, classes), zero_shot(backbone, images, classes))


@pytest.mark.parametrize(("name", "module"), [("tip-adapter-f", tip_adapter), ("prolip", prolip)])
def test_the_ensemble_is_trained_with_as_well(
    name: str, module: ModuleType, backbone: Backbone, shots: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = replace(BASE, ensemble=("art of the {}.", "itap of a {}."))
    losses = []
    for wanted, asked in ((True, classes), (True, replace(BASE, templates=classes.ensemble)), (False, classes)):
        spy = Spy(monkeypatch, module)
        make_method(name, ensemble=wanted).fit(backbone, shots, asked, 0)
        losses.append(spy.loss.detach())
    assert_exact(losses[0], losses[1])
    assert (losses[0] - losses[2]).abs() > 1e-4


def test_prolip_trains_the_projection_and_holds_it(
    backbone: Backbone, shots: ImageSet, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch, prolip, scatter=0.1)
    fitted = make_method("prolip", regularization=0.7).fit(backbone, shots, BASE, 0)
    clip, start = backbone.copy(), backbone.clip.visual_projection.weight.detach()
    clip.visual_projection.weight = torch.nn.Parameter(spy.parameters[0].detach().clone())
    scale, texts = clip.logit_scale.exp(), texts_of(clip, backbone, BASE.texts)
    loss = F.cross_entropy(scale * images_of(clip, shots) @ texts.T, shots.labels)
    loss = loss + 0.7 / (7 / 3) * ((clip.visual_projection.weight - start) ** 2).sum()
    assert_exact(spy.loss.detach(), loss.detach())
    assert_exact(spy.gradients[0], torch.autograd.grad(loss, clip.visual_projection.weight)[0])
    texts = texts_of(clip, backbone, MIXED.texts)
    assert_exact(fitted.logits(images, MIXED), (scale * images_of(clip, images) @ texts.T).detach())


def test_lora_adds_scaled_products_to_queries_keys_and_values(
    backbone: Backbone, shots: ImageSet, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch, lora, scatter=0.1)
    classes = replace(BASE, templates=("a photo of a {}.", "an image of a {}."))
    method = make_method("lora", dropout=0.0, steps_per_shot=5, text_chunk=4, templates=[])
    fitted = method.fit(backbone, shots, classes, 0)
    assert spy.recipe.steps == 5 * 2  # 7 images of 3 classes
    clip = backbone.copy()
    layers = [*clip.text_model.encoder.layers, *clip.vision_model.encoder.layers]
    places = [getattr(layer.self_attn, name) for layer in layers for name in ("k_proj", "v_proj", "q_proj")]
    leaves = [each.detach().clone().requires_grad_() for each in spy.parameters]
    assert len(leaves) == 2 * len(places)
    for number, linear in enumerate(places):
        a, b = leaves[2 * number : 2 * number + 2]
        assert a.shape[0] == b.shape[1] == 2
        updated = linear.weight + 2**-0.5 * b @ a
        del linear.weight
        linear.weight = updated
    scale = clip.logit_scale.exp()
    texts = texts_of(clip, backbone, classes.texts)
    texts = unit(torch.stack([(texts[2 * number] + texts[2 * number + 1]) / 2 for number in range(3)]))
    loss = F.cross_entropy(scale * images_of(clip, shots) @ texts.T, shots.labels)
    assert_exact(spy.loss.detach(), loss.detach())
    for ours, gradient in zip(spy.gradients, torch.autograd.grad(loss, leaves), strict=True):
        assert gradient.abs().max() > 1e-8
        assert_exact(ours, gradient)
    expected = scale * images_of(clip, images) @ texts_of(clip, backbone, MIXED.texts).T
    assert_exact(fitted.logits(images, MIXED), expected.detach())


def test_lora_reads_all_data_sets_in_one_template(
    backbone: Backbone, shots: ImageSet, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its authors do; the task's templates play no part, in training or afterwards."""
    answers = []
    for classes in (BASE, replace(BASE, templates=("{} texture.", "the {}."))):
        spy = Spy(monkeypatch, lora, scatter=0.1)
        fitted = make_method("lora", dropout=0.0).fit(backbone, shots, classes, 0)
        asked = replace(MIXED, templates=classes.templates)
        answers.append((spy.loss.detach(), fitted.logits(images, asked)))
    assert BASE.templates == ("a photo of a {}.",)
    for plain, other in zip(*answers, strict=True):
        assert torch.equal(plain, other)


def test_chunks_change_no_gradient_and_draw_the_same_numbers() -> None:
    weight, rows = torch.randn(3, 2, requires_grad=True), torch.randn(5, 3)
    calls: list[int] = []

    def encode(part: Tensor) -> Tensor:
        calls.append(len(part))
        return F.dropout(part @ weight, 0.5).pow(2)

    results = []
    for chunked in (True, False):
        torch.manual_seed(1)
        output = lora.in_chunks(encode, rows, 2) if chunked else torch.cat([encode(part) for part in rows.split(2)])
        results.append((output, torch.autograd.grad(output.sum(), weight)[0]))
    assert calls[:6] == [2, 2, 1, 1, 2, 2]  # forward, and again from the last chunk on
    for chunked_one, plain in zip(*results, strict=True):
        assert torch.equal(chunked_one, plain)
    assert lora.in_chunks(lambda part: part, rows, 5) is rows


def test_anprompt_learns_what_its_trainer_learns(
    backbone: Backbone, shots: ImageSet, tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    """Five epochs: the paper's recipe warms up in the first. All images are in one batch: order does not matter."""
    sizes: dict[str, Any] = {"text_layers": 2, "vision_layers": 2, "rephrased_weight": 0.0}  # these draw as they train
    for preset, recipe in (("anprompt", "default"), ("anprompt-paper", "paper")):
        method = make_method(preset, recipe={"epochs": 5, "batch_size": 7, "augment": False}, config=sizes)
        fitted: Any = method.fit(backbone, shots, BASE, 5)
        configuration = ANPromptConfig if recipe == "default" else ANPromptConfig.paper
        config = configuration(class_names=list(BASE.names), tokenizer_name_or_path=tokenizer, noise_seed=5, **sizes)
        with seeded(5):
            model = get_peft_model(backbone.copy(), config)
        arguments = ANPromptTrainingArguments(
            str(tmp_path), recipe=recipe, num_train_epochs=5, per_device_train_batch_size=7,
            use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        rows = [
            {"pixel_values": pixels.double(), "labels": label}
            for pixels, label in zip(shots.pixels(), shots.labels, strict=True)
        ]
        ANPromptTrainer(model, arguments, train_dataset=rows).train()
        with torch.no_grad():
            expected = model.eval()(pixel_values=shots.pixels().double()).logits
        assert_exact(fitted.logits(shots, BASE), expected)


def test_anprompt_chooses_logits_by_names_and_reads_what_is_written(
    backbone: Backbone, shots: ImageSet, images: ImageSet
) -> None:
    sizes: dict[str, Any] = {"text_layers": 2, "vision_layers": 2, "alpha": 0.6}
    fitted: Any = make_method("anprompt", recipe={"epochs": 1, "augment": False}, config=sizes).fit(
        backbone, shots, BASE, 0
    )
    scatter(fitted.model)
    pixels = images.pixels().double()
    subset = ClassTexts(("small fish", "cat"), written=("smal fish", "bird"))
    for classes, choice in ((BASE, "fused"), (subset, "fused"), (MIXED, "ensemble"), (NEW, "ensemble")):
        fitted.model.set_classes(list(classes.written))
        with torch.no_grad():
            output = fitted.model(pixel_values=pixels)
        assert_exact(fitted.logits(images, classes), output[f"logits_{choice}"])
        assert (output.logits_fused - output.logits_class).abs().max() > 1e-3
    alike = fitted.logits(images, ClassTexts(("cat", "dog"), written=("cat", "cat")))
    assert torch.equal(alike[:, 0], alike[:, 1])
    for choice in ("prototype", "fused", "class", "ensemble"):
        forced: Any = make_method(
            "anprompt", recipe={"epochs": 1, "augment": False}, config={**sizes, "inference_logits": choice}
        ).fit(backbone, shots, BASE, 0)
        for classes in (BASE, NEW):
            forced.model.set_classes(list(classes.names))
            with torch.no_grad():
                assert_exact(forced.logits(images, classes), forced.model(pixel_values=pixels).logits)


@pytest.mark.parametrize("name", ["mmrl", "mmrl-cross-data", "anprompt-paper"])
def test_mmrl_scores_other_data_with_class_logits(
    name: str, backbone: Backbone, shots: ImageSet, images: ImageSet
) -> None:
    """ImageNet's variants have the names of its classes, and still only ImageNet's own images get fused logits."""
    sizes: dict[str, Any] = {"text_layers": 2, "vision_layers": 2, "alpha": 0.6}
    fitted: Any = make_method(name, recipe={"epochs": 1, "augment": False}, config=sizes).fit(backbone, shots, BASE, 0)
    scatter(fitted.model)
    with torch.no_grad():
        output = fitted.model(pixel_values=images.pixels().double())
    target = replace(BASE, other_data=True)
    assert_exact(fitted.logits(images, BASE), output.logits_fused)
    assert_exact(fitted.logits(images, target), output.logits_class)
    assert (output.logits_fused - output.logits_class).abs().max() > 1e-3
    forced: Any = make_method(
        name, recipe={"epochs": 1, "augment": False}, config={**sizes, "inference_logits": "fused"}
    ).fit(backbone, shots, BASE, 0)
    assert_exact(forced.logits(images, target), forced.logits(images, BASE))


def test_mmrl_and_the_controls_differ_from_anprompt_in_what_they_say(backbone: Backbone) -> None:
    default = ANPromptConfig(
        class_names=list(BASE.names),
        template=list(BASE.templates),
        tokenizer_name_or_path=backbone.processor.tokenizer,
        noise_seed=3,
    )
    none: dict[str, Any] = {"text_update_rank": None, "rephrased_weight": 0.0}
    paper_terms = {"similarity_weight": 0.5, "frozen_share": 0.0, **none}
    presets: dict[str, dict[str, Any]] = {
        "anprompt": {},
        "anprompt-no-rephrased": {"rephrased_weight": 0.0},
        "anprompt-no-updates": none,
        "anprompt-paper": paper_terms,
        "anprompt-random-noise": {},
        "anprompt-no-wal": {"waloss_weight": 0.0},
        "anprompt-no-noise": {"num_virtual_tokens": 9, "num_noise_tokens": 0, "waloss_weight": 0.0},
        "mmrl": {"num_noise_tokens": 0, "waloss_weight": 0.0, **paper_terms},
    }
    recipes = {}
    for name, changed in presets.items():
        method: Any = make_method(name)
        assert vars(method.configuration(backbone, BASE, 3)) == {**vars(default), **changed}
        recipes[name] = method.recipe
    assert default.num_prompts == 9
    paper = replace(recipes["anprompt"], weight_decay=5e-4, clip_norm=0.0)
    assert recipes["anprompt-paper"] == recipes["mmrl"] == paper
    assert recipes["anprompt"] == recipes["anprompt-no-noise"] == recipes["anprompt-no-wal"]
    with pytest.raises(ValueError, match=r"config must not set \['template'\]"):
        make_method("anprompt", config={"template": "{}"}).fit(backbone, image_set(backbone, [0], BASE.names), BASE, 0)


def test_random_noise_is_drawn_from_the_seed_and_frozen(backbone: Backbone, shots: ImageSet) -> None:
    def noise(preset: str, seed: int) -> Tensor:
        method = make_method(preset, recipe={"epochs": 1}, config={"text_layers": 2, "vision_layers": 2})
        fitted: Any = method.fit(backbone, shots, BASE, seed)
        return copy.deepcopy(fitted.clip.head.anprompt_noise_prompts["default"])

    ours, drawn = noise("anprompt", 1), noise("anprompt-random-noise", 1)
    assert_exact(drawn.norm(dim=1), torch.ones(4, dtype=torch.float64))
    assert torch.equal(drawn, noise("anprompt-random-noise", 1))
    assert not torch.equal(drawn, noise("anprompt-random-noise", 2))
    assert not torch.equal(ours, noise("anprompt", 2))
    texts = texts_of(backbone.clip, backbone, BASE.texts)
    assert (unit(ours) @ texts.T).amax(dim=1).min() > 0.9 > (drawn @ texts.T).amax(dim=1).max()


def test_chunks_of_class_texts_change_nothing(backbone: Backbone, shots: ImageSet) -> None:
    settings: Any = {"recipe": {"epochs": 1, "augment": False}, "config": {"text_layers": 2, "vision_layers": 2}}
    whole = make_method("anprompt", **settings).fit(backbone, shots, BASE, 0)
    chunked: Any = make_method("anprompt", text_chunk=1, **settings).fit(backbone, shots, BASE, 0)
    assert chunked.clip.savings.text_chunk == 1
    assert_exact(chunked.logits(shots, BASE), whole.logits(shots, BASE))
