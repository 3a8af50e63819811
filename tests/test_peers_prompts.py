"""The prompt methods against their formulas, written out class by class, image by image and layer by layer."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

import reference
from anprompt_peft.evaluation.backbone import Backbone
from anprompt_peft.evaluation.peers import METHODS, Recipe, cocoop, make_method
from anprompt_peft.evaluation.peers.cocoop import CoCoOp, ConditionalContext, FittedCoCoOp
from anprompt_peft.evaluation.peers.maple import CoupledPrompts, MaPLe
from anprompt_peft.evaluation.peers.prompted import Context, Prompts, depth_in, encode_images
from anprompt_peft.evaluation.peers.prompts import IVLP, VPT, CoOp
from anprompt_peft.evaluation.peers.promptsrc import PromptSRC
from anprompt_peft.evaluation.peers.training import seeded
from anprompt_peft.evaluation.task import ClassTexts
from conftest import CONTEXT, IMAGE_SIZE
from helpers import assert_exact, count_calls, make_clip
from peers import BACKBONE, PROCESSOR, Mirrored, image_set

NAMES = ("cat", "dog", "small fish")
SHOTS = image_set([0, 1, 2, 0, 1, 2], NAMES, augmentation=Mirrored(PROCESSOR))
TASK = ClassTexts(NAMES, ("a picture of the {}.", "one red {}."))
WORDS = "a photo of a"
SEED = 3
CLIP: Any = BACKBONE.clip
STEP = Recipe(learning_rate=1.0, batch_size=None, momentum=0.0, schedule="constant")
STAY = Recipe(learning_rate=0.0, batch_size=None, momentum=0.0, schedule="constant")
SOURCE: dict[str, Any] = {
    "vision_tokens": 3,
    "image_weight": 10.0,
    "text_weight": 25.0,
    "average_centre": 1.0,
    "average_width": 0.1,
}
PEERS: dict[str, Callable[..., Any]] = {
    "coop": lambda recipe, **more: CoOp(recipe, tokens=3, **more),
    "coop-random": lambda recipe, **more: CoOp(recipe, words="", tokens=5, **more),
    "cocoop": lambda recipe, **more: CoCoOp(recipe, tokens=3, **more),
    "vpt": lambda recipe: VPT(recipe, tokens=2),
    "ivlp": lambda recipe, **more: IVLP(recipe, vision_tokens=3, text_tokens=2, **more),
    "ivlp-3": lambda recipe: IVLP(recipe, 1, text_tokens=2, words="", depth=3),
    "maple": lambda recipe, **more: MaPLe(recipe, tokens=2, **more),
    "promptsrc": lambda recipe, **more: PromptSRC(recipe, templates=("art of {}.",), **SOURCE, **more),
}
CHUNKED = sorted(PEERS.keys() - {"vpt", "ivlp-3"})
PRESETS = ["coop", "coop-16", "cocoop", "vpt", "ivlp", "maple", "maple-cross-data"]
PRESETS += ["promptsrc", "promptsrc-few-shot", "promptsrc-cross-data"]


@pytest.fixture
def _wide_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve hidden units in CoCoOp's network where the small CLIP would have one, which may be dead."""
    monkeypatch.setattr(cocoop, "REDUCTION", 2)


def fit(method: Any, backbone: Backbone = BACKBONE) -> Any:
    """The method after it has learned from the shots."""
    return method.fit(backbone, SHOTS, TASK, SEED)


# The formulas


def plain_text(clip: CLIPModel, row: list[int], prompts: Sequence[Tensor]) -> Tensor:
    """One text's normalised feature `[d]`; the row has no padding, and the prompts stand behind its first token."""
    tensors, config = dict(clip.named_parameters()), clip.config.text_config
    hidden = torch.stack([tensors["text_model.embeddings.token_embedding.weight"][token] for token in row])
    mask = torch.full((len(row), len(row)), -torch.inf, dtype=hidden.dtype).triu(1)[None, None]
    for layer in range(config.num_hidden_layers):
        if layer < len(prompts):
            rows = list(hidden)
            for place, prompt in enumerate(prompts[layer], 1):
                rows[place] = prompt
            hidden = torch.stack(rows)
        if layer == 0:
            hidden = hidden + tensors["text_model.embeddings.position_embedding.weight"][: len(row)]
        hidden = reference.encoder_layer(tensors, f"text_model.encoder.layers.{layer}", config, hidden[None], mask)[0]
    last = reference.layer_norm(tensors, "text_model.final_layer_norm", config, hidden[-1])
    return reference.normalize(tensors["text_projection.weight"] @ last)


