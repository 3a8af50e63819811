"""The reference is right: it equals transformers where CLIP is plain, and hand-made answers where it is not."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from reference import (
    Adapter,
    Maps,
    cross_entropy,
    encode_image,
    encode_text,
    eot_positions,
    normalize,
    place,
    prompts,
    reference_forward,
    text_mask,
    waloss,
)

VOCABULARY, LENGTH, LATENT, JOINT, DEPTH = 50, 9, 6, 12, 4
BOS, EOT = 48, 49  # EOT is the largest id, as in CLIP's vocabulary
TEXT_WIDTH, VISION_WIDTH = 32, 48


def make_clip(activation: str = "quick_gelu", eos_token_id: int = EOT) -> CLIPModel:
    """A small CLIP in float64, every parameter moved off its start so that biases and norms count."""
    layers = {"num_hidden_layers": DEPTH, "num_attention_heads": 4, "hidden_act": activation}
    config = CLIPConfig(
        text_config={
            **layers,
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 40,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 12,
            "bos_token_id": BOS,
            "eos_token_id": eos_token_id,
            "pad_token_id": 0,
        },
        vision_config={
            **layers,
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 56,
            "image_size": 16,
            "patch_size": 8,
        },
        projection_dim=JOINT,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    clip = CLIPModel(config).double().eval().requires_grad_(False)
    for name, parameter in clip.named_parameters():
        if name != "logit_scale":
            parameter.add_(0.1 * torch.randn_like(parameter))
    return clip


def make_text(padded: bool) -> tuple[Tensor, Tensor | None]:
    """Ids and mask: BOS, words, EOT, and after it padding by id 0 (mask 0), or nothing but words and no mask."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 40, (3, LENGTH), generator=generator)
    ids[:, 0] = BOS
    if not padded:
        ids[:, -1] = EOT
        return ids, None
    mask = torch.ones_like(ids)
    for row, end in enumerate([4, 6, LENGTH - 1]):
        ids[row, end], ids[row, end + 1 :], mask[row, end + 1 :] = EOT, 0, 0
    return ids, mask


