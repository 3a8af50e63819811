"""The prompt methods against their formulas, written out class by class, image by image and layer by layer."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow
from torch import Tensor, nn
from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer

import reference
from anprompt_peft.data.transform import ClipTransform
from anprompt_peft.evaluation.backbone import Backbone
from anprompt_peft.evaluation.peers import METHODS, Recipe, cocoop, make_method
from anprompt_peft.evaluation.peers.cocoop import CoCoOp, ConditionalContext, FittedCoCoOp
from anprompt_peft.evaluation.peers.maple import CoupledPrompts, MaPLe
from anprompt_peft.evaluation.peers.prompt_training import PromptableCLIP
from anprompt_peft.evaluation.peers.prompted import Context, Prompts, depth_in, encode_images
from anprompt_peft.evaluation.peers.prompts import IVLP, VPT, CoOp
from anprompt_peft.evaluation.peers.promptsrc import PromptSRC
from anprompt_peft.evaluation.peers.training import seeded
from anprompt_peft.evaluation.task import ClassTexts, ImageSet
from conftest import CONTEXT, IMAGE_SIZE
from helpers import assert_exact, count_calls, make_clip

NAMES = ("cat", "dog", "small fish")
SHOTS = 2
WORDS = "a photo of a"
SEED = 3
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


class Mirrored(ClipTransform):
    """An augmentation that draws nothing."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"pixel_values": super().__call__(batch)["pixel_values"].flip(-1)}


