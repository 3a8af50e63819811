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
from anprompt_peft.data import ClipTransform
from anprompt_peft.evaluation.peers import lora, make_method, prolip, seeded, tip_adapter
from anprompt_peft.evaluation.task import ClassTexts, ImageSet
from anprompt_peft.training import ANPromptTrainer, ANPromptTrainingArguments
from helpers import assert_exact, scatter
from peers import BACKBONE, BASE, MIXED, NEW, PROCESSOR, Spy, image_set, images_of, texts_of, unit

LABELS = [0, 1, 2, 2, 1, 0, 1]


SHOTS = image_set(LABELS)
IMAGES = image_set([0, 1, 2, 3, 3], MIXED.names, seed=1)


def fit(name: str, classes: ClassTexts = BASE, shots: ImageSet = SHOTS, seed: int = 0, **settings: Any) -> Any:
    """A method of the registry after it has learned from the shots."""
    return make_method(name, **settings).fit(BACKBONE, shots, classes, seed)


def zero_shot(classes: ClassTexts, templates: tuple[str, ...] = ()) -> Tensor:
    """CLIP's logits, class by class: the mean of normalised text features, normalised."""
    clip = BACKBONE.clip
    rows = []
    for name in classes.written:
        texts = [template.replace("{}", name) for template in templates or classes.templates]
        rows.append(unit(texts_of(texts, clip).mean(dim=0)))
    return clip.logit_scale.exp() * images_of(IMAGES, clip) @ torch.stack(rows).T


def test_zero_shot_is_clip_with_the_mean_of_all_templates() -> None:
    templates = ("a photo of a {}.", "the drawing of one {}.")
    classes = replace(MIXED, templates=templates, written=("red bir", "smal fish", "cat", "drawing"))
    logits = fit("zero-shot").logits(IMAGES, classes)
    assert_exact(logits, zero_shot(classes))
    more = ("an image of a {}.", "a photo of a {}.")
    ensemble = fit("zero-shot-ensemble", templates=more)
    expected = zero_shot(classes, (*templates, "an image of a {}."))
    assert_exact(ensemble.logits(IMAGES, classes), expected)
    assert (logits - expected).abs().max() > 1e-4


@pytest.mark.parametrize("labels", [LABELS, [0, 2, 2, 0]])
def test_the_probe_minimises_its_objective(labels: list[int]) -> None:
    shots = image_set(labels)
    probe = fit("linear-probe", shots=shots, C=0.5, max_iterations=10_000)
    assert probe.names == tuple(BASE.names[label] for label in sorted(set(labels)))
    weight, bias = probe.weight.requires_grad_(), probe.bias.requires_grad_()
    features = images_of(shots)
    assert_exact(probe.logits(shots, ClassTexts(probe.names)).detach(), (features @ weight.T + bias).detach())
    targets = torch.tensor([sorted(set(labels)).index(label) for label in labels])
    norm = weight.pow(2).sum() / 2 if len(weight) > 2 else (weight[1] - weight[0]).pow(2).sum() / 2
    objective = 0.5 * F.cross_entropy(features @ weight.T + bias, targets, reduction="sum") + norm
    for gradient in torch.autograd.grad(objective, [weight, bias]):
        assert gradient.abs().max() < 1e-4 * len(labels)
    assert weight.abs().max() > 1e-3


def test_the_probe_knows_classes_by_name() -> None:
    probe = fit("linear-probe")
    learned = images_of(IMAGES) @ probe.weight.T + probe.bias
    turned = ClassTexts(("small fish", "cat"), written=("smll fish", "bird"))
    assert_exact(probe.logits(IMAGES, turned), learned[:, [2, 0]])
    assert_exact(probe.logits(IMAGES, NEW), zero_shot(NEW))


def test_a_probe_of_one_class_has_nothing_to_tell_apart() -> None:
    probe = fit("linear-probe", shots=image_set([1, 1]))
    assert_exact(probe.logits(IMAGES, BASE).softmax(dim=1), zero_shot(BASE).softmax(dim=1))