def make_images() -> Tensor:
    return torch.randn(5, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def make_adapter(
    tokens: int = 2,
    noise: int = 3,
    text_layers: tuple[int, ...] = (2, 3),
    vision_layers: tuple[int, ...] = (2, 4),
    seed: int = 3,
) -> Adapter:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    def maps(layers: tuple[int, ...], width: int) -> Maps:
        return {layer: (normal(width, LATENT), normal(width)) for layer in layers}

    return Adapter(
        tokens=normal(tokens, LATENT),
        noise=normal(noise, LATENT),
        text_maps=maps(text_layers, TEXT_WIDTH),
        vision_maps=maps(vision_layers, VISION_WIDTH),
        prototype=normal(JOINT, VISION_WIDTH),
        text_updates={},
        matrices={},
    )


def make_targets() -> tuple[Tensor, Tensor, Tensor]:
    """Labels [5], w [3, d], u [3, d]."""
    generator = torch.Generator().manual_seed(4)
    clean, perturbed = torch.randn(2, 3, JOINT, dtype=torch.float64, generator=generator)
    return torch.tensor([0, 2, 1, 1, 0]), normalize(clean), normalize(perturbed)


def assert_same(actual: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=atol)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("eos_token_id", [2, EOT])
def test_plain_text_is_that_of_transformers(activation: str, padded: bool, eos_token_id: int) -> None:
    clip = make_clip(activation, eos_token_id)
    ids, mask = make_text(padded)
    assert_same(encode_text(clip, ids, mask, None), clip.get_text_features(ids, attention_mask=mask).pooler_output)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_plain_image_is_that_of_transformers(activation: str) -> None:
    clip, images = make_clip(activation), make_images()
    features, prototype = encode_image(clip, images, None)
    assert prototype is None
    assert_same(features, clip.get_image_features(images).pooler_output)


def test_plain_padding_mask_is_that_of_transformers() -> None:
    """A mask that hides words before the EOT changes the answer, and does so as in transformers."""
    clip = make_clip()
    ids, mask = make_text(padded=True)
    assert mask is not None
    mask[:, 2] = 0
    features = encode_text(clip, ids, mask, None)
    assert_same(features, clip.get_text_features(ids, attention_mask=mask).pooler_output)
    assert not torch.allclose(features, encode_text(clip, ids, None, None))


def test_eot_positions() -> None:
    ids = torch.tensor([[48, 5, 49, 49], [48, 2, 7, 49]])
    assert eot_positions(ids, 49).tolist() == [2, 3]
    assert eot_positions(ids, 7).tolist() == [0, 2]
    assert eot_positions(ids, 2).tolist() == [2, 3]  # legacy: the largest id, not the id 2


def test_float32_stays_float32() -> None:
    clip, adapter = make_clip().float(), make_adapter()
    adapter = replace(
        adapter,
        tokens=adapter.tokens.float(),
        noise=adapter.noise.float(),
        text_maps={layer: (w.float(), b.float()) for layer, (w, b) in adapter.text_maps.items()},
        vision_maps={layer: (w.float(), b.float()) for layer, (w, b) in adapter.vision_maps.items()},
        prototype=adapter.prototype.float(),
    )
    labels, clean, perturbed = make_targets()
    out = reference_forward(
        clip, adapter, make_images().float(), *make_text(True), labels, clean.float(), perturbed.float()
    )
    assert {value.dtype for value in out.values()} == {torch.float32}


def test_prompts() -> None:
    adapter = make_adapter(tokens=2, noise=2)
    assert torch.equal(prompts(adapter)[:2], adapter.tokens)
    assert torch.equal(prompts(adapter)[2:], adapter.noise)
    assert torch.equal(prompts(replace(adapter, integration="add")), adapter.tokens + adapter.noise)
    with pytest.raises(ValueError, match="one shape"):
        prompts(replace(make_adapter(tokens=1, noise=2), integration="add"))
    with pytest.raises(ValueError, match="integration"):
        prompts(replace(adapter, integration="multiply"))


def test_place_by_hand() -> None:
    hidden = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])
    once = place(hidden, torch.tensor([[10.0], [20.0]]), present=0, mixing=0.25)
    assert once[..., 0].tolist() == [[1, 10, 20, 2, 3], [4, 10, 20, 5, 6]]
    again = place(once, torch.tensor([[30.0], [40.0]]), present=2, mixing=1.0)
    assert again[..., 0].tolist() == [[1, 30, 40, 2, 3], [4, 30, 40, 5, 6]]
    mixed = place(once, torch.tensor([[30.0], [40.0]]), present=2, mixing=0.25)
    assert mixed[..., 0].tolist() == [[1, 15, 25, 2, 3], [4, 15, 25, 5, 6]]


def test_text_mask_by_hand() -> None:
    mask = text_mask(torch.tensor([[1, 1, 0]]), inserted=1, dtype=torch.float64)
    off = -math.inf
    assert mask[0, 0].tolist() == [[0, off, off, off], [0, 0, off, off], [0, 0, 0, off], [0, 0, 0, off]]
    with pytest.raises(ValueError, match="left padding"):
        text_mask(torch.tensor([[0, 1, 1]]), inserted=1, dtype=torch.float64)


def walk_text(clip: CLIPModel, ids: Tensor, mask: Tensor, adapter: Adapter) -> Tensor:
    """The prompted text encoder for targets 2 and 3 of 4, by transformers' own layers, one row at a time."""
    rows, layers, answers = prompts(adapter), clip.text_model.encoder.layers, []
    n = len(rows)
    for row, keep in zip(ids, mask, strict=True):
        hidden = layers[0](clip.text_model.embeddings(row[None]), blocked(keep.tolist()))
        grown = blocked([*keep[:1].tolist(), *[1] * n, *keep[1:].tolist()])
        for layer, start in ((2, 1), (3, 1 + n)):
            weight, bias = adapter.text_maps[layer]
            new = torch.stack([weight @ a + bias for a in rows])
            hidden = layers[layer - 1](torch.cat([hidden[0, :1], new, hidden[0, start:]])[None], grown)
        hidden = clip.text_model.final_layer_norm(layers[3](hidden, grown)[0])
        answers.append(clip.text_projection(hidden[n + row.tolist().index(EOT)]))
    return torch.stack(answers)


