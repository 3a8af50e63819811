"""What an adapter is before its first step: initial weights, the fixed noise map, buffers; and who may change it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from anprompt_peft.method.layer import ANPromptLayer, LowRank
from helpers import CLASSES, make_clip, make_config, trainable


def new(clip: CLIPModel, tokenizer: CLIPTokenizer, **settings: Any) -> Any:
    """An adapted model as it comes, untrained."""
    return get_peft_model(clip, make_config(tokenizer, **settings)).eval()


def target_layers(model: Any) -> list[ANPromptLayer]:
    """The layers that the default adapter puts prompts into."""
    wrapped = [module for module in model.modules() if isinstance(module, ANPromptLayer)]
    return [layer for layer in wrapped if "default" in layer.anprompt_projection]


def noise_prompts(model: Any) -> Tensor:
    return model.visual_projection.anprompt_noise_prompts["default"]


def test_low_rank_starts_as_nothing_and_becomes_an_update_of_its_rank() -> None:
    module = LowRank(7, 5, 2)
    inputs = torch.randn(3, 7)
    assert torch.equal(module(inputs), torch.zeros(3, 5))
    with torch.no_grad():
        module.up.normal_()
    update = module(torch.eye(7)).T
    assert torch.linalg.matrix_rank(update) == 2
    torch.testing.assert_close(module(inputs), inputs @ update.T)


def test_low_rank_prompts_start_as_those_of_the_shared_map(clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    model = new(clip, tokenizer, projection_rank=2)
    head = model.visual_projection
    assert [(layer.tower, layer.number) for layer in target_layers(model)] == [
        ("text", 3), ("text", 4), ("vision", 4), ("vision", 5)
    ]  # fmt: skip
    for layer in target_layers(model):
        shared = getattr(head, f"anprompt_{layer.tower}_map")["default"]
        assert torch.equal(layer.project("default"), shared(head.prompts("default")))


@pytest.mark.parametrize("rank", [None, 3])
def test_the_prototype_starts_as_the_frozen_visual_projection(
    rank: int | None, clip: CLIPModel, tokenizer: CLIPTokenizer
) -> None:
    """Of the mean prompt; training it leaves CLIP's own projection alone."""
    model = new(clip, tokenizer, prototype_rank=rank)
    head = model.visual_projection
    rows = torch.randn(2, 9, 48)
    frozen = head.base_layer.weight.clone()
    torch.testing.assert_close(head.prototype(rows, "default"), rows.mean(dim=1) @ frozen.T)
    with torch.no_grad():
        for name, weight in trainable(model).items():
            if "prototype" in name:
                weight.add_(1.0)
    assert torch.equal(head.base_layer.weight, frozen)
    assert torch.equal(head(rows[:, 0]), rows[:, 0] @ frozen.T)
    assert (head.prototype(rows, "default") - rows.mean(dim=1) @ frozen.T).abs().max() > 0.1


def test_the_prototype_copies_a_half_precision_projection(tokenizer: CLIPTokenizer) -> None:
    model = new(make_clip(dtype=torch.bfloat16), tokenizer)
    (copied,) = (weight for name, weight in trainable(model).items() if "prototype" in name)
    assert copied.dtype == torch.float32
    assert torch.equal(copied, model.visual_projection.base_layer.weight.float())