def image_set(processor: CLIPProcessor, names: Sequence[str] = NAMES, seed: int = 0) -> ImageSet:
    """Random images, each class a little brighter in one channel."""
    random = np.random.default_rng(seed)
    labels = [label for _ in range(SHOTS) for label in range(len(names))]
    pixels = random.integers(0, 180, (len(labels), IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[..., label % 3] += 70
    features = Features({"image": Image(), "label": ClassLabel(names=list(names))})
    columns = {"image": [Pillow.fromarray(image) for image in pixels], "label": labels}
    return ImageSet(Dataset.from_dict(columns, features), ClipTransform(processor), Mirrored(processor))


@pytest.fixture(scope="module")
def processor(clip_folder: Path) -> CLIPProcessor:
    return CLIPProcessor.from_pretrained(clip_folder)


@pytest.fixture(scope="module")
def shots(processor: CLIPProcessor) -> ImageSet:
    return image_set(processor)


@pytest.fixture(scope="module")
def backbone(processor: CLIPProcessor) -> Backbone:
    return Backbone(make_clip(dtype=torch.float64), processor)


@pytest.fixture(scope="module")
def classes() -> ClassTexts:
    return ClassTexts(NAMES, ("a picture of the {}.", "one red {}."))


@pytest.fixture
def _wide_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve hidden units in CoCoOp's network where the small CLIP would have one, which may be dead."""
    monkeypatch.setattr(cocoop, "REDUCTION", 2)


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


def rows_of(backbone: Backbone, name: str, names: Sequence[str]) -> list[list[int]]:
    """The token ids of the class texts that a method reads."""
    tokenizer = backbone.processor.tokenizer
    if name in ("coop-random", "ivlp-3"):
        blanks = 5 if name == "coop-random" else 2
        bare = [tokenizer(f"{each}.")["input_ids"] for each in names]
        return [[row[0], *[7] * blanks, *row[1:]] for row in bare]
    return [tokenizer(f"{WORDS} {each}.")["input_ids"] for each in names]


def plain_texts(backbone: Backbone, name: str, classes: ClassTexts, prompts: Sequence[Tensor]) -> Tensor:
    if name == "vpt":
        return frozen_texts(backbone, classes.written, classes.templates)
    rows = rows_of(backbone, name, classes.written)
    return torch.stack([plain_text(backbone.clip, row, prompts) for row in rows])


def frozen_texts(backbone: Backbone, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Per class the normalised mean of its texts' frozen features."""
    tokenizer, means = backbone.processor.tokenizer, []
    for name in names:
        rows = [tokenizer(template.replace("{}", name))["input_ids"] for template in templates]
        means.append(torch.stack([plain_text(backbone.clip, row, ()) for row in rows]).mean(dim=0))
    return reference.normalize(torch.stack(means))


def plain_logits(
    backbone: Backbone, name: str, fitted: Any, pixels: Tensor, classes: ClassTexts, parameters: Any = None
) -> Tensor:
    """The logits `[n, C]` of a fitted method, or of parameters in its place."""
    scale = backbone.clip.logit_scale.exp()
    if name == "cocoop":
        context, (weight1, bias1, weight2, bias2) = parameters or cocoop_parameters(fitted)
        rows = []
        for image in pixels:
            x = plain_image(backbone.clip, image, ())
            shift = weight2 @ (weight1 @ x + bias1).clamp(min=0) + bias2
            rows.append(scale * plain_texts(backbone, name, classes, [context + shift]) @ x)
        return torch.stack(rows)
    text, vision = parameters or fitted.prompts
    images = torch.stack([plain_image(backbone.clip, image, vision) for image in pixels])
    return scale * images @ plain_texts(backbone, name, classes, text).T


def cocoop_parameters(fitted: FittedCoCoOp) -> tuple[Tensor, list[Tensor]]:
    return fitted.learner.context, list(fitted.learner.meta_net.parameters())


def plain_loss(
    backbone: Backbone, name: str, parameters: Any, pixels: Tensor, labels: Tensor, classes: ClassTexts
) -> Tensor:
    """The loss of all images together."""
    logits = plain_logits(backbone, name, None, pixels, classes, parameters)
    chosen = torch.stack([row.log_softmax(0)[label] for row, label in zip(logits, labels, strict=True)])
    loss = -chosen.mean()
    if name != "promptsrc":
        return loss
    text, vision = parameters
    frozen_text = frozen_texts(backbone, classes.written, (*classes.templates, "art of {}."))
    ours_text = plain_texts(backbone, name, classes, text)
    image_gap, divergence = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for image, row in zip(pixels, logits, strict=True):
        frozen = plain_image(backbone.clip, image, ())
        image_gap = image_gap + (plain_image(backbone.clip, image, vision) - frozen).abs().sum()
        target = (backbone.clip.logit_scale.exp() * frozen_text @ frozen).softmax(0)
        divergence = divergence + (target * (target.log() - row.softmax(0).log())).sum()
    text_gap = (ours_text - frozen_text).abs().sum() / ours_text.numel()
    image_gap = image_gap / (len(pixels) * frozen_text.shape[1])
    return loss + 10 * image_gap + 25 * text_gap + divergence / logits.numel()


# What is tested with them


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("name", sorted(PEERS.keys() - {"maple", "cocoop"}))
def test_one_step_goes_down_the_formulas_gradient(
    name: str, augment: bool, backbone: Backbone, shots: ImageSet, classes: ClassTexts
) -> None:
    start, stepped = fits(PEERS[name], augment, backbone, shots, classes)
    pixels = shots.pixels().double().flip(-1) if augment else shots.pixels().double()
    text, vision = ([each.clone().requires_grad_() for each in tower] for tower in start.prompts)
    loss = plain_loss(backbone, name, (text, vision), pixels, shots.labels, classes)
    gradients = torch.autograd.grad(loss, [*text, *vision])
    after = [*stepped.prompts.text, *stepped.prompts.vision]
    for parameter, gradient, ours in zip([*text, *vision], gradients, after, strict=True):
        assert float(gradient.abs().max()) > 1e-6
        assert_exact(ours, (parameter - gradient).detach())


@pytest.mark.parametrize("augment", [False, True])
def test_one_step_of_maple_moves_prompts_and_couplings(
    augment: bool, backbone: Backbone, shots: ImageSet, classes: ClassTexts
) -> None:
    start, stepped = fits(PEERS["maple"], augment, backbone, shots, classes)
    clip = PromptableCLIP(backbone)
    with seeded(SEED):
        learner = CoupledPrompts(start.prompts.text[0], 4, clip.widths[1], clip.like)
    text, weights = list(learner.text), [each.weight for each in learner.couplings]
    biases = [each.bias for each in learner.couplings]
    vision = [p @ w.T + b for p, w, b in zip(text, weights, biases, strict=True)]
    for ours, expected in zip(start.prompts.vision, vision, strict=True):
        assert_exact(ours, expected.detach())
    pixels = shots.pixels().double().flip(-1) if augment else shots.pixels().double()
    loss = plain_loss(backbone, "maple", (text, vision), pixels, shots.labels, classes)
    leaves = [*text, *weights, *biases]
    moved = [leaf - gradient for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True)]
    for layer, (p, w, b) in enumerate(zip(moved[:4], moved[4:8], moved[8:], strict=True)):
        assert_exact(stepped.prompts.text[layer], p.detach())
        assert_exact(stepped.prompts.vision[layer], (p @ w.T + b).detach())


@pytest.mark.usefixtures("_wide_network")
@pytest.mark.parametrize("augment", [False, True])
def test_one_step_of_cocoop_moves_context_and_network(
    augment: bool, backbone: Backbone, shots: ImageSet, classes: ClassTexts
) -> None:
    start, stepped = fits(PEERS["cocoop"], augment, backbone, shots, classes)
    context, network = cocoop_parameters(start)
    leaves = [each.clone().requires_grad_() for each in (context, *network)]
    pixels = shots.pixels().double().flip(-1) if augment else shots.pixels().double()
    loss = plain_loss(backbone, "cocoop", (leaves[0], leaves[1:]), pixels, shots.labels, classes)
    context, network = cocoop_parameters(stepped)
    assert not any(each.requires_grad for each in (context, *network))
    for leaf, gradient, ours in zip(leaves, torch.autograd.grad(loss, leaves), (context, *network), strict=True):
        assert float(gradient.abs().max()) > 1e-6
        assert_exact(ours, (leaf - gradient).detach())


def fits(
    peer: Callable[..., Any], augment: bool, backbone: Backbone, shots: ImageSet, classes: ClassTexts
) -> tuple[Any, Any]:
    """A method as it starts, and after one step at a learning rate of 1 with all shots."""
    start = peer(STAY).fit(backbone, shots, classes, SEED)
    stepped = peer(Recipe(**{**vars(STEP), "augment": augment})).fit(backbone, shots, classes, SEED)
    return start, stepped


@pytest.mark.usefixtures("_wide_network")
@pytest.mark.parametrize("name", sorted(PEERS))
def test_logits_for_classes_never_seen_and_names_misspelt(
    name: str, backbone: Backbone, shots: ImageSet, classes: ClassTexts, processor: CLIPProcessor
) -> None:
    fitted = PEERS[name](STEP).fit(backbone, shots, classes, SEED)
    asked = ClassTexts(
        ("red bird", "cat", "drawing", "dog"), ("an image of {}.",), ("read brid", "ca", "drawing", "d")
    )
    images = image_set(processor, ("cat", "dog"), seed=5)
    logits = fitted.logits(images, asked)
    assert logits.device.type == "cpu"
    assert not logits.requires_grad
    assert_exact(logits, plain_logits(backbone, name, fitted, images.pixels().double(), asked).detach())
    assert torch.equal(fitted.logits(images, asked), logits)


@pytest.mark.parametrize("name", sorted(PEERS))
def test_the_seed_decides_and_clip_stays_as_it_is(
    name: str, backbone: Backbone, shots: ImageSet, classes: ClassTexts
) -> None:
    before = copy.deepcopy(backbone.clip.state_dict())
    recipe = Recipe(learning_rate=0.1, epochs=2, batch_size=2)
    torch.manual_seed(1)
    first = PEERS[name](recipe).fit(backbone, shots, classes, SEED).logits(shots, classes)
    drawn = torch.rand(3)
    again = PEERS[name](recipe).fit(backbone, shots, classes, SEED).logits(shots, classes)
    other = PEERS[name](recipe).fit(backbone, shots, classes, SEED + 1).logits(shots, classes)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn), "the caller's random numbers go on as before"
    after = backbone.clip.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not any(parameter.requires_grad for parameter in backbone.clip.parameters())
    assert all(parameter.grad is None for parameter in backbone.clip.parameters())
    assert not backbone.clip.training


@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_change_nothing_and_bound_the_texts_at_a_time(
    name: str, backbone: Backbone, shots: ImageSet, classes: ClassTexts
) -> None:
    whole = PEERS[name](STEP).fit(backbone, shots, classes, SEED).logits(shots, classes)
    rows: list[int] = []
    hook = backbone.clip.text_model.final_layer_norm.register_forward_hook(
        lambda module, args, out: rows.append(len(out))
    )
    fitted = PEERS[name](STEP, text_chunk=2).fit(backbone, shots, classes, SEED)
    texts = len(NAMES) * (len(shots) if name == "cocoop" else 1)
    assert sum(rows) == 2 * texts, "each text is computed again on the way back"
    logits = fitted.logits(shots, classes)
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


def test_texts_that_the_context_begins_are_encoded_once(
    backbone: Backbone, shots: ImageSet, classes: ClassTexts
) -> None:
    fitted = make_method("coop", recipe=STAY).fit(backbone, shots, classes, SEED)
    passes = count_calls(backbone.clip.text_projection)
    first = fitted.logits(shots, classes)
    assert torch.equal(fitted.logits(shots, replace(classes, templates=("it shows a {}.",))), first)
    assert passes == [len(NAMES)]
    other = fitted.logits(shots, replace(classes, written=("cat", "dog", "tiny fish")))
    assert not torch.allclose(other, first)
    assert passes == [len(NAMES)] * 2


def test_cocoop_asks_for_few_images_at_a_time(backbone: Backbone, shots: ImageSet, classes: ClassTexts) -> None:
    fitted = CoCoOp(STAY, text_chunk=7).fit(backbone, shots, classes, SEED)
    rows = count_calls(fitted.learner)
    fitted.logits(shots, classes)
    assert rows == [2, 2, 2]


@pytest.mark.parametrize("name", sorted(PEERS))
def test_the_loss_falls(name: str, backbone: Backbone, shots: ImageSet, classes: ClassTexts) -> None:
    recipe = Recipe(learning_rate=0.02, epochs=12, batch_size=None, optimizer="adam")

    def loss(recipe: Recipe) -> float:
        logits = PEERS[name](recipe).fit(backbone, shots, classes, SEED).logits(shots, classes)
        return float(nn.functional.cross_entropy(logits, shots.labels))

    assert loss(recipe) < 0.9 * loss(STAY)


# Where prompts start and how deep they go


def test_prompts_start_at_the_words_and_at_random(backbone: Backbone, shots: ImageSet, classes: ClassTexts) -> None:
    tokenizer, table = backbone.processor.tokenizer, backbone.clip.text_model.embeddings.token_embedding.weight
    words = table[torch.tensor(tokenizer(WORDS)["input_ids"][1:-1])]
    text, vision = IVLP(STAY, vision_tokens=50).fit(backbone, shots, classes, SEED).prompts
    assert len(text) == 4
    assert len(vision) == 5
    assert torch.equal(text[0], words)
    assert all(each.shape == words.shape for each in text)
    drawn = torch.cat([each.flatten() for each in (*text[1:], *vision)])
    assert abs(float(drawn.std()) - 0.02) < 5e-4
    assert abs(float(drawn.mean())) < 1e-3
    assert len({float(each.sum()) for each in (*text, *vision)}) == 9
    assert torch.equal(MaPLe(STAY, tokens=2).fit(backbone, shots, classes, SEED).prompts.text[0], words[:2])
    random = CoOp(STAY, words="", tokens=16).fit(backbone, shots, classes, SEED).prompts.text
    assert len(random) == 1
    assert random[0].shape == (16, 32)
    assert abs(float(random[0].std()) - 0.02) < 3e-3


def test_coop_that_has_not_moved_is_zero_shot_clip(backbone: Backbone, shots: ImageSet, classes: ClassTexts) -> None:
    fitted = CoOp(STAY).fit(backbone, shots, classes, SEED)
    expected = backbone.zero_shot_logits(shots, ClassTexts(NAMES, (f"{WORDS} {{}}.",)))
    assert_exact(fitted.logits(shots, classes), expected)


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


def test_depth_is_the_published_one_or_all_layers(backbone: Backbone, shots: ImageSet, classes: ClassTexts) -> None:
    layers = nn.ModuleList(nn.Identity() for _ in range(12))
    assert (depth_in(layers, None, 9), depth_in(layers[:4], None, 9), depth_in(layers, 12, 9)) == (9, 4, 12)
    for depth in (0, 13):
        with pytest.raises(ValueError, match=rf"depth={depth} must lie between 1 and the 12 layers.* None takes 9"):
            depth_in(layers, depth, 9)
    assert len(MaPLe(STAY).fit(backbone, shots, classes, SEED).prompts.vision) == 4
    assert len(VPT(STAY, tokens=2).fit(backbone, shots, classes, SEED).prompts.vision) == 5
    for peer in (MaPLe(STAY, depth=5), IVLP(STAY, 2, depth=5), PromptSRC(STAY, **SOURCE, depth=5)):
        with pytest.raises(ValueError, match="depth=5 must lie between 1 and the 4 layers"):
            peer.fit(backbone, shots, classes, SEED)


def test_wrong_numbers_of_tokens_are_named(backbone: Backbone, shots: ImageSet, classes: ClassTexts) -> None:
    given = len(backbone.processor.tokenizer(WORDS)["input_ids"]) - 2
    for tokens in (0, given + 1):
        with pytest.raises(ValueError, match=rf"tokens={tokens} must be between 1 and {given}, .*{WORDS}.*words=''"):
            CoOp(STAY, tokens).fit(backbone, shots, classes, SEED)
    with pytest.raises(ValueError, match=r"tokens=None must be at least 1"):
        CoOp(STAY, words="").fit(backbone, shots, classes, SEED)
    with pytest.raises(ValueError, match=rf"{CONTEXT - 2} tokens leaves no room .* the {CONTEXT} positions"):
        CoOp(STAY, CONTEXT - 2, words="").fit(backbone, shots, classes, SEED)
    with pytest.raises(ValueError, match="vision_tokens=0 must be at least 1"):
        VPT(STAY, tokens=0).fit(backbone, shots, classes, SEED)


@pytest.mark.parametrize("context", [Context(WORDS), Context("", 16)])
def test_long_names_are_cut_before_the_end_token(context: Context, backbone: Backbone) -> None:
    tokenizer = backbone.processor.tokenizer
    ids = context.ids(["cat", "q" * 60], tokenizer, backbone.clip)
    assert ids.shape == (2, CONTEXT)
    count = context.count(tokenizer)
    assert ids[1, 1 + count :].tolist() == [*tokenizer("q" * 60)["input_ids"][1 : CONTEXT - count - 1], ids[0, -1]]
    assert ids[0, 1 + count :].tolist()[:4] == (tokenizer("cat.")["input_ids"][1:] + [int(ids[0, -1])] * 4)[:4]


# PromptSRC's average


def test_prompts_are_averaged_over_the_epochs(backbone: Backbone, shots: ImageSet, classes: ClassTexts) -> None:
    recipe = Recipe(learning_rate=0.1, epochs=4, batch_size=2)

    def prompts(centre: float, width: float) -> list[Tensor]:
        settings = {**SOURCE, "average_centre": centre, "average_width": width}
        text, vision = PromptSRC(recipe, **settings).fit(backbone, shots, classes, SEED).prompts
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


def test_all_attentions_agree(processor: CLIPProcessor, shots: ImageSet, classes: ClassTexts) -> None:
    sdpa, eager = (
        PEERS["ivlp"](Recipe(learning_rate=0.1, batch_size=3))
        .fit(Backbone(make_clip(attention), processor), shots, classes, SEED)
        .logits(shots, classes)
        for attention in ("sdpa", "eager")
    )
    assert sdpa.dtype == torch.float32
    torch.testing.assert_close(sdpa, eager, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["coop", "cocoop", "ivlp", "promptsrc", "vpt"])
def test_half_precision_clip_is_prompted_in_float32(
    name: str, processor: CLIPProcessor, shots: ImageSet, classes: ClassTexts
) -> None:
    half = Backbone(make_clip(dtype=torch.bfloat16), processor)
    fitted = PEERS[name](STEP).fit(half, shots, classes, SEED)
    assert fitted.clip.model.dtype == torch.float32
    assert half.clip.dtype == torch.bfloat16
    logits = fitted.logits(shots, classes)
    assert logits.dtype == torch.float32
    assert bool(logits.isfinite().all())


def test_images_without_prompts_are_clips_own(backbone: Backbone, shots: ImageSet) -> None:
    assert_exact(encode_images(backbone.clip, shots.pixels().double()).detach(), backbone.image_features(shots))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_a_source_and_fit(
    name: str, processor: CLIPProcessor, shots: ImageSet, classes: ClassTexts
) -> None:
    preset = METHODS[name]
    assert "arXiv" in preset.source
    assert "github.com" in preset.source
    assert "8 to 100 %" in preset.differs
    assert ("last batch" in preset.differs) == (name != "cocoop")  # whose batches are single images
    peer: Any = make_method(name, recipe={"epochs": 1, "batch_size": 4})
    assert (peer.recipe.momentum, peer.recipe.weight_decay, peer.recipe.augment) == (0.9, 5e-4, True)
    logits = peer.fit(Backbone(make_clip(), processor), shots, classes, SEED).logits(shots, classes)
    assert logits.shape == (len(shots), 3)
    assert bool(logits.isfinite().all())
    if name.startswith("promptsrc"):
        assert peer.templates == tuple(METHODS["zero-shot-ensemble"].settings["templates"])