def blocked(keep: list[int]) -> Tensor:
    """The additive mask for one row, entry by entry."""
    size = range(len(keep))
    entries = [[0.0 if key <= query and keep[key] else -math.inf for key in size] for query in size]
    return torch.tensor(entries, dtype=torch.float64)[None, None]


def test_prompted_text_is_a_walk_through_the_layers_of_transformers() -> None:
    clip, adapter = make_clip(), make_adapter()
    ids, mask = make_text(padded=True)
    assert mask is not None
    assert_same(encode_text(clip, ids, mask, adapter), walk_text(clip, ids, mask, adapter))
    assert_same(encode_text(clip, ids, mask, replace(adapter, prompt_mixing=0.3)), walk_text(clip, ids, mask, adapter))


@pytest.mark.parametrize("mixing", [1.0, 0.3])
def test_prompted_image_is_a_walk_through_the_layers_of_transformers(mixing: float) -> None:
    """Targets 2 and 4 of 4: layer 3 keeps what layer 2 put out."""
    clip, images, adapter = make_clip(), make_images(), replace(make_adapter(), prompt_mixing=mixing)
    vision, rows = clip.vision_model, prompts(adapter)
    one, two, three, four = vision.encoder.layers
    hidden = one(vision.pre_layrnorm(vision.embeddings(images)), None)
    first, last = (rows @ weight.T + bias for weight, bias in (adapter.vision_maps[2], adapter.vision_maps[4]))
    hidden = torch.cat([hidden[:, :1], first.repeat(5, 1, 1), hidden[:, 1:]], dim=1)
    hidden = three(two(hidden, None), None)
    assert hidden.shape == (5, 1 + 5 + 4, VISION_WIDTH)
    hidden[:, 1:6] = mixing * last + (1 - mixing) * hidden[:, 1:6]
    hidden = vision.post_layernorm(four(hidden, None))
    features, prototype = encode_image(clip, images, adapter)
    assert prototype is not None
    assert_same(features, clip.visual_projection(hidden[:, 0]))
    assert_same(prototype, torch.einsum("bnv,dv->bd", hidden[:, 1:6], adapter.prototype) / 5)


def test_prompts_stand_after_the_first_text_position() -> None:
    """Causal: the first position never sees the prompts, the second does."""
    clip, adapter = make_clip(), make_adapter()
    first, second = torch.tensor([[EOT, 5, 6]]), torch.tensor([[BOS, EOT, 6]])
    assert_same(encode_text(clip, first, None, adapter), encode_text(clip, first, None, None))
    assert not torch.allclose(encode_text(clip, second, None, adapter), encode_text(clip, second, None, None))


def test_padding_and_later_ids_do_not_matter() -> None:
    clip, adapter = make_clip(), make_adapter()
    ids, mask = make_text(padded=True)
    whole = encode_text(clip, ids, mask, adapter)
    assert_same(whole[:1], encode_text(clip, ids[:1, :5], None, adapter))
    assert_same(whole[1:2], encode_text(clip, ids[1:2, :7], None, adapter))


def test_a_text_of_full_length_takes_prompts() -> None:
    clip, adapter = make_clip(), make_adapter()
    ids = torch.full((1, 12), 7)
    ids[0, 0], ids[0, -1] = BOS, EOT
    assert encode_text(clip, ids, None, adapter).shape == (1, JOINT)


def test_no_mixing_of_the_new_keeps_the_incoming() -> None:
    """With beta 0 the later targets count for nothing."""
    clip, images, adapter = make_clip(), make_images(), replace(make_adapter(), prompt_mixing=0.0)
    only = replace(adapter, vision_maps={2: adapter.vision_maps[2]}, prompt_mixing=1.0)
    for actual, expected in zip(encode_image(clip, images, adapter), encode_image(clip, images, only), strict=True):
        assert actual is not None
        assert expected is not None
        assert_same(actual, expected)


