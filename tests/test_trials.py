"""The trials of examples/embedded/README.md do what they say."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPProcessor

from anprompt_peft.data.transform import ClipTransform
from anprompt_peft.evaluation.backbone import Backbone
from anprompt_peft.evaluation.peers import Batch, Recipe, make_method
from anprompt_peft.evaluation.peers.lora import LoRA
from anprompt_peft.evaluation.peers.training import seeded
from anprompt_peft.evaluation.robustness import texts as measured
from anprompt_peft.evaluation.task import ClassTexts, ImageSet
from anprompt_peft.method.rephrase import draw_rephrased, vocabulary
from anprompt_peft.tuner import adapted_clip
from helpers import assert_exact, make_clip, scatter
from peers import image_set
from trials import (
    FewViews,
    HalfFrozen,
    InTurn,
    NoisyLoRA,
    Tempered,
    Trial,
    averaging,
    divergence,
    perturbed_texts,
    turned,
)

CLASSES = ClassTexts(("cat", "dog", "small fish"))
RECIPE = Recipe(learning_rate=0.1, batch_size=None)
SIZES: dict[str, Any] = {"text_layers": 2, "vision_layers": 2}


@pytest.fixture
def backbone(clip_folder: Any) -> Backbone:
    return Backbone(make_clip(dtype=torch.float64), CLIPProcessor.from_pretrained(clip_folder))


@pytest.fixture
def shots(backbone: Backbone) -> ImageSet:
    features = Features({"image": Image(), "label": ClassLabel(names=list(CLASSES.names))})
    images = [Pillow.new("RGB", (40, 40), (60 * at, 200 - 60 * at, 90)) for at in range(3)]
    return ImageSet(
        Dataset.from_dict({"image": images, "label": [0, 1, 2]}, features=features), ClipTransform(backbone.processor)
    )


def expected_extra(name: str, trial: Trial, model: Any, backbone: Backbone, batch: Batch) -> Tensor:
    """The further loss of a trial with one set of perturbed texts."""
    (texts,) = perturbed_texts(CLASSES, 1, 3)
    output, scale = model(pixel_values=batch.pixels, labels=batch.labels), backbone.logit_scale
    clean, noisy = backbone.class_features(CLASSES), backbone.text_features(texts)
    tokens = backbone.tokens(texts)
    encoded = F.normalize(adapted_clip(model).get_text_features(input_ids=tokens).pooler_output, dim=-1)
    frozen = turned(clean, noisy, trial.angle)
    return {
        "texts": lambda: F.cross_entropy(scale * output.image_embeds @ frozen.T, batch.labels),
        "class": lambda: divergence(scale * output.image_embeds @ frozen.T, output.logits_class),
        "prototype": lambda: divergence(scale * output.prototype_embeds @ frozen.T, output.logits_class),
        "encoder": lambda: F.cross_entropy(scale * output.image_embeds @ encoded.T, batch.labels),
        "encoder kl": lambda: divergence(output.logits_class.detach(), scale * output.image_embeds @ encoded.T),
        "encoder similarity": lambda: 1 - F.cosine_similarity(encoded, clean).mean(),
    }[name]()


@pytest.mark.parametrize("angle", [None, 20.0])
@pytest.mark.parametrize("noisy", ["texts", "class", "prototype", "encoder", "encoder kl", "encoder similarity"])
def test_the_loss_on_perturbed_texts(noisy: Any, angle: float | None, backbone: Backbone, shots: ImageSet) -> None:
    trial = Trial(RECIPE, SIZES, noisy=noisy, weight=2.0, angle=angle, sets=1)
    model = scatter(trial.adapt(backbone, CLASSES, 3))
    batch = Batch(shots, torch.arange(3), next(backbone.clip.parameters()))
    found = trial.loss_of(model, backbone, CLASSES, 3)(batch)
    own = model(pixel_values=batch.pixels, labels=batch.labels).loss
    extra = expected_extra(noisy, trial, model, backbone, batch)
    assert extra > 1e-4
    assert_exact(found, own + 2 * extra)


def test_turning_by_an_angle() -> None:
    clean, noisy = F.normalize(torch.randn(2, 4, 8, dtype=torch.float64), dim=-1)
    found = turned(clean, noisy, 30.0)
    torch.testing.assert_close(
        (found * clean).sum(-1).acos().rad2deg(), torch.full((4,), 30.0).double(), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(4).double(), atol=1e-6, rtol=0)
    plane = torch.stack([clean, noisy, found], dim=1)
    assert (torch.linalg.svdvals(plane)[:, 2] < 1e-6).all(), "it stays in their plane"
    assert ((found * noisy).sum(-1) > (clean * noisy).sum(-1)).all()
    assert turned(clean, noisy, None) is noisy


def test_divergence_by_hand() -> None:
    target, logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, torch.log(torch.tensor(3.0))]] * 2)
    assert divergence(target, logits).item() == pytest.approx(0.5 * torch.log(torch.tensor(4 / 3)).item())


def test_perturbed_texts_differ_and_name_their_class() -> None:
    sets = perturbed_texts(CLASSES, 30, 0)
    assert sets == perturbed_texts(CLASSES, 30, 0) != perturbed_texts(CLASSES, 30, 1)
    for texts in sets:
        assert all(name in text for name, text in zip(CLASSES.names, texts, strict=True))
    assert len({texts[0] for texts in sets}) > 15
    assert "a photo of a cat." not in {texts[0] for texts in sets}


def test_noise_rows(backbone: Backbone) -> None:
    def rows(**settings: Any) -> Tensor:
        model = Trial(RECIPE, SIZES, **settings).adapt(backbone, CLASSES, 3)
        return adapted_clip(model).head.anprompt_noise_prompts["default"]

    own, directions, random = rows(), rows(directions=True), rows(random_noise=True)
    clean = backbone.class_features(CLASSES)
    for changed in (directions, random):
        torch.testing.assert_close(changed.norm(dim=-1), torch.ones(len(own)).double())
        assert (changed @ clean.T).abs().max() < (own @ clean.T).min()


def test_maps_from_clips_projection_give_the_noise_prompts_meaning(backbone: Backbone) -> None:
    model = Trial(RECIPE, SIZES, from_clip=0.5).adapt(backbone, CLASSES, 3)
    clip = adapted_clip(model)
    noise = clip.head.anprompt_noise_prompts["default"]
    for tower, projection in ((clip.text_model, clip.text_projection), (clip.vision_model, clip.head.base_layer)):
        prompts = tower.encoder.layers[-1].project(clip.head)[-len(noise) :]
        assert_exact(projection(prompts), 0.5 * noise)


def test_vision_updates_start_as_nothing_and_are_trained(backbone: Backbone, shots: ImageSet) -> None:
    def features(**settings: Any) -> tuple[Any, Tensor]:
        with seeded(3):
            model = Trial(RECIPE, SIZES, **settings).adapt(backbone, CLASSES, 3).eval()
        return model, model(pixel_values=shots.pixels(torch.arange(3)).double()).image_embeds

    _, without = features()
    model, before = features(vision_update=2)
    assert_exact(before, without)
    updates = adapted_clip(model).vision_model.encoder.updates
    assert len(updates) == 5
    for update in updates:
        update.change.up.data.normal_()
        with torch.no_grad():
            after = model(pixel_values=shots.pixels(torch.arange(3)).double()).image_embeds
        assert (after - before).abs().max() > 1e-4
        before = after
    assert all(each.requires_grad for each in updates.parameters())


def test_second_tokens_are_added_to_the_vision_prompts(backbone: Backbone) -> None:
    clip = adapted_clip(Trial(RECIPE, SIZES, second=0.2).adapt(backbone, CLASSES, 3))
    layer = clip.vision_model.encoder.layers[-1]
    without: Any = type(layer).project(layer, clip.head)
    assert_exact(layer.project(clip.head), without + 0.2 * layer.second_map(clip.second_tokens))
    assert clip.second_tokens.shape == (9, 24)
    for text in clip.text_model.encoder.layers:
        assert not hasattr(text, "second_map")


def test_rows_of_equal_norm(backbone: Backbone) -> None:
    head = adapted_clip(Trial(RECIPE, SIZES, equal_norm=True).adapt(backbone, CLASSES, 3)).head
    torch.testing.assert_close(head.prompts("default").norm(dim=-1), torch.ones(9).double())
    head.anprompt_tokens["default"].data.mul_(3)
    torch.testing.assert_close(head.prompts("default").norm(dim=-1), torch.ones(9).double())


def test_the_moving_average_of_the_weights(backbone: Backbone, shots: ImageSet) -> None:
    fitted = Trial(Recipe(learning_rate=0.1, steps=1, schedule="constant"), SIZES, averaged=0.75).fit(
        backbone, shots, CLASSES, 3
    )
    with seeded(3):
        start = Trial(RECIPE, SIZES).adapt(backbone, CLASSES, 3)
    ours, theirs = (dict(each.named_parameters()) for each in (fitted.model, start))
    for name, weight in theirs.items():
        assert_exact(ours[name], weight, name)  # the average is taken before each step, and there was one
    model: Any = torch.nn.Linear(1, 1, bias=False)
    loss, unread = averaging(model, lambda _: torch.zeros(()), 0.75), Batch(shots, torch.arange(1), torch.zeros(1))
    model.weight.data.fill_(0.0)
    ((_, mean),) = model.averages
    mean.fill_(1.0)
    loss(unread)
    model.weight.data.fill_(4.0)
    loss(unread)
    assert mean.item() == pytest.approx(0.75 * 0.75 + 0.25 * 4)


def test_texts_of_the_measurement() -> None:
    sets = Trial(RECIPE, measured=True, sets=9).perturbed_sets(CLASSES, 0)
    assert len(sets) == 9
    for kept, words in ((sets[:3], measured.FRAMES), (sets[3:6], measured.CLAUSES), (sets[6:], measured.THINGS)):
        pieces = [word.split("{}")[0].strip() or word.split("{}")[-1] for word in words]
        assert all(any(piece in text for piece in pieces) for texts in kept for text in texts)


def test_lora_on_rephrased_texts(backbone: Backbone, shots: ImageSet) -> None:
    settings: dict[str, Any] = {
        "rank": 2, "alpha": 1.0, "dropout": 0.0, "targets": ("q_proj",), "steps_per_shot": None, "text_chunk": 8,
        "recipe": RECIPE,
    }  # fmt: skip
    batch, clip = Batch(shots, torch.arange(3), next(backbone.clip.parameters())), backbone.copy()
    own = LoRA(**settings).loss_of(clip, backbone, CLASSES, 0)(batch)
    noisy = NoisyLoRA(**settings, weight=3.0, drawn=4).loss_of(clip, backbone, CLASSES, 0)
    rng, words = random.Random("steps 0"), vocabulary(backbone.processor.tokenizer)
    for step in range(2):
        texts, rows, anchors = draw_rephrased(CLASSES.names, CLASSES.templates, words, 4, rng)
        moved = (backbone.text_features(texts) * backbone.class_features(CLASSES)[rows]).sum(dim=-1)
        expected = 3 * (1 - torch.cat([moved, torch.ones(len(anchors)).double()]).mean())
        assert_exact((noisy(batch) - own).detach(), expected, str(step))
        assert expected > 1e-3, "an unchanged CLIP sees rephrased texts elsewhere"
    fitted = make_method("trials:NoisyLoRA", **{**settings, "recipe": {"learning_rate": 0.01, "steps": 2}})
    assert torch.isfinite(fitted.fit(backbone, shots, CLASSES, 0).logits(shots, CLASSES)).all()


@dataclass(frozen=True)
class Sure:
    """A method whose logits are too large by a factor."""

    factor: float

    def fit(self, *_: Any) -> Any:
        return self

    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        fitting = torch.tensor([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
        return self.factor * fitting


def test_the_temperature_fits_the_shots(backbone: Backbone, shots: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trials.make_method", lambda name, factor: Sure(factor))
    fits: list[Any] = [Tempered("sure", {"factor": factor}).fit(backbone, shots, CLASSES, 0) for factor in (1.0, 5.0)]
    assert fits[1].temperature == pytest.approx(5 * fits[0].temperature, rel=1e-3)
    loss = {
        shift: F.cross_entropy(fits[0].logits(shots, CLASSES) / shift, shots.labels) for shift in (0.98, 1.0, 1.02)
    }
    assert loss[1.0] < min(loss[0.98], loss[1.02])


@dataclass(frozen=True)
class Fixed:
    """A method whose logits are all 1."""

    def fit(self, *_: Any) -> Any:
        return self

    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        return torch.ones(len(images), len(classes.names), dtype=torch.float64)


def test_half_frozen_changes_other_classes_alone(
    backbone: Backbone, shots: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trials.make_method", lambda name: {"fixed": Fixed()}[name])
    fitted = HalfFrozen("fixed", share=0.25).fit(backbone, shots, CLASSES, 0)
    assert (fitted.logits(shots, CLASSES) == 1).all()
    new = ClassTexts(("cat", "bird"))
    assert_exact(fitted.logits(shots, new), 0.75 + 0.25 * backbone.zero_shot_logits(shots, new))


def test_views_are_seen_in_turn(backbone: Backbone) -> None:
    """Each visit of a shot sees its next view, and after so many the first one again, whatever the batches."""
    shots = image_set(backbone, [0, 1, 2], CLASSES.names, augment=True)
    own = {each.name: getattr(shots, each.name) for each in fields(ImageSet)}
    first, second = (InTurn(**own, views=2, seed=seed) for seed in (5, 6))
    everything, rows = torch.arange(3), [torch.tensor([2]), torch.tensor([0, 1])]
    seen = [first.pixels(everything, augment=True) for _ in range(4)]
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert len(torch.cat([*seen[:2], second.pixels(everything, augment=True)]).flatten(1).unique(dim=0)) == 9
    again = InTurn(**own, views=2, seed=5)
    late, early = (again.pixels(each, augment=True) for each in rows)
    assert torch.equal(torch.cat([early, late]), seen[0])
    assert torch.equal(again.pixels(everything), shots.pixels(everything))
    few = FewViews(Recipe(learning_rate=0.01, steps=4, batch_size=2, augment=True), config=SIZES, views=1)
    assert torch.isfinite(few.fit(backbone, shots, CLASSES, 0).logits(shots, CLASSES)).all()


def test_trials_train(backbone: Backbone, shots: ImageSet) -> None:
    method: Any = make_method(
        "trials:Trial", recipe={"learning_rate": 0.01, "steps": 2}, config=SIZES, noisy="encoder"
    )
    assert torch.isfinite(method.fit(backbone, shots, CLASSES, 0).logits(shots, CLASSES)).all()