def plain_image(clip: CLIPModel, pixels: Tensor, prompts: Sequence[Tensor]) -> Tensor:
    """One image's normalised feature `[d]`; the prompts stand behind the patches."""
    tensors, config = dict(clip.named_parameters()), clip.config.vision_config
    kernel = tensors["vision_model.embeddings.patch_embedding.weight"]
    hidden = [tensors["vision_model.embeddings.class_embedding"]]
    for top in range(0, IMAGE_SIZE, config.patch_size):
        for left in range(0, IMAGE_SIZE, config.patch_size):
            patch = pixels[:, top : top + config.patch_size, left : left + config.patch_size]
            hidden.append((kernel * patch).sum(dim=(1, 2, 3)))
    x = torch.stack(hidden) + tensors["vision_model.embeddings.position_embedding.weight"]
    own = len(x)
    for layer in range(config.num_hidden_layers):
        if layer < len(prompts):
            x = torch.cat([x[:own], prompts[layer]])
        if layer == 0:
            x = reference.layer_norm(tensors, "vision_model.pre_layrnorm", config, x)
        x = reference.encoder_layer(tensors, f"vision_model.encoder.layers.{layer}", config, x[None], None)[0]
    first = reference.layer_norm(tensors, "vision_model.post_layernorm", config, x[0])
    return reference.normalize(tensors["visual_projection.weight"] @ first)


def rows_of(name: str, names: Sequence[str]) -> list[list[int]]:
    """The token ids of the class texts that a method reads."""
    tokenizer = PROCESSOR.tokenizer
    if name in ("coop-random", "ivlp-3"):
        blanks = 5 if name == "coop-random" else 2
        bare = [tokenizer(f"{each}.")["input_ids"] for each in names]
        return [[row[0], *[7] * blanks, *row[1:]] for row in bare]
    return [tokenizer(f"{WORDS} {each}.")["input_ids"] for each in names]


def plain_texts(name: str, classes: ClassTexts, prompts: Sequence[Tensor]) -> Tensor:
    if name == "vpt":
        return frozen_texts(classes.written, classes.templates)
    return torch.stack([plain_text(CLIP, row, prompts) for row in rows_of(name, classes.written)])