def test_layers_are_counted_from_one_and_bounded() -> None:
    clip = make_clip()
    ids, mask = make_text(padded=True)
    encode_text(clip, ids, mask, make_adapter(text_layers=(1, DEPTH)))
    for layer in (0, DEPTH + 1):
        with pytest.raises(ValueError, match="target layers"):
            encode_text(clip, ids, mask, make_adapter(text_layers=(layer,)))
        with pytest.raises(ValueError, match="target layers"):
            encode_image(clip, make_images(), make_adapter(vision_layers=(layer,)))


def test_zero_rows_leave_clip_bit_for_bit() -> None:
    clip, adapter, images = make_clip(), make_adapter(tokens=0, noise=0), make_images()
    ids, mask = make_text(padded=True)
    assert torch.equal(encode_text(clip, ids, mask, adapter), encode_text(clip, ids, mask, None))
    features, prototype = encode_image(clip, images, adapter)
    assert prototype is None
    assert torch.equal(features, encode_image(clip, images, None)[0])


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(4.0), 0.0]], dtype=torch.float64)
    expected = (math.log(4.0) + math.log(5.0)) / 2  # -log 1/4 and -log 1/5
    assert cross_entropy(logits, torch.tensor([0, 1])).item() == pytest.approx(expected, rel=1e-14)


def test_waloss_by_hand() -> None:
    """P = (1/2, 1/2), Q = (1/4, 3/4): KL(P||Q) = log 2 - log(3)/2; the logits' unbiased std is log(3)/sqrt(2)."""
    flat = torch.zeros(1, 2, dtype=torch.float64)
    logits_class = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert kl == pytest.approx(math.log(2) - math.log(3) / 2, rel=1e-14)
    scale = 1 / ((math.log(3) / math.sqrt(2) + 1e-6) * 2)
    assert waloss(flat, logits_class).item() == pytest.approx(scale * kl, rel=1e-13)
    # The other way round is another number: Q is flat, its std 0, and KL = (1/4) log(1/2) + (3/4) log(3/2).
    other = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert waloss(logits_class, flat).item() == pytest.approx(other / (1e-6 * 2), rel=1e-13)


def test_waloss_sums_over_all_entries() -> None:
    """The batch of two is the sum of both rows' divergences over std times 6, the std over all six entries."""
    perturbed, logits_class = [[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]], [[0.0, 1.0, 1.5], [-2.0, 0.3, 0.1]]
    total = 0.0
    for target, prediction in zip(perturbed, logits_class, strict=True):
        p_sum, q_sum = sum(map(math.exp, target)), sum(map(math.exp, prediction))
        for a, b in zip(target, prediction, strict=True):
            p, q = math.exp(a) / p_sum, math.exp(b) / q_sum
            total += p * (math.log(p) - math.log(q))
    entries = [entry for row in logits_class for entry in row]
    mean = sum(entries) / 6
    std = math.sqrt(sum((entry - mean) ** 2 for entry in entries) / 5)
    actual = waloss(torch.tensor(perturbed, dtype=torch.float64), torch.tensor(logits_class, dtype=torch.float64))
    assert actual.item() == pytest.approx(total / ((std + 1e-6) * 6), rel=1e-13)