def test_learned_classes_share_the_probability_that_zero_shot_gives_them() -> None:
    probe = fit("linear-probe")
    p = zero_shot(MIXED).softmax(dim=1)
    fish, cat = (images_of(IMAGES) @ probe.weight.T + probe.bias)[:, [2, 0]].exp().T
    together = p[:, 1] + p[:, 2]
    expected = torch.stack([p[:, 0], together * fish / (fish + cat), together * cat / (fish + cat), p[:, 3]], dim=1)
    actual = probe.logits(IMAGES, MIXED).softmax(dim=1)
    assert_exact(actual, expected)
    assert_exact(actual.sum(dim=1), torch.ones(5, dtype=torch.float64))


def cached(keys: Tensor, features: Tensor, classes: ClassTexts) -> Tensor:
    """Tip-Adapter, entry by entry."""
    texts = texts_of(classes.texts)
    rows = []
    for feature in features:
        row = [BACKBONE.clip.logit_scale.exp() * feature @ text for text in texts]
        for key, label in zip(keys, LABELS, strict=True):
            if BASE.names[label] in classes.names:
                column = classes.names.index(BASE.names[label])
                row[column] = row[column] + 1.5 * torch.exp(-(2.0 - 2.0 * feature @ key))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def test_tip_adapter_adds_the_cache_to_known_classes() -> None:
    fitted = fit("tip-adapter", alpha=1.5, beta=2.0)
    keys, features = images_of(SHOTS), images_of(IMAGES)
    for classes in (BASE, MIXED, replace(MIXED, written=("red bird", "smal fish", "cat", "drawin"))):
        assert_exact(fitted.logits(IMAGES, classes), cached(keys, features, replace(classes)))
    assert_exact(fitted.logits(IMAGES, NEW), zero_shot(NEW))


def test_tip_adapter_f_trains_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch, tip_adapter, scatter=0.1)
    fitted = fit("tip-adapter-f", alpha=1.5, beta=2.0)
    assert spy.recipe.epsilon == 1e-4
    keys = spy.parameters[0].detach().clone().requires_grad_()
    loss = F.cross_entropy(cached(keys, images_of(SHOTS), BASE), SHOTS.labels)
    assert_exact(spy.loss.detach(), loss.detach())
    assert_exact(spy.gradients[0], torch.autograd.grad(loss, keys)[0])
    expected = cached(keys, images_of(IMAGES), BASE)
    assert_exact(fitted.logits(IMAGES, BASE), expected.detach())


def test_keys_are_mean_features_of_random_views() -> None:
    shots = image_set(LABELS, augmentation=ClipTransform(PROCESSOR, augment=True))
    fitted = fit("tip-adapter", shots=shots, seed=3, views=2)
    with seeded(3):
        views = [shots.pixels(augment=True).double() for _ in range(2)]
    features = [BACKBONE.clip.get_image_features(pixels).pooler_output for pixels in views]
    expected = unit((features[0] + features[1]) / 2)
    assert_exact(fitted.keys, expected)
    assert (expected - unit(unit(features[0]) + unit(features[1]))).abs().max() > 1e-6


