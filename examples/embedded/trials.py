"""What was tried with ANPrompt and its peers and is not in the package: methods for `anprompt benchmark`.

    anprompt benchmark --config ablations.yaml --output ablations

README.md has their results.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Literal

import torch
from scipy.optimize import minimize_scalar
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional as F

from anprompt_peft.evaluation.adapter import FittedAdapter
from anprompt_peft.evaluation.backbone import Backbone
from anprompt_peft.evaluation.peers import make_method
from anprompt_peft.evaluation.peers.anprompt import ANPrompt
from anprompt_peft.evaluation.peers.lora import LoRA
from anprompt_peft.evaluation.peers.training import Batch, LossOfBatch, seeded
from anprompt_peft.evaluation.robustness import text_families
from anprompt_peft.evaluation.task import ClassTexts, Fitted, ImageSet
from anprompt_peft.fast import set_precision
from anprompt_peft.method.class_texts import ClassSet
from anprompt_peft.method.features import frozen_text_features, normalize
from anprompt_peft.method.layer import TOKEN_STD, ANPromptLayer, LowRank
from anprompt_peft.method.rephrase import draw_rephrased, rephrase, vocabulary
from anprompt_peft.tuner import adapted_clip

TEMPERATURES = (math.log(0.05), math.log(20.0))  # where the best one is looked for
MEASURED = ("paraphrased template", "longer text", "distractors")

Noisy = Literal["texts", "class", "prototype", "encoder", "encoder kl", "encoder similarity"]


@dataclass(frozen=True)
class InPrecision(ANPrompt):
    """ANPrompt with CLIP's frozen weights in a precision.

    Args:
        precision (`str`): of `anprompt_peft.fast.set_precision`.
    """

    precision: str = "bf16"

    def adapt(self, backbone: Backbone, classes: ClassTexts, seed: int) -> Any:
        """Return a copy of CLIP with a new adapter, its frozen weights cast."""
        model = super().adapt(backbone, classes, seed)
        set_precision(model, self.precision)
        return model


@dataclass(frozen=True)
class FewViews(ANPrompt):
    """ANPrompt trained on a few random views of each shot in turn, in place of new ones in every epoch.

    Args:
        views (`int`): of each shot.
    """

    views: int = 8

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> FittedAdapter:
        """Train an adapter on a copy of CLIP."""
        own = {each.name: getattr(shots, each.name) for each in fields(ImageSet)}
        return super().fit(backbone, InTurn(**own, views=self.views, seed=seed), classes, seed)


@dataclass(frozen=True, eq=False)
class InTurn(ImageSet):
    """Images with so many random views each, which depend on the seed alone; the next one at each visit."""

    views: int = 8
    seed: int = 0
    visits: Counter[int] = field(default_factory=Counter)

    def pixels(self, rows: Tensor | None = None, augment: bool = False) -> Tensor:
        """Return the pixel values of some images, or of all: float32 `[m, 3, H, W]`, on the CPU."""
        if not augment or rows is None:
            return super().pixels(rows, augment)
        return torch.cat([self._next_view(row) for row in rows.tolist()])

    def _next_view(self, row: int) -> Tensor:
        view = self.visits[row] % self.views
        self.visits[row] += 1
        with seeded(hash((self.seed, row, view))):
            return super().pixels(torch.tensor([row]), augment=True)


@dataclass(frozen=True)
class Trial(ANPrompt):
    """ANPrompt with other noise prompts, or with another loss on perturbed texts.

    Args:
        directions (`bool`): noise prompts are centroids of changes n - w, and not of features.
        from_clip (`float`, *optional*): each layer's map starts at this multiple of the pseudo-inverse of CLIP's
            projection, so that noise prompts enter the layers as what they mean to CLIP, and not at random values.
        noisy (`str`, *optional*): a further loss on perturbed texts, drawn anew in every step. Their frozen features
            u take the classes' place: `texts` is the cross entropy of images against them, `class` the KL divergence
            of the class logits from it, per image, and `prototype` that from the prototypes' logits, which is WALoss
            without its scale. `encoder` is the cross entropy against their features from the prompted encoder,
            `encoder kl` the divergence of that prediction from the clean one, and `encoder similarity` one minus the
            cosine similarity to the clean frozen features.
        weight (`float`): of that loss.
        angle (`float`, *optional*): degrees by which w is turned towards n; default: u is n.
        sets (`int`): how many perturbed texts of each class there are to draw from.
        vision_update (`int`, *optional*): rank of a trained update of what enters each vision layer, as
            `text_update_rank` has it for texts.
        second (`float`, *optional*): weight of a second set of learned tokens with maps of its own in the vision
            encoder, as the authors' early trainer has it with 0.2.
        equal_norm (`bool`): all rows, learned and noise, have norm 1 before they are mapped.
        averaged (`float`, *optional*): the model answers with its weights' moving average of this decay.
        measured (`bool`): training perturbs with the very texts of the measurement: a bound, and no method.
    """

    directions: bool = False
    from_clip: float | None = None
    noisy: Noisy | None = None
    weight: float = 1.0
    angle: float | None = None
    sets: int = 24
    vision_update: int | None = None
    second: float | None = None
    equal_norm: bool = False
    averaged: float | None = None
    measured: bool = False

    def adapt(self, backbone: Backbone, classes: ClassTexts, seed: int) -> Any:
        model = super().adapt(backbone, classes, seed)
        clip = adapted_clip(model)
        prompts = clip.head.anprompt_noise_prompts["default"]
        if self.directions:
            clean = backbone.class_features(classes)
            changes = [backbone.text_features(texts) - clean for texts in perturbed_texts(classes, self.sets, seed)]
            kmeans = KMeans(len(prompts), n_init=10, random_state=seed).fit(normalize(torch.cat(changes)).numpy())
            prompts.copy_(normalize(torch.from_numpy(kmeans.cluster_centers_).to(prompts)))
        if self.from_clip is not None:
            for projection, tower in (
                (clip.text_projection, clip.text_model),
                (clip.head.base_layer, clip.vision_model),
            ):
                for name, each in tower.named_modules():
                    if name.endswith("anprompt_projection.default"):
                        each.weight.data.copy_(self.from_clip * torch.linalg.pinv(projection.weight))
                        each.bias.data.zero_()
        with seeded(seed):
            if self.vision_update is not None:
                add_vision_updates(clip, self.vision_update)
            if self.second is not None:
                add_second_tokens(clip, self.second)
        if self.equal_norm:
            joined = clip.head.prompts
            vars(clip.head)["prompts"] = lambda adapter: normalize(joined(adapter))
        return model

    def loss_of(self, model: Any, backbone: Backbone, classes: ClassTexts, seed: int) -> LossOfBatch:
        own = super().loss_of(model, backbone, classes, seed)
        if self.averaged is not None:
            own = averaging(model, own, self.averaged)
        if self.noisy is None:
            return own
        clip, clean, rng = adapted_clip(model), backbone.class_features(classes), random.Random(f"steps {seed}")
        scale = backbone.logit_scale
        texts = self.perturbed_sets(classes, seed)
        frozen = [turned(clean, backbone.text_features(each), self.angle) for each in texts]
        tokens = [ClassSet(tuple(each), ("{}",), backbone.tokens(each)) for each in texts]

        def loss(batch: Batch) -> Tensor:
            output, drawn = model(pixel_values=batch.pixels, labels=batch.labels), rng.randrange(len(texts))
            if self.noisy in ("texts", "class", "prototype"):
                image = output.prototype_embeds if self.noisy == "prototype" else output.image_embeds
                logits = scale * image @ frozen[drawn].T
                if self.noisy == "texts":
                    return output.loss + self.weight * F.cross_entropy(logits, batch.labels)
                return output.loss + self.weight * divergence(logits, output.logits_class)
            encoded = clip.text_embeds(tokens[drawn])
            if self.noisy == "encoder similarity":
                return output.loss + self.weight * (1 - (encoded * clean).sum(dim=-1).mean())
            logits = scale * output.image_embeds @ encoded.T
            if self.noisy == "encoder":
                return output.loss + self.weight * F.cross_entropy(logits, batch.labels)
            return output.loss + self.weight * divergence(output.logits_class.detach(), logits)

        return loss

    def perturbed_sets(self, classes: ClassTexts, seed: int) -> list[list[str]]:
        """Return lists with one perturbed text per class."""
        if not self.measured:
            return perturbed_texts(classes, self.sets, seed)
        families = [each for each in text_families() if each.name in MEASURED]
        draws = range(self.sets // len(families))
        return [family.texts(classes, 1, draw, seed).texts for family in families for draw in draws]

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> FittedAdapter:
        fitted = super().fit(backbone, shots, classes, seed)
        if self.averaged is not None:
            for weight, mean in fitted.model.averages:
                weight.data.copy_(mean)
        return fitted


@dataclass(frozen=True)
class NoisyLoRA(LoRA):
    """LoRA, asked as well for the frozen features of clean texts when it reads rephrased ones, as ANPrompt can be.

    Args:
        weight (`float`): of that loss, one minus the mean cosine similarity.
        drawn (`int`): rephrased texts of a step; texts about other words, which keep their features, are half as many.
    """

    weight: float = 10.0
    drawn: int = 16

    def loss_of(self, clip: Any, backbone: Backbone, classes: ClassTexts, seed: int) -> LossOfBatch:
        own, rng = super().loss_of(clip, backbone, classes, seed), random.Random(f"steps {seed}")
        clean, words = backbone.class_features(classes), vocabulary(backbone.processor.tokenizer)

        def similarity() -> Tensor:
            texts, rows, anchors = draw_rephrased(classes.written, classes.templates, words, self.drawn, rng)
            kept = frozen_text_features(backbone.clip, backbone.tokens(anchors))
            encoded = clip.get_text_features(input_ids=backbone.tokens([*texts, *anchors])).pooler_output
            return 1 - (normalize(encoded) * torch.cat([clean[rows], kept])).sum(dim=-1).mean()

        return lambda batch: own(batch) + self.weight * similarity()


def averaging(model: Any, own: LossOfBatch, decay: float) -> LossOfBatch:
    """Return the loss, which keeps the moving average of what is trained, as it is before each step."""
    model.averages = [(each, each.detach().clone()) for each in model.parameters() if each.requires_grad]

    def loss(batch: Batch) -> Tensor:
        for weight, mean in model.averages:
            mean.lerp_(weight.detach(), 1 - decay)
        return own(batch)

    return loss


class Update(nn.Module):
    """A low-rank update of what enters a layer: `h + B A h`, with B zero at first."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.change = LowRank(width, width, rank)

    def forward(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Change a layer's first argument, `[B, L, d_t]`; it is called as the layer's hook."""
        return inputs[0] + self.change(inputs[0]), *inputs[1:]


def add_vision_updates(clip: Any, rank: int) -> None:
    """Give each layer of the vision encoder a trained update of the hidden states that enter it, prompts included."""
    encoder, width = clip.vision_model.encoder, clip.config.vision_config.hidden_size
    encoder.updates = nn.ModuleList(Update(width, rank) for _ in encoder.layers).to(clip.dtype)
    for layer, update in zip(encoder.layers, encoder.updates, strict=True):
        (layer.get_base_layer() if isinstance(layer, ANPromptLayer) else layer).register_forward_pre_hook(update)


def add_second_tokens(clip: Any, weight: float) -> None:
    """Add a second set of learned tokens to the vision prompts, through a map of each layer's own."""
    config = clip.active_config
    clip.second_tokens = nn.Parameter(TOKEN_STD * torch.randn(config.num_prompts, config.latent_dim).to(clip.dtype))
    for layer in clip.vision_model.encoder.layers:
        if isinstance(layer, ANPromptLayer):
            layer.second_map = nn.Linear(config.latent_dim, layer.width, dtype=clip.dtype)
            layer.project = partial(_with_second, layer, layer.project, clip.second_tokens, weight)  # type: ignore[method-assign]


def _with_second(layer: Any, first: Callable[[Any], Tensor], tokens: Tensor, weight: float, head: Any) -> Tensor:
    return first(head) + weight * layer.second_map(tokens)


@dataclass(frozen=True)
class HalfFrozen:
    """Another method, with the frozen CLIP's logits taking part for classes that it was not trained on.

    Args:
        of (`str`): the method's name.
        settings (`Mapping`): its settings.
        share (`float`): of the frozen CLIP.
    """

    of: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    share: float = 0.5

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> Fitted:
        return Ensemble(
            make_method(self.of, **self.settings).fit(backbone, shots, classes, seed), backbone, classes, self.share
        )


@dataclass(frozen=True, eq=False)
class Ensemble:
    """A fitted method beside the frozen CLIP."""

    fitted: Fitted
    backbone: Backbone
    trained: ClassTexts
    share: float

    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        logits = self.fitted.logits(images, classes)
        if set(classes.names) <= set(self.trained.names):
            return logits
        return (1 - self.share) * logits + self.share * self.backbone.zero_shot_logits(images, classes).to(logits)


@dataclass(frozen=True)
class Tempered:
    """Another method, its logits divided by the temperature that fits the shots best.

    Args:
        of (`str`): the method's name.
        settings (`Mapping`): its settings.
    """

    of: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def fit(self, backbone: Backbone, shots: ImageSet, classes: ClassTexts, seed: int) -> Fitted:
        fitted = make_method(self.of, **self.settings).fit(backbone, shots, classes, seed)
        logits, labels = fitted.logits(shots, classes), shots.labels

        def mean_loss(log_temperature: float) -> float:
            return float(F.cross_entropy(logits / math.exp(log_temperature), labels))

        best = minimize_scalar(mean_loss, bounds=TEMPERATURES, method="bounded")
        return Cooled(fitted, math.exp(best.x))


@dataclass(frozen=True, eq=False)
class Cooled:
    """A fitted method at a temperature."""

    fitted: Fitted
    temperature: float

    def logits(self, images: ImageSet, classes: ClassTexts) -> Tensor:
        return self.fitted.logits(images, classes) / self.temperature


def perturbed_texts(classes: ClassTexts, sets: int, seed: int) -> list[list[str]]:
    """Return `sets` lists with one perturbed text per class."""
    rng = random.Random(f"perturbed {seed}")
    return [[rephrase(name, classes.templates[0], rng) for name in classes.written] for _ in range(sets)]


def turned(clean: Tensor, noisy: Tensor, angle: float | None) -> Tensor:
    """Return clean features turned towards noisy ones by an angle in degrees; without an angle, the noisy ones."""
    if angle is None:
        return noisy
    across = normalize(noisy - (noisy * clean).sum(dim=-1, keepdim=True) * clean)
    radians = torch.deg2rad(torch.tensor(angle))
    return radians.cos() * clean + radians.sin() * across


def divergence(target: Tensor, logits: Tensor) -> Tensor:
    """Return the mean over images of `KL(softmax(target) || softmax(logits))`, of logits `[m, C]`."""
    return F.kl_div(logits.log_softmax(dim=-1), target.log_softmax(dim=-1), reduction="batchmean", log_target=True)