def test_waloss_scale_is_in_the_graph() -> None:
    generator = torch.Generator().manual_seed(5)
    first, second = torch.randn(2, 2, 3, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(waloss, (first.requires_grad_(), second.requires_grad_()))


def test_forward_puts_the_terms_together() -> None:
    clip, images = make_clip(), make_images()
    adapter = replace(make_adapter(), alpha=0.6, similarity_weight=0.3, waloss_weight=2.5)
    ids, mask = make_text(padded=True)
    labels, clean, perturbed = make_targets()
    out = reference_forward(clip, adapter, images, ids, mask, labels, clean, perturbed)

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return torch.nn.functional.cosine_similarity(a, b, dim=-1)

    text = encode_text(clip, ids, mask, adapter)
    features, prototype = encode_image(clip, images, adapter)
    assert prototype is not None
    tau, frozen = math.exp(clip.logit_scale.item()), clip.get_image_features(images).pooler_output
    assert_same(out["logits_class"], tau * cosine(features[:, None], text[None]), atol=1e-11)
    assert_same(out["logits_prototype"], tau * cosine(prototype[:, None], text[None]), atol=1e-11)
    assert_same(out["logits_fused"], 0.6 * out["logits_class"] + 0.4 * out["logits_prototype"])
    assert_same(out["similarity_image"], 1 - cosine(features, frozen).mean())
    assert_same(out["similarity_text"], 1 - cosine(text, clean).mean())
    for name in ("class", "prototype"):
        expected = torch.nn.functional.cross_entropy(out[f"logits_{name}"], labels)
        assert_same(out[f"cross_entropy_{name}"], expected)
    target = torch.softmax(tau * cosine(prototype[:, None], perturbed[None]), dim=1)
    divergence = torch.nn.functional.kl_div(out["logits_class"].log_softmax(1), target, reduction="sum")
    assert_same(out["waloss"], divergence / (15 * (out["logits_class"].std() + 1e-6)))
    terms = {name: value.item() for name, value in out.items() if not name.startswith("logits")}
    assert terms.pop("loss") == pytest.approx(
        0.6 * terms["cross_entropy_class"]
        + 0.4 * terms["cross_entropy_prototype"]
        + 0.3 * terms["similarity_image"]
        + 0.3 * terms["similarity_text"]
        + 2.5 * terms["waloss"],
        rel=1e-13,
    )
    assert len(terms) == 5
    assert min(terms.values()) > 1e-3


def test_forward_without_prompts() -> None:
    clip, adapter, images = make_clip(), make_adapter(tokens=0, noise=0), make_images()
    labels, _, perturbed = make_targets()
    ids, mask = make_text(padded=True)
    clean = normalize(encode_text(clip, ids, mask, None))
    out = reference_forward(clip, adapter, images, ids, mask, labels, clean, perturbed)
    assert set(out) == {
        "logits_class",
        "logits_fused",
        "cross_entropy_class",
        "similarity_image",
        "similarity_text",
        "loss",
    }
    assert torch.equal(out["logits_fused"], out["logits_class"])
    plain = clip(input_ids=ids, pixel_values=images, attention_mask=mask).logits_per_image
    assert_same(out["logits_class"], plain, atol=1e-11)
    assert_same(out["similarity_image"], torch.zeros((), dtype=torch.float64))
    assert_same(out["similarity_text"], torch.zeros((), dtype=torch.float64))
    assert_same(out["loss"], out["cross_entropy_class"])
    moved = reference_forward(clip, adapter, images, ids, mask, labels, perturbed, perturbed)
    assert_same(moved["loss"], moved["cross_entropy_class"] + 0.5 * moved["similarity_text"])


def test_gradients_reach_every_tensor_and_are_those_of_differences() -> None:
    clip, images, adapter = make_clip(), make_images(), replace(make_adapter(), prompt_mixing=0.8)
    ids, mask = make_text(padded=True)
    labels, clean, perturbed = make_targets()
    tensors = [adapter.tokens, adapter.noise, adapter.prototype]
    tensors += [t for maps in (adapter.text_maps, adapter.vision_maps) for pair in maps.values() for t in pair]
    assert len(tensors) == 3 + 2 * 2 * 2

    def loss() -> Tensor:
        return reference_forward(clip, adapter, images, ids, mask, labels, clean, perturbed)["loss"]

    for tensor in tensors:
        tensor.requires_grad_()
    gradients = torch.autograd.grad(loss(), tensors)
    generator, step = torch.Generator().manual_seed(6), 1e-5
    with torch.no_grad():
        for tensor, gradient in zip(tensors, gradients, strict=True):
            direction = torch.randn(tensor.shape, dtype=torch.float64, generator=generator)
            expected = (gradient * direction).sum().item()
            tensor += step * direction
            above = loss().item()
            tensor -= 2 * step * direction
            below = loss().item()
            tensor += step * direction
            assert gradient.abs().max() > 0
            assert (above - below) / (2 * step) == pytest.approx(expected, rel=1e-4, abs=1e-8)
