"""The forward, the three logits, every loss term and every gradient, against the plain reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPTokenizer
from transformers.models.clip import modeling_clip
from transformers.models.metaclip_2 import modeling_metaclip_2
from transformers.models.siglip import modeling_siglip

import reference
from anprompt_peft.fast.savings import Savings
from anprompt_peft.method.families import FAMILIES, family_of
from helpers import (
    CLASSES,
    CONTEXT,
    LABELS,
    adapted,
    assert_exact,
    count_calls,
    logits,
    make_clip,
    make_model,
    scatter,
    tokenizer_of,
    trainable,
)
from oracle import reference_adapter, reference_outputs

OTHERS = [each for each in FAMILIES if each != "clip"]
NO_PROMPTS: dict[str, Any] = {"num_virtual_tokens": 0, "num_noise_tokens": 0, "text_update_rank": None}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "add": {"noise_integration": "add", "num_virtual_tokens": 3, "num_noise_tokens": 3},
    "mixing": {"prompt_mixing": 0.3},
    "layers differ, with gaps": {"text_layers": [1, 3], "vision_layers": [2, 3, 5], "prompt_mixing": 0.8},
    "one layer, not the last": {"text_layers": [2], "vision_layers": [4]},
    "the last layer only": {"text_layers": [4], "vision_layers": 1},
    "every layer": {"text_layers": 4, "vision_layers": 5},
    "text updates": {"text_update_rank": 3},
    "text updates with gaps": {"text_update_rank": 2, "text_layers": [1, 3]},
    "attention updates": {"vision_lora_rank": 2, "text_lora_rank": 3},
    "attention updates of images": {"vision_lora_rank": 3, "text_update_rank": None, "vision_layers": [2, 4]},
    "attention updates alone": {**NO_PROMPTS, "vision_lora_rank": 2, "text_lora_rank": 3},
    "attention updates of images alone": {**NO_PROMPTS, "vision_lora_rank": 2},
    "all updates alone": {**NO_PROMPTS, "vision_lora_rank": 2, "text_lora_rank": 3, "text_update_rank": 2},
    "text updates alone": {**NO_PROMPTS, "text_update_rank": 3},
    "low rank": {"projection_rank": 2, "prototype_rank": 3},
    "latent dim, fixed map": {"latent_dim": 10},
    "latent dim, learned map": {"latent_dim": 40, "noise_map": "learned"},
    "no noise (MMRL)": {"num_noise_tokens": 0},
    "no learnable tokens": {"num_virtual_tokens": 0},
    "template ensemble": {"template": ["a photo of a {}.", "an image of one small {}, red.", "{}"]},
    "other weights": {"alpha": 0.25, "similarity_weight": 3.0, "waloss_weight": 0.5, "noise_scale": 1.0},
}


@pytest.fixture(autouse=True)
def _double_precision_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let eager attention take its softmax in float64; transformers' own rounds it to float32."""

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        scores = query @ key.mT * scaling
        weights = (scores if mask is None else scores + mask).softmax(dim=-1)
        return (weights @ value).transpose(1, 2).contiguous(), None

    for module in (modeling_clip, modeling_metaclip_2, modeling_siglip):
        monkeypatch.setattr(module, "eager_attention_forward", attend)


def reference_clip(model: Any) -> Any:
    """A plain model with the weights of the model's base, read out of the adapted model."""
    weights = {
        name.removeprefix("base_model.model.").replace("base_layer.", ""): tensor.clone()
        for name, tensor in model.state_dict().items()
        if "anprompt_" not in name
    }
    plain = family_of(model).model(model.config).double().eval()
    plain.load_state_dict(weights)
    return plain


WAYS = [
    *((variant, attention, Savings()) for variant in VARIANTS for attention in ("sdpa", "eager")),
    *((variant, "sdpa", Savings.none()) for variant in ("default", "layers differ, with gaps", "low rank")),
    *((variant, way, Savings.none()) for variant in VARIANTS if "updates" in variant for way in ("sdpa", "eager")),
]
OF_FAMILIES = [
    *(("clip", *way) for way in WAYS),
    *(
        (family, variant, attention, savings)
        for family in OTHERS
        for variant in ("default", "layers differ, with gaps", "attention updates", "low rank", "template ensemble")
        for attention, savings in (("sdpa", Savings()), ("eager", Savings.none()))
    ),
]