@pytest.mark.parametrize("name", ["tip-adapter", "prolip"])
def test_the_datas_ensemble_stands_for_its_templates_where_asked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing learned, what is left of both methods is zero-shot CLIP in these texts."""
    monkeypatch.setattr(prolip, "train", lambda *_: None)
    nothing: dict[str, Any] = {"alpha": 0.0} if name == "tip-adapter" else {}
    seven = ("a {} in a video game.", "art of the {}.", "itap of a {}.")
    own, plain = (fit(name, ensemble=wanted, **nothing) for wanted in (True, False))
    for classes in (BASE, MIXED, NEW):
        asked = replace(classes, ensemble=seven)
        assert_exact(plain.logits(IMAGES, asked), zero_shot(classes))
        assert_exact(own.logits(IMAGES, asked), zero_shot(classes, seven))
        assert_exact(own.logits(IMAGES, classes), zero_shot(classes))


@pytest.mark.parametrize(("name", "module"), [("tip-adapter-f", tip_adapter), ("prolip", prolip)])
def test_the_ensemble_is_trained_with_as_well(name: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = replace(BASE, ensemble=("art of the {}.", "itap of a {}."))
    losses = []
    for wanted, asked in ((True, classes), (True, replace(BASE, templates=classes.ensemble)), (False, classes)):
        spy = Spy(monkeypatch, module)
        fit(name, classes=asked, ensemble=wanted)
        losses.append(spy.loss.detach())
    assert_exact(losses[0], losses[1])
    assert (losses[0] - losses[2]).abs() > 1e-4


def test_prolip_trains_the_projection_and_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch, prolip, scatter=0.1)
    fitted = fit("prolip", regularization=0.7)
    clip, start = BACKBONE.copy(), BACKBONE.clip.visual_projection.weight.detach()
    clip.visual_projection.weight = torch.nn.Parameter(spy.parameters[0].detach().clone())
    scale, texts = clip.logit_scale.exp(), texts_of(BASE.texts, clip)
    loss = F.cross_entropy(scale * images_of(SHOTS, clip) @ texts.T, SHOTS.labels)
    loss = loss + 0.7 / (7 / 3) * ((clip.visual_projection.weight - start) ** 2).sum()
    assert_exact(spy.loss.detach(), loss.detach())
    assert_exact(spy.gradients[0], torch.autograd.grad(loss, clip.visual_projection.weight)[0])
    texts = texts_of(MIXED.texts, clip)
    assert_exact(fitted.logits(IMAGES, MIXED), (scale * images_of(IMAGES, clip) @ texts.T).detach())


def test_lora_adds_scaled_products_to_queries_keys_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch, lora, scatter=0.1)
    classes = replace(BASE, templates=("a photo of a {}.", "an image of a {}."))
    method = make_method("lora", dropout=0.0, steps_per_shot=5, text_chunk=4, templates=[])
    fitted = method.fit(BACKBONE, SHOTS, classes, 0)
    assert spy.recipe.steps == 5 * 2  # 7 images of 3 classes
    clip = BACKBONE.copy()
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
    texts = texts_of(classes.texts, clip)
    texts = unit(torch.stack([(texts[2 * number] + texts[2 * number + 1]) / 2 for number in range(3)]))
    loss = F.cross_entropy(scale * images_of(SHOTS, clip) @ texts.T, SHOTS.labels)
    assert_exact(spy.loss.detach(), loss.detach())
    for ours, gradient in zip(spy.gradients, torch.autograd.grad(loss, leaves), strict=True):
        assert gradient.abs().max() > 1e-8
        assert_exact(ours, gradient)
    expected = scale * images_of(IMAGES, clip) @ texts_of(MIXED.texts, clip).T
    assert_exact(fitted.logits(IMAGES, MIXED), expected.detach())


def test_lora_reads_all_data_sets_in_one_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """As its authors do; the task's templates play no part, in training or afterwards."""
    answers = []
    for classes in (BASE, replace(BASE, templates=("{} texture.", "the {}."))):
        spy = Spy(monkeypatch, lora, scatter=0.1)
        fitted = make_method("lora", dropout=0.0).fit(BACKBONE, SHOTS, classes, 0)
        asked = replace(MIXED, templates=classes.templates)
        answers.append((spy.loss.detach(), fitted.logits(IMAGES, asked)))
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


