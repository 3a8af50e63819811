"""The noise pipeline: perturbation, weak fusion, clustering."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
from peft import get_peft_model
from sklearn.cluster import KMeans
from torch import Tensor
from transformers import CLIPTokenizer

import reference
from anprompt_peft.method import features, noise
from anprompt_peft.method.class_texts import ClassSet, tokenize_classes
from anprompt_peft.method.perturb import (
    drop_letter,
    insert_letter,
    mistype_letter,
    paraphrase,
    perturb_class_text,
    swap_letters,
)
from helpers import CLASSES, adapted, make_clip, make_config

TEMPLATES = [
    "a photo of a {}.",
    "{} texture.",
    "a photo of {}, a type of food.",
    "a centered satellite photo of {}.",
    "{}",
]
NAMES = ["cat", "Annual Crop Land", "737-300", "犬", "7", "déjà vu"]


def clean_texts(name: str, template: str) -> str:
    return template.replace("{}", name)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", NAMES)
def test_perturbed_texts_differ_mildly(name: str, template: str) -> None:
    clean = clean_texts(name, template)
    texts = [perturb_class_text(name, [template], random.Random(seed)) for seed in range(200)]
    assert clean not in texts
    assert texts == [perturb_class_text(name, [template], random.Random(seed)) for seed in range(200)]
    assert len(set(texts)) > 5 or len(clean) < 4
    for text in texts:
        typo = abs(len(text) - len(clean)) <= 1
        assert typo or name in text, text


def test_typos() -> None:
    rng = random.Random(0)
    for _ in range(100):
        assert sorted(swap_letters("photo", rng)) == sorted("photo")
        assert len(drop_letter("photo", rng)) == 4
        assert len(insert_letter("photo", rng)) == 6
        typed = mistype_letter("photo", rng)
        assert sum(a != b for a, b in zip(typed, "photo", strict=True)) == 1
    assert mistype_letter("犬", rng) == "犬"


def test_paraphrase_keeps_the_article_and_the_place_of_the_name() -> None:
    for seed in range(50):
        assert " of a {}." in paraphrase("a photo of a {}.", random.Random(seed))
        assert "an {}" in paraphrase("look at an {} now", random.Random(seed))
        assert paraphrase("a photo of {}.", random.Random(seed)) != "a photo of {}."


def test_every_edit_is_drawn() -> None:
    texts = {perturb_class_text("cat", ["a photo of a {}."], random.Random(seed)) for seed in range(300)}
    assert {"a picture of a cat.", "photo of a cat.", "a photo of a act."} <= texts


@pytest.mark.parametrize("source", ["text", "descriptions", "gaussian", ["gaussian", "text"]])
def test_pipeline_written_out(source: str, tokenizer: CLIPTokenizer) -> None:
    """Noise prompts and perturbed features again, step by step, from the reference's text encoder."""
    descriptions = {name: [f"{name} {word}" for word in ("one", "two", "three", "four", "five")] for name in CLASSES}
    clip = make_clip(dtype=torch.float64)
    settings: Any = {"noise_source": source, "descriptions": descriptions, "noise_scale": 0.5, "noise_seed": 3}
    model = adapted(dtype=torch.float64, **settings)

    def encode(texts: list[str]) -> Tensor:
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            return reference.normalize(reference.encode_text(clip, tokens.input_ids, tokens.attention_mask, None))

    clean = encode([f"a photo of a {name}." for name in CLASSES])
    draws: dict[str, list[Tensor]] = {name: [] for name in CLASSES}
    points: list[Tensor] = []
    for kind in [source] if isinstance(source, str) else source:
        for index, name in enumerate(CLASSES):
            if kind == "text":
                rngs = [random.Random(f"3-{name}-{draw}") for draw in range(4)]
                extra = encode([perturb_class_text(name, ["a photo of a {}."], rng) for rng in rngs])
            elif kind == "descriptions":
                extra = encode(random.Random(f"3-{name}-descriptions").sample(descriptions[name], 4))
            else:
                generator = torch.Generator().manual_seed(random.Random(f"3-{name}-gaussian").getrandbits(63))
                extra = reference.normalize(torch.randn(4, clean.shape[1], generator=generator).double())
            fused = [reference.normalize(clean[index] + 0.5 * row) for row in extra]
            draws[name].extend(fused)
            points.extend(fused)
    means = torch.stack([reference.normalize(torch.stack(rows).mean(dim=0)) for rows in draws.values()])
    head = model.visual_projection
    torch.testing.assert_close(head.anprompt_clean_features["default"], clean, rtol=0, atol=1e-10)
    torch.testing.assert_close(head.anprompt_perturbed_features["default"], means, rtol=0, atol=1e-10)
    centroids = KMeans(4, n_init=10, random_state=3).fit(torch.stack(points).numpy()).cluster_centers_
    ours = sorted(head.anprompt_noise_prompts["default"].tolist())
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(sorted(centroids.tolist())), rtol=0, atol=1e-10)