@pytest.mark.parametrize(
    ("family", "variant", "attention", "savings"),
    OF_FAMILIES,
    ids=[
        "-".join((*(() if family == "clip" else (family,)), variant, way, *(() if saved.decomposed else ("plain",))))
        for family, variant, way, saved in OF_FAMILIES
    ],
)
def test_classes_and_losses(family: str, variant: str, attention: str, savings: Savings, pixels: Tensor) -> None:
    """Plain is the model's own forward, layer by layer."""
    settings = VARIANTS[variant]
    model = adapted(make_model(family, attention, torch.float64), **settings)
    model.set_savings(savings)
    output = model(pixel_values=pixels.double(), labels=LABELS)

    plain, adapter = reference_clip(model), reference_adapter(model)
    templates = model.peft_config["default"].templates
    texts = [template.format(name) for name in CLASSES for template in templates]
    tokens = tokenizer_of(family)(texts, padding="max_length", max_length=CONTEXT, return_tensors="pt")
    head = model.head
    expected = reference_outputs(
        plain, adapter, pixels.double(), tokens, LABELS, head.anprompt_perturbed_features["default"], len(templates)
    )
    prompted = settings.get("num_virtual_tokens") != 0 or settings.get("num_noise_tokens") != 0
    for name in ("logits_class", "logits_fused", "loss", *(["logits_prototype"] if prompted else [])):
        assert_exact(output[name], expected[name])
    for name, term in output.loss_terms.items():
        assert_exact(term, expected[name].detach())
    of_prototypes = {"cross_entropy_prototype", "waloss"} if prompted else set()
    assert set(output.loss_terms) == {"cross_entropy_class", "similarity_image", "similarity_text", *of_prototypes}

    weights = trainable(model)
    ours = torch.autograd.grad(output.loss, list(weights.values()))
    theirs = torch.autograd.grad(expected["loss"], list(weights.values()))
    for name, mine, other in zip(weights, ours, theirs, strict=True):
        assert other.abs().max() > 0, name
        assert_exact(mine, other, name)


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "unpadded"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "variant",
    ["default", "layers differ, with gaps", "the last layer only", "attention updates", "all updates alone"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_clip_form(family: str, variant: str, attention: str, padded: bool, pixels: Tensor) -> None:
    model, tokenizer = adapted(make_model(family, attention, torch.float64), **VARIANTS[variant]), tokenizer_of(family)
    texts = ["a cat", "a photo of one red bird and a very small dog."] if padded else ["a red cat", "a cat red"]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    assert bool((tokens.attention_mask == 0).any()) is padded
    output = model(**tokens, pixel_values=pixels.double())

    plain, adapter = reference_clip(model), reference_adapter(model)
    text = reference.encode_text(plain, tokens.input_ids, tokens.attention_mask, adapter)
    image, _ = reference.encode_image(plain, pixels.double(), adapter)
    assert_exact(model.get_text_features(**tokens).pooler_output, text)
    assert_exact(model.get_image_features(pixels.double()).pooler_output, image)
    expected = plain.logit_scale.exp() * reference.normalize(image) @ reference.normalize(text).T
    expected = expected + getattr(plain, "logit_bias", 0.0)
    assert_exact(output.logits_per_image, expected)

    probe = torch.randn(expected.shape, dtype=torch.float64)
    weights = {name: weight for name, weight in trainable(model).items() if "prototype" not in name}
    ours = torch.autograd.grad((probe * output.logits_per_image).sum(), list(weights.values()))
    theirs = torch.autograd.grad((probe * expected).sum(), list(weights.values()))
    for name, mine, other in zip(weights, ours, theirs, strict=True):
        assert other.abs().max() > 0, name
        assert_exact(mine, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_prompts_is_clip_bit_for_bit(family: str, pixels: Tensor) -> None:
    clip, tokenizer = make_model(family).requires_grad_(False), tokenizer_of(family)  # torch's pooling rounds by that
    given: Any = {"padding": "max_length", "max_length": CONTEXT} if family == "siglip" else {"padding": True}
    texts = [f"a photo of a {name}." for name in CLASSES]
    tokens = tokenizer(texts, return_tensors="pt", return_attention_mask=family != "siglip", **given)
    with torch.no_grad():
        expected = clip(**tokens, pixel_values=pixels)
    model = adapted(clip, **NO_PROMPTS)
    assert not trainable(model)
    with torch.no_grad():
        output = model(pixel_values=pixels, labels=LABELS)
        same = model(**tokens, pixel_values=pixels)
    assert torch.equal(output.logits, expected.logits_per_image)
    assert torch.equal(same.logits_per_image, expected.logits_per_image)
    assert output.logits_prototype is None
    assert set(output.loss_terms) == {"cross_entropy_class", "similarity_image", "similarity_text"}
    assert output.loss_terms["similarity_image"].abs() < 1e-6


def test_no_noise_prompts_is_mmrl(pixels: Tensor) -> None:
    """Without noise prompts the noise settings do not touch the logits."""
    first = adapted(num_noise_tokens=0)
    second = adapted(num_noise_tokens=0, noise_seed=5, noise_scale=2.0, noise_source="gaussian")
    second.load_state_dict(
        {**second.state_dict(), **{k: v for k, v in first.state_dict().items() if "features" not in k}}
    )
    with torch.no_grad():
        assert torch.equal(first(pixel_values=pixels).logits_fused, second(pixel_values=pixels).logits_fused)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "unpadded"])