def test_anprompt_learns_what_its_trainer_learns(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    """Five epochs: the paper's recipe warms up in the first. All images are in one batch: order does not matter."""
    sizes: dict[str, Any] = {"text_layers": 2, "vision_layers": 2, "rephrased_weight": 0.0}  # these draw as they train
    for preset, recipe in (("anprompt", "default"), ("anprompt-paper", "paper")):
        fitted = fit(preset, seed=5, recipe={"epochs": 5, "batch_size": 7, "augment": False}, config=sizes)
        configuration = ANPromptConfig if recipe == "default" else ANPromptConfig.paper
        config = configuration(class_names=list(BASE.names), tokenizer_name_or_path=tokenizer, noise_seed=5, **sizes)
        with seeded(5):
            model: Any = get_peft_model(BACKBONE.copy(), config)
        arguments = ANPromptTrainingArguments(
            str(tmp_path), recipe=recipe, num_train_epochs=5, per_device_train_batch_size=7,
            use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        rows = [
            {"pixel_values": pixels.double(), "labels": label}
            for pixels, label in zip(SHOTS.pixels(), SHOTS.labels, strict=True)
        ]
        ANPromptTrainer(model, arguments, train_dataset=rows).train()
        for images, classes in ((SHOTS, BASE), (IMAGES, MIXED)):
            model.eval().set_classes(list(classes.names))
            with torch.no_grad():
                expected = model(pixel_values=images.pixels().double()).logits
            assert_exact(fitted.logits(images, classes), expected)


@pytest.mark.parametrize("name", ["mmrl", "mmrl-cross-data", "anprompt-paper"])
def test_mmrl_scores_other_data_with_class_logits(name: str) -> None:
    """ImageNet's variants have the names of its classes, and still only ImageNet's own images get fused logits."""
    sizes: dict[str, Any] = {"text_layers": 2, "vision_layers": 2, "alpha": 0.6}
    fitted = fit(name, recipe={"epochs": 1, "augment": False}, config=sizes)
    scatter(fitted.model)
    with torch.no_grad():
        output = fitted.model(pixel_values=IMAGES.pixels().double())
    target = replace(BASE, other_data=True)
    assert_exact(fitted.logits(IMAGES, BASE), output.logits_fused)
    assert_exact(fitted.logits(IMAGES, target), output.logits_class)
    assert (output.logits_fused - output.logits_class).abs().max() > 1e-3
    forced = fit(name, recipe={"epochs": 1, "augment": False}, config={**sizes, "inference_logits": "fused"})
    assert_exact(forced.logits(IMAGES, target), forced.logits(IMAGES, BASE))


def test_mmrl_and_the_controls_differ_from_anprompt_in_what_they_say() -> None:
    texts: dict[str, Any] = {"class_names": list(BASE.names), "template": list(BASE.templates)}
    default = ANPromptConfig(**texts, tokenizer_name_or_path=PROCESSOR.tokenizer, noise_seed=3)
    none: dict[str, Any] = {"text_update_rank": None, "rephrased_weight": 0.0}
    paper_terms = {"similarity_weight": 0.5, "frozen_share": 0.0, **none}
    bare = {"classifier_weight": 0.0}
    presets: dict[str, dict[str, Any]] = {
        "anprompt-no-classifier": {},
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
        assert vars(method.configuration(BACKBONE, BASE, 3)) == {**vars(default), **bare, **changed}
        recipes[name] = method.recipe
    ours: Any = make_method("anprompt")
    assert vars(ours.configuration(BACKBONE, BASE, 3)) == vars(default)
    recipes["anprompt"] = ours.recipe
    assert ours.recipe == recipes["anprompt-no-classifier"]
    assert default.num_prompts == 9
    paper = replace(recipes["anprompt"], weight_decay=5e-4, clip_norm=0.0)
    assert recipes["anprompt-paper"] == recipes["mmrl"] == paper
    assert recipes["anprompt"] == recipes["anprompt-no-noise"] == recipes["anprompt-no-wal"]
    with pytest.raises(ValueError, match=r"config must not set \['template'\]"):
        fit("anprompt", config={"template": "{}"})


def test_random_noise_is_drawn_from_the_seed_and_frozen() -> None:
    def noise(preset: str, seed: int) -> Tensor:
        fitted = fit(preset, seed=seed, recipe={"epochs": 1}, config={"text_layers": 2, "vision_layers": 2})
        return copy.deepcopy(fitted.clip.head.anprompt_noise_prompts["default"])

    ours, drawn = noise("anprompt", 1), noise("anprompt-random-noise", 1)
    assert_exact(drawn.norm(dim=1), torch.ones(4, dtype=torch.float64))
    assert torch.equal(drawn, noise("anprompt-random-noise", 1))
    assert not torch.equal(drawn, noise("anprompt-random-noise", 2))
    assert not torch.equal(ours, noise("anprompt", 2))
    texts = texts_of(BASE.texts)
    assert (unit(ours) @ texts.T).amax(dim=1).min() > 0.9 > (drawn @ texts.T).amax(dim=1).max()


def test_chunks_of_class_texts_change_nothing() -> None:
    settings: Any = {"recipe": {"epochs": 1, "augment": False}, "config": {"text_layers": 2, "vision_layers": 2}}
    whole = fit("anprompt", **settings)
    chunked = fit("anprompt", text_chunk=1, **settings)
    assert chunked.clip.savings.text_chunk == 1
    assert_exact(chunked.logits(SHOTS, BASE), whole.logits(SHOTS, BASE))