def test_draws_do_not_depend_on_the_other_classes() -> None:
    for source in ("text", "gaussian"):
        few = adapted(dtype=torch.float64, noise_source=source)
        names = ["red bird", *reversed(CLASSES)]
        more = adapted(dtype=torch.float64, noise_source=source, class_names=names)
        rows = few.visual_projection.anprompt_perturbed_features["default"]
        other = more.visual_projection.anprompt_perturbed_features["default"][1:].flip(0)
        torch.testing.assert_close(rows, other, rtol=0, atol=1e-12)


def test_the_frozen_clip_is_asked_without_dropout_and_left_as_it_was(tokenizer: CLIPTokenizer) -> None:
    """In training mode, with dropout in the attention; modules in evaluation mode by themselves stay in it."""
    expected = adapted().visual_projection
    clip = make_clip(attention_dropout=0.5).train()
    clip.text_model.encoder.layers[1].eval()
    modes = [(module, module.training) for module in clip.modules()]
    assert {training for _, training in modes} == {True, False}
    ids = tokenizer(["a photo of a cat."], return_tensors="pt").input_ids
    assert not torch.equal(clip.get_text_features(ids).pooler_output, clip.get_text_features(ids).pooler_output)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "transformers .* builds CLIP's encoder layers in a way unknown here")
        model = get_peft_model(clip, make_config())
    assert [module.training for module, _ in modes] == [training for _, training in modes]
    for name in ("anprompt_noise_prompts", "anprompt_clean_features", "anprompt_perturbed_features"):
        assert torch.equal(getattr(model.visual_projection, name)["default"], getattr(expected, name)["default"])