def frozen_texts(names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Per class the normalised mean of its texts' frozen features."""
    tokenizer, means = PROCESSOR.tokenizer, []
    for name in names:
        rows = [tokenizer(template.replace("{}", name))["input_ids"] for template in templates]
        means.append(torch.stack([plain_text(CLIP, row, ()) for row in rows]).mean(dim=0))
    return reference.normalize(torch.stack(means))


def plain_logits(name: str, parameters: Any, pixels: Tensor, classes: ClassTexts) -> Tensor:
    """The logits `[n, C]` with a method's parameters."""
    scale = CLIP.logit_scale.exp()
    if name == "cocoop":
        (context,), (weight1, bias1, weight2, bias2) = parameters
        rows = []
        for image in pixels:
            x = plain_image(CLIP, image, ())
            shift = weight2 @ (weight1 @ x + bias1).clamp(min=0) + bias2
            rows.append(scale * plain_texts(name, classes, [context + shift]) @ x)
        return torch.stack(rows)
    text, vision = parameters
    images = torch.stack([plain_image(CLIP, image, vision) for image in pixels])
    return scale * images @ plain_texts(name, classes, text).T


def parameters_of(fitted: Any) -> list[list[Tensor]]:
    """The prompts of both encoders; CoCoOp's context and its network."""
    if isinstance(fitted, FittedCoCoOp):
        return [[fitted.learner.context], list(fitted.learner.meta_net.parameters())]
    return [*map(list, fitted.prompts)]


def plain_loss(name: str, parameters: Any, pixels: Tensor, labels: Tensor) -> Tensor:
    """The loss of all images together."""
    logits = plain_logits(name, parameters, pixels, TASK)
    chosen = torch.stack([row.log_softmax(0)[label] for row, label in zip(logits, labels, strict=True)])
    loss = -chosen.mean()
    if name != "promptsrc":
        return loss
    text, vision = parameters
    frozen_text = frozen_texts(TASK.written, (*TASK.templates, "art of {}."))
    ours_text = plain_texts(name, TASK, text)
    image_gap, divergence = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for image, row in zip(pixels, logits, strict=True):
        frozen = plain_image(CLIP, image, ())
        image_gap = image_gap + (plain_image(CLIP, image, vision) - frozen).abs().sum()
        target = (CLIP.logit_scale.exp() * frozen_text @ frozen).softmax(0)
        divergence = divergence + (target * (target.log() - row.softmax(0).log())).sum()
    text_gap = (ours_text - frozen_text).abs().sum() / ours_text.numel()
    image_gap = image_gap / (len(pixels) * frozen_text.shape[1])
    return loss + 10 * image_gap + 25 * text_gap + divergence / logits.numel()


# What is tested with them


def trained(name: str, fitted: Any) -> tuple[list[Tensor], Callable[[list[Tensor]], list[list[Tensor]]]]:
    """The tensors that a method trains, as it starts, and how the formulas' parameters follow from them."""
    first, second = parameters_of(fitted)
    if name != "maple":
        return [*first, *second], lambda leaves: [leaves[: len(first)], leaves[len(first) :]]
    clip = fitted.clip
    with seeded(SEED):
        learner = CoupledPrompts(first[0], 4, clip.widths[1], clip.like)
    couplings: list[Any] = list(learner.couplings)

    def coupled(leaves: list[Tensor]) -> list[list[Tensor]]:
        text, weights, biases = leaves[:4], leaves[4:8], leaves[8:]
        return [text, [p @ w.T + b for p, w, b in zip(text, weights, biases, strict=True)]]

    return [*learner.text, *(each.weight for each in couplings), *(each.bias for each in couplings)], coupled


@pytest.mark.usefixtures("_wide_network")
@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("name", sorted(PEERS))
def test_one_step_goes_down_the_formulas_gradient(name: str, augment: bool) -> None:
    start = fit(PEERS[name](STAY))
    stepped = fit(PEERS[name](replace(STEP, augment=augment)))
    first, formulas = trained(name, start)
    leaves = [each.detach().clone().requires_grad_() for each in first]
    pixels = SHOTS.pixels().double().flip(-1) if augment else SHOTS.pixels().double()
    loss = plain_loss(name, formulas(leaves), pixels, SHOTS.labels)
    gradients = torch.autograd.grad(loss, leaves)
    assert min(float(gradient.abs().max()) for gradient in gradients) > 1e-6
    moved = [leaf - gradient for leaf, gradient in zip(leaves, gradients, strict=True)]
    for fitted, expected in ((start, formulas(leaves)), (stepped, formulas(moved))):
        for ours, wanted in zip(chain(*parameters_of(fitted)), chain(*expected), strict=True):
            assert not ours.requires_grad
            assert_exact(ours, wanted.detach())


@pytest.mark.usefixtures("_wide_network")
@pytest.mark.parametrize("name", sorted(PEERS))
def test_logits_for_classes_never_seen_and_names_misspelt(name: str) -> None:
    fitted = fit(PEERS[name](STEP))
    asked = ClassTexts(
        ("red bird", "cat", "drawing", "dog"), ("an image of {}.",), ("read brid", "ca", "drawing", "d")
    )
    images = image_set([0, 1, 0, 1], ("cat", "dog"), seed=5)
    logits = fitted.logits(images, asked)
    assert logits.device.type == "cpu"
    assert not logits.requires_grad
    assert_exact(logits, plain_logits(name, parameters_of(fitted), images.pixels().double(), asked).detach())
    assert torch.equal(fitted.logits(images, asked), logits)


@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_change_nothing_and_bound_the_texts_at_a_time(name: str) -> None:
    whole = fit(PEERS[name](STEP)).logits(SHOTS, TASK)
    rows: list[int] = []
    hook = CLIP.text_model.final_layer_norm.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    fitted = fit(PEERS[name](STEP, text_chunk=2))
    texts = len(NAMES) * (len(SHOTS) if name == "cocoop" else 1)
    assert sum(rows) == 2 * texts, "each text is computed again on the way back"
    logits = fitted.logits(SHOTS, TASK)
    hook.remove()
    assert_exact(logits, whole)
    assert max(rows) == 2


def test_a_name_that_is_cut_leaves_nothing_in_the_log(
    clip: CLIPModel, tokenizer: CLIPTokenizer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = copy.deepcopy(tokenizer)
    fresh.deprecation_warnings = {}
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    ids = Context("a photo of a").ids(["red " * CONTEXT], fresh, clip)
    assert ids.shape == (1, CONTEXT)
    assert caplog.messages == []


def test_texts_that_the_context_begins_are_encoded_once() -> None:
    fitted = fit(make_method("coop", recipe=STAY))
    passes = count_calls(CLIP.text_projection)
    first = fitted.logits(SHOTS, TASK)
    assert torch.equal(fitted.logits(SHOTS, replace(TASK, templates=("it shows a {}.",))), first)
    assert passes == [len(NAMES)]
    other = fitted.logits(SHOTS, replace(TASK, written=("cat", "dog", "tiny fish")))
    assert not torch.allclose(other, first)
    assert passes == [len(NAMES)] * 2


def test_cocoop_asks_for_few_images_at_a_time() -> None:
    fitted = fit(CoCoOp(STAY, text_chunk=7))
    rows = count_calls(fitted.learner)
    fitted.logits(SHOTS, TASK)
    assert rows == [2, 2, 2]


# Where prompts start and how deep they go


def test_prompts_start_at_the_words_and_at_random() -> None:
    tokenizer, table = PROCESSOR.tokenizer, CLIP.text_model.embeddings.token_embedding.weight
    words = table[torch.tensor(tokenizer(WORDS)["input_ids"][1:-1])]
    text, vision = fit(IVLP(STAY, vision_tokens=50)).prompts
    assert len(text) == 4
    assert len(vision) == 5
    assert torch.equal(text[0], words)
    assert all(each.shape == words.shape for each in text)
    drawn = torch.cat([each.flatten() for each in (*text[1:], *vision)])
    assert abs(float(drawn.std()) - 0.02) < 5e-4
    assert abs(float(drawn.mean())) < 1e-3
    assert len({float(each.sum()) for each in (*text, *vision)}) == 9
    assert torch.equal(fit(MaPLe(STAY, tokens=2)).prompts.text[0], words[:2])
    random = fit(CoOp(STAY, words="", tokens=16)).prompts.text
    assert len(random) == 1
    assert random[0].shape == (16, 32)
    assert abs(float(random[0].std()) - 0.02) < 3e-3


def test_coop_that_has_not_moved_is_zero_shot_clip() -> None:
    fitted = fit(CoOp(STAY))
    expected = BACKBONE.zero_shot_logits(SHOTS, ClassTexts(NAMES, (f"{WORDS} {{}}.",)))
    assert_exact(fitted.logits(SHOTS, TASK), expected)


def test_couplings_of_later_layers_start_alike() -> None:
    learner = CoupledPrompts(torch.zeros(2, 8), 4, 6, torch.zeros(0))
    couplings: list[Any] = list(learner.couplings)
    weights = [each.weight.detach() for each in couplings]
    assert torch.equal(weights[1], weights[2])
    assert torch.equal(weights[1], weights[3])
    assert not torch.equal(weights[0], weights[1])
    assert weights[2].data_ptr() != weights[1].data_ptr()
    assert all(float(each.abs().max()) <= 8**-0.5 for each in weights)


def test_the_conditional_networks_hidden_layer_is_a_sixteenth() -> None:
    for dim, hidden in ((512, 32), (15, 1)):
        assert ConditionalContext(torch.zeros(4, 8), dim, torch.zeros(0)).meta_net[0].weight.shape == (hidden, dim)


def test_depth_is_the_published_one_or_all_layers() -> None:
    layers = nn.ModuleList(nn.Identity() for _ in range(12))
    assert (depth_in(layers, None, 9), depth_in(layers[:4], None, 9), depth_in(layers, 12, 9)) == (9, 4, 12)
    for depth in (0, 13):
        with pytest.raises(ValueError, match=rf"depth={depth} must lie between 1 and the 12 layers.* None takes 9"):
            depth_in(layers, depth, 9)
    assert len(fit(MaPLe(STAY)).prompts.vision) == 4
    assert len(fit(VPT(STAY, tokens=2)).prompts.vision) == 5
    for peer in (MaPLe(STAY, depth=5), IVLP(STAY, 2, depth=5), PromptSRC(STAY, **SOURCE, depth=5)):
        with pytest.raises(ValueError, match="depth=5 must lie between 1 and the 4 layers"):
            fit(peer)


def test_wrong_numbers_of_tokens_are_named() -> None:
    given = len(PROCESSOR.tokenizer(WORDS)["input_ids"]) - 2
    for tokens in (0, given + 1):
        with pytest.raises(ValueError, match=rf"tokens={tokens} must be between 1 and {given}, .*{WORDS}.*words=''"):
            fit(CoOp(STAY, tokens))
    with pytest.raises(ValueError, match=r"tokens=None must be at least 1"):
        fit(CoOp(STAY, words=""))
    with pytest.raises(ValueError, match=rf"{CONTEXT - 2} tokens leaves no room .* the {CONTEXT} positions"):
        fit(CoOp(STAY, CONTEXT - 2, words=""))
    with pytest.raises(ValueError, match="vision_tokens=0 must be at least 1"):
        fit(VPT(STAY, tokens=0))


@pytest.mark.parametrize("context", [Context(WORDS), Context("", 16)])
def test_long_names_are_cut_before_the_end_token(context: Context) -> None:
    tokenizer = PROCESSOR.tokenizer
    ids = context.ids(["cat", "q" * 60], tokenizer, CLIP)
    assert ids.shape == (2, CONTEXT)
    count = context.count(tokenizer, CLIP)
    assert ids[1, 1 + count :].tolist() == [*tokenizer("q" * 60)["input_ids"][1 : CONTEXT - count - 1], ids[0, -1]]
    assert ids[0, 1 + count :].tolist()[:4] == (tokenizer("cat.")["input_ids"][1:] + [int(ids[0, -1])] * 4)[:4]


# PromptSRC's average


def test_prompts_are_averaged_over_the_epochs() -> None:
    recipe = Recipe(learning_rate=0.1, epochs=4, batch_size=2)

    def prompts(centre: float, width: float) -> list[Tensor]:
        settings = {**SOURCE, "average_centre": centre, "average_width": width}
        text, vision = fit(PromptSRC(recipe, **settings)).prompts
        return [*text, *vision]

    epochs = [prompts(number / 4, 1e-3) for number in range(1, 5)]
    weights = np.exp(-((np.arange(1, 5) - 3) ** 2) / (2 * 0.8**2))
    weights /= weights.sum()
    for ours, *each in zip(prompts(0.75, 0.2), *epochs, strict=True):
        assert not torch.equal(each[0], each[3])
        assert_exact(ours, sum(w * part for w, part in zip(weights.tolist(), each, strict=True)))


def test_the_published_average_is_that_of_twenty_epochs() -> None:
    peer: Any = make_method("promptsrc")
    epochs = [Prompts((torch.eye(20, dtype=torch.float64)[epoch],)) for epoch in range(20)]
    (weights,) = peer.average(epochs).text
    expected = [np.exp(-0.5 * (epoch - 15.0) ** 2) for epoch in range(1, 21)]
    assert_exact(weights, torch.tensor(expected) / sum(expected))


# Precision, attention, presets


def test_all_attentions_agree() -> None:
    sdpa, eager = (
        PEERS["ivlp"](Recipe(learning_rate=0.1, batch_size=3))
        .fit(Backbone(make_clip(attention), PROCESSOR), SHOTS, TASK, SEED)
        .logits(SHOTS, TASK)
        for attention in ("sdpa", "eager")
    )
    assert sdpa.dtype == torch.float32
    torch.testing.assert_close(sdpa, eager, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["coop", "cocoop", "ivlp", "promptsrc", "vpt"])
def test_half_precision_clip_is_prompted_in_float32(name: str) -> None:
    half = Backbone(make_clip(dtype=torch.bfloat16), PROCESSOR)
    fitted = fit(PEERS[name](STEP), half)
    assert fitted.clip.model.dtype == torch.float32
    assert half.clip.dtype == torch.bfloat16
    logits = fitted.logits(SHOTS, TASK)
    assert logits.dtype == torch.float32
    assert bool(logits.isfinite().all())


def test_images_without_prompts_are_clips_own() -> None:
    assert_exact(encode_images(CLIP, SHOTS.pixels().double()).detach(), BACKBONE.image_features(SHOTS))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_say_where_they_come_from(name: str) -> None:
    preset, peer = METHODS[name], cast(Any, make_method(name))
    assert "arXiv" in preset.source
    assert "github.com" in preset.source
    assert "8 to 100 %" in preset.differs
    assert ("last batch" in preset.differs) == (name != "cocoop")  # whose batches are single images
    assert (peer.recipe.momentum, peer.recipe.weight_decay, peer.recipe.augment) == (0.9, 5e-4, True)
    if name.startswith("promptsrc"):
        assert peer.templates == tuple(METHODS["zero-shot-ensemble"].settings["templates"])