def test_text_stays_causal(attention: str, padded: bool, tokenizer: CLIPTokenizer) -> None:
    model = adapted(make_clip(attention), text_layers=[2, 4])
    ids = torch.randint(300, (2, 9))
    ids[:, -1] = tokenizer.eos_token_id
    mask = torch.ones_like(ids)
    if padded:
        mask[0, 7:] = 0
    with torch.no_grad():
        before = model.text_model(input_ids=ids, attention_mask=mask).last_hidden_state
        for position in range(1, 9):
            changed = ids.clone()
            changed[:, position] = (changed[:, position] + 1) % 300
            after = model.text_model(input_ids=changed, attention_mask=mask).last_hidden_state
            torch.testing.assert_close(after[:, :position], before[:, :position], rtol=0, atol=1e-6)
            assert not torch.allclose(after[1, position], before[1, position], atol=1e-4)


def test_nothing_after_the_end_of_text_matters(tokenizer: CLIPTokenizer) -> None:
    model = adapted(dtype=torch.float64)
    ids = tokenizer("a photo of a cat.", return_tensors="pt").input_ids
    longer = torch.cat([ids, torch.randint(300, (1, 7))], dim=1)
    with torch.no_grad():
        short_features = model.get_text_features(ids).pooler_output
        assert_exact(model.get_text_features(longer).pooler_output, short_features)


@pytest.mark.parametrize("savings", [Savings(), Savings.none()], ids=["decomposed", "plain"])
@pytest.mark.parametrize(
    "settings", [{}, {"inference_logits": "ensemble", "frozen_share": 0.25}], ids=["auto", "asked"]
)
def test_the_frozen_clip_takes_part_for_other_classes(
    settings: dict[str, Any], savings: Savings, tokenizer: CLIPTokenizer, pixels: Tensor
) -> None:
    model = adapted(dtype=torch.float64, **settings)
    model.set_savings(savings)
    plain, adapter = reference_clip(model), reference_adapter(model)
    share, images = model.peft_config["default"].frozen_share, pixels.double()

    def ensemble(names: list[str]) -> Tensor:
        tokens = tokenizer([f"a photo of a {name}." for name in names], padding=True, return_tensors="pt")
        adapted, frozen = (
            reference.normalize(reference.encode_image(plain, images, each)[0])
            @ reference.normalize(reference.encode_text(plain, tokens.input_ids, None, each)).T
            for each in (adapter, None)
        )
        return plain.logit_scale.exp() * ((1 - share) * adapted + share * frozen)

    with torch.no_grad():
        for names in (["cat", "red bird"], ["dog", "picture", "small cat"]):
            model.set_classes(names)
            assert_exact(model(pixel_values=images).logits, ensemble(names))
            assert_exact(model(pixel_values=images, labels=LABELS % 2).logits, ensemble(names))
        model.set_classes(None)
        trained = model(pixel_values=images)
        assert_exact(trained.logits, ensemble(CLASSES) if settings else trained.logits_fused)
        assert model.train()(pixel_values=images).logits_ensemble is None


def test_no_frozen_share_leaves_class_logits_and_costs_nothing(pixels: Tensor) -> None:
    model = adapted(frozen_share=0.0)
    model.set_classes(["cat", "red bird"])
    passes = count_calls(model.vision_model.post_layernorm)
    with torch.no_grad():
        output = model(pixel_values=pixels)
    assert torch.equal(output.logits, output.logits_class)
    assert output.logits_ensemble is None
    assert passes.count(len(pixels)) == 2  # class tokens and prompts


def test_the_clean_features_follow_the_classes_and_the_weights(pixels: Tensor) -> None:
    model = adapted()
    model.set_classes(["red bird", "cat"])
    turned = logits(model, pixels)
    model.set_classes(["cat", "red bird"])
    torch.testing.assert_close(logits(model, pixels), turned.flip(1))
    with torch.no_grad():
        model.text_projection.weight.mul_(-1)
    torch.testing.assert_close(logits(model, pixels), -turned.flip(1))


def test_the_clean_features_outlive_changes_of_the_adapter(pixels: Tensor) -> None:
    model = adapted()
    model.set_classes(["red bird", "cat"])
    passes = count_calls(model.text_projection)
    before = logits(model, pixels)
    assert passes == [2, 2]
    after = logits(scatter(model), pixels)
    assert passes == [2, 2, 2], "the prompted texts alone"
    assert not torch.allclose(after, before)


def test_noise_prompts_count_only_through_their_products(pixels: Tensor) -> None:
    """Turned noise prompts with turned tokens and maps give the same training: docs/ablations.md."""
    losses = []
    for turned in (False, True):
        model = adapted(dtype=torch.float64)
        prompts = [*model.visual_projection.anprompt_tokens.values()]
        prompts += [*model.visual_projection.anprompt_noise_prompts.values()]
        maps = [each for name, each in trainable(model).items() if "anprompt_projection" in name and each.dim() == 2]
        width = prompts[0].shape[1]
        turn = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)).double())[0]
        if turned:
            with torch.no_grad():
                for rows in (*prompts, *maps):
                    rows.copy_(rows @ turn)
        optimizer = torch.optim.SGD(trainable(model).values(), lr=0.1, momentum=0.9, weight_decay=0.01)
        for _ in range(3):
            loss = model(pixel_values=pixels.double(), labels=LABELS).loss
            losses.append(loss.detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert losses[0] > losses[2] + 0.01
    for first, second in zip(losses[:3], losses[3:], strict=True):
        assert_exact(first, second)