def test_the_frozen_clip_is_left_as_it_was_by_a_failure(
    tokenizer: CLIPTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip().train()

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(clip, "get_text_features", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        features.frozen_text_features(clip, tokenizer(["a cat"], return_tensors="pt").input_ids)
    assert all(module.training for module in clip.modules())


def test_frozen_features_take_many_texts(tokenizer: CLIPTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks, without gradients, normalised, at least float32; an adapter in the model plays no part."""
    ids = tokenizer(["a cat", "a red dog", "one bird"] * 3, padding=True, return_tensors="pt").input_ids
    expected = reference.normalize(reference.encode_text(make_clip(dtype=torch.float64), ids, None, None)).detach()
    monkeypatch.setattr(features, "TEXT_CHUNK", 4)
    model = adapted(dtype=torch.float64)
    rows = features.frozen_text_features(model.base_model.model, ids)
    assert not rows.requires_grad
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-12)
    half = features.frozen_text_features(make_clip(dtype=torch.bfloat16), ids)
    assert not half.requires_grad, "though every weight of a plain CLIP wants gradients"
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), expected, rtol=0, atol=0.05)


def test_noise_is_repeatable_and_seeded() -> None:
    first, again, other = (
        adapted(noise_seed=seed).visual_projection.anprompt_noise_prompts["default"] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_long_perturbed_texts_are_cut_but_class_texts_are_not(tokenizer: CLIPTokenizer) -> None:
    """A typo can push a text that just fits over the context; the pipeline must not fail on it."""
    words = 3
    while len(tokenizer("a photo of a {}, " + "red " * (words + 1) + "small fish.")["input_ids"]) <= 48:
        words += 1
    model = adapted(template="a photo of a {}, " + "red " * words + ".", noise_draws=32)
    assert model.visual_projection.anprompt_noise_prompts["default"].isfinite().all()


def test_cluster_counts_distinct_features() -> None:
    points = torch.eye(6)[[0, 0, 1, 1, 2]]
    assert noise.cluster(points, 3, seed=0).shape == (3, 6)
    with pytest.raises(ValueError, match=r"distinct perturbed features \(3\)"):
        noise.cluster(points, 4, seed=0)
    assert noise.cluster(points, 0, seed=0).shape == (0, 6)


def test_noise_prompts_are_frozen(pixels: Tensor) -> None:
    model = adapted()
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "anprompt" in name}
    assert {name.split(".")[-2] for name in before} == {
        "anprompt_noise_prompts", "anprompt_clean_features", "anprompt_perturbed_features", "anprompt_class_ids"
    }  # fmt: skip
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(pixel_values=pixels, labels=torch.tensor([0, 1, 2])).loss.backward()
    optimizer.step()
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers() if name in before)


def test_two_templates_are_averaged_and_normalised() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.6, 0.8]])
    half = 0.5**0.5
    torch.testing.assert_close(features.ensemble(rows, 2), torch.tensor([[half, half], [0.6, 0.8]]))
    assert features.ensemble(rows, 1) is rows


def test_normalize_by_hand() -> None:
    batch = torch.tensor([[[3.0, 4.0], [0.0, -2.0]], [[5.0, 12.0], [1.0, 0.0]]])
    expected = torch.tensor([[[0.6, 0.8], [0.0, -1.0]], [[5 / 13, 12 / 13], [1.0, 0.0]]])
    torch.testing.assert_close(features.normalize(batch), expected)


def test_class_means_by_hand() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [0.0, 1.0]])
    expected = features.normalize(torch.tensor([[1.0, 1.0], [0.6, 0.8], [0.0, 1.0]]))
    torch.testing.assert_close(noise.class_means(rows, torch.tensor([0, 1, 0, 2]), 3), expected)


def test_draws_of_several_sources_count_alike(tokenizer: CLIPTokenizer) -> None:
    """Fewer descriptions than draws are all taken; a class with more gets as many as there are draws."""
    described = {"cat": ["fur"], "dog": ["a red dog", "one dog"], "small fish": ["a", "b", "c", "d", "e", "f"]}
    config = make_config(noise_source=["descriptions", "gaussian"], descriptions=described, noise_draws=4)
    config.resolve(make_clip().config)
    clip = make_clip(dtype=torch.float64)
    input_ids = tokenize_classes(CLASSES, config.templates, tokenizer, clip.config)
    classes = ClassSet(tuple(CLASSES), tuple(config.templates), input_ids, tokenizer)
    clean, perturbed, draws = noise.text_targets(clip, classes, config)
    assert draws.shape == (1 + 2 + 4 + 3 * 4, 24)
    assert not draws.requires_grad
    owners = [0, 1, 1, 2, 2, 2, 2, *[0] * 4, *[1] * 4, *[2] * 4]
    for index in range(3):
        rows = draws[[at for at, owner in enumerate(owners) if owner == index]]
        torch.testing.assert_close(perturbed[index], reference.normalize(rows.mean(dim=0)), rtol=0, atol=1e-12)
    lengths = torch.stack([clean, perturbed]).norm(dim=-1), draws.norm(dim=-1)
    assert all(torch.allclose(length, torch.ones_like(length)) for length in lengths)


def test_noise_needs_weights(clip: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match=r"on the meta device\. Load it first"):
        get_peft_model(clip.to("meta"), make_config())


def test_clusters_are_the_means_of_what_lies_together() -> None:
    """Found from every start: of three tight groups far apart."""
    centers = torch.tensor([[10.0, 0.0], [0.0, 10.0], [-10.0, -10.0]], dtype=torch.float64)
    points = (centers[:, None] + torch.tensor([[0.5, 0.0], [-0.5, 0.0], [0.0, 0.75]])).flatten(0, 1)
    for seed in range(5):
        found = noise.cluster(points, 3, seed)
        expected = (centers + torch.tensor([0.0, 0.25]))[[2, 1, 0]]
        torch.testing.assert_close(found[found[:, 0].argsort()], expected, rtol=0, atol=1e-12)
        assert noise.cluster(points.float(), 3, seed).dtype == torch.float32