def test_tokens_start_small(clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """N(0, 0.02), as the paper's relatives have it."""
    model = new(clip, tokenizer, num_virtual_tokens=100, latent_dim=400)
    (tokens,) = (weight for name, weight in trainable(model).items() if "tokens" in name)
    assert tokens.shape == (100, 400)
    assert tokens.std().item() == pytest.approx(0.02, rel=0.02)
    assert tokens.mean().item() == pytest.approx(0.0, abs=4e-4)
    assert (tokens.abs() > 0.04).float().mean().item() == pytest.approx(0.0455, rel=0.1), "normal, not uniform"


def test_low_rank_residuals_start_small() -> None:
    module = LowRank(400, 5, 100)
    assert module.down.std().item() == pytest.approx(0.02, rel=0.02)
    assert module.down.mean().item() == pytest.approx(0.0, abs=4e-4)


def fixed_map(tokenizer: CLIPTokenizer, latent_dim: int, seed: int) -> Tensor:
    """The matrix that took 24 independent noise prompts to the latent dim, solved for."""
    settings: dict[str, Any] = {"num_noise_tokens": 24, "noise_draws": 10, "noise_scale": 1.0, "noise_seed": seed}
    settings["noise_source"] = "gaussian"
    plain = noise_prompts(new(make_clip(dtype=torch.float64), tokenizer, **settings))
    mapped = noise_prompts(new(make_clip(dtype=torch.float64), tokenizer, **settings, latent_dim=latent_dim))
    assert plain.shape == (24, 24)
    assert mapped.shape == (24, latent_dim)
    return torch.linalg.solve(plain, mapped)


@pytest.mark.parametrize("latent_dim", [10, 23, 25, 40])
def test_the_fixed_map_is_orthogonal_and_seeded(latent_dim: int, tokenizer: CLIPTokenizer) -> None:
    """Into more dimensions it changes no angle and no length; into fewer it is a projection."""
    found = fixed_map(tokenizer, latent_dim, 0)
    gram = found @ found.T if latent_dim > 24 else found.T @ found
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(fixed_map(tokenizer, latent_dim, 0), found, rtol=0, atol=1e-9)
    assert (fixed_map(tokenizer, latent_dim, 1) - found).abs().max() > 0.1


def test_maps_are_made_only_where_they_are_needed(tokenizer: CLIPTokenizer) -> None:
    def parts(**settings: Any) -> set[str]:
        names = trainable(new(make_clip(), tokenizer, **settings))
        return {
            name.split("visual_projection.anprompt_")[1].split(".")[0] for name in names if "_projection.a" in name
        }

    own, bare = {"tokens", "prototype"}, {"num_virtual_tokens": 0, "num_noise_tokens": 0}
    assert parts() == own
    assert parts(latent_dim=24, noise_map="learned") == own
    assert parts(latent_dim=40) == own
    assert parts(latent_dim=40, noise_map="learned") == own | {"noise_map"}
    assert parts(latent_dim=40, noise_map="learned", num_noise_tokens=0) == own
    assert parts(projection_rank=2) == own | {"text_map", "vision_map"}
    assert parts(num_virtual_tokens=0) == {"prototype"}
    assert parts(**bare, projection_rank=2, vision_lora_rank=2, text_lora_rank=2) == set()


def test_a_learned_map_takes_the_noise_prompts_as_they_are(tokenizer: CLIPTokenizer) -> None:
    plain = new(make_clip(), tokenizer)
    model = new(make_clip(), tokenizer, latent_dim=40, noise_map="learned")
    head = model.visual_projection
    assert torch.equal(noise_prompts(model), noise_prompts(plain))
    (weight,) = (weight for name, weight in trainable(model).items() if name.endswith("noise_map.default.weight"))
    (bias,) = (weight for name, weight in trainable(model).items() if name.endswith("noise_map.default.bias"))
    torch.testing.assert_close(head.prompts("default")[5:], noise_prompts(plain) @ weight.T + bias)


def test_buffers_are_empty_until_they_are_filled(tokenizer: CLIPTokenizer) -> None:
    """Shapes are those of the filled ones, so that weights load into them."""
    settings = {"template": ["a photo of a {}.", "{}"], "latent_dim": 10}
    empty = new(make_clip(), tokenizer, **settings, init_noise_prompts=False).visual_projection
    filled = new(make_clip(), tokenizer, **settings).visual_projection
    for name in ("noise_prompts", "clean_features", "perturbed_features", "class_ids"):
        before, after = (getattr(head, f"anprompt_{name}")["default"] for head in (empty, filled))
        assert before.shape == after.shape
        assert before.dtype == after.dtype
        assert bool((before == -1).all()) if name == "class_ids" else bool(before.isnan().all())
        assert after.isfinite().all()
        assert after.min() > -1
    assert filled.anprompt_class_ids["default"].shape == (6, 48)


@pytest.mark.parametrize("inference_mode", [False, True])
def test_an_adapter_for_inference_is_frozen(inference_mode: bool, clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    model = new(clip, tokenizer, projection_rank=2, inference_mode=inference_mode)
    adapter = {name for name, _ in model.named_parameters() if "anprompt_" in name}
    assert len(adapter) == 2 + 4 + 4 * 2 + 4 * 2, "the last of these are the four text layers' updates"
    assert set(trainable(model)) == (set() if inference_mode else adapter)


def test_class_ids_are_the_tokens_and_end_of_text_behind_them(clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    ids = new(clip, tokenizer).visual_projection.anprompt_class_ids["default"]
    for row, name in zip(ids.tolist(), CLASSES, strict=True):
        tokens = tokenizer(f"a photo of a {name}.")["input_ids"]
        assert row == tokens + [tokenizer.eos_token_id] * (48 - len(tokens))


def test_prompts_of_add_are_sums(clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    model = new(clip, tokenizer, noise_integration="add", num_virtual_tokens=3, num_noise_tokens=3)
    (tokens,) = (weight for name, weight in trainable(model).items() if "tokens" in name)
    assert torch.equal(model.visual_projection.prompts("default"), tokens + noise_prompts(model))


def test_weights_start_as_the_seed_says(tokenizer: CLIPTokenizer) -> None:
    """Layers do not share a start, and torch's seed decides on it."""

    def start(seed: int) -> dict[str, Tensor]:
        clip = make_clip()
        torch.manual_seed(seed)
        return trainable(new(clip, tokenizer))

    first, again, other = start(1), start(1), start(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    changed = {name for name in first if not torch.equal(first[name], other[name])}
    assert changed == {name for name in first if "prototype" not in name and not name.endswith("update.default.up")}
    maps = [weight for name, weight in first.items() if "text_model" in name and name.endswith("weight")]
    assert len(maps) == 2
    assert not torch.equal(*maps)
    assert all(0 < weight.abs().max() <= 1 / math.sqrt(24) for weight in maps), "torch's own start of nn.Linear"
