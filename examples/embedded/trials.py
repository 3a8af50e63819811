"""Ways to make the noise of ANPrompt count that were tried and did not help: methods for `anprompt benchmark`.

    anprompt benchmark --config ablations.yaml --output ablations

What they gave is in docs/ablations.md.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F

from anprompt_peft.evaluation.backbone import Backbone
from anprompt_peft.evaluation.peers import make_method
from anprompt_peft.evaluation.peers.anprompt import ANPrompt
from anprompt_peft.evaluation.peers.protocol import Fitted
from anprompt_peft.evaluation.peers.training import Batch, LossOfBatch
from anprompt_peft.evaluation.task import ClassTexts, ImageSet
from anprompt_peft.method.class_texts import ClassSet
from anprompt_peft.method.features import normalize
from anprompt_peft.tuner import adapted_clip

SENTENCES = (
    "an image of {}.", "a picture showing {}.", "this is {}.", "there is {} here.", "it looks like {}.", "{}",
    "{}, seen here.", "what you see is {}.", "the picture shows {}.", "one example of {}.", "a simple sketch of {}.",
    "this symbol means {}.", "the label says {}.", "i think it is {}.", "{} is what we want to find.",
    "a view of {} from the front.", "have you ever seen {}?", "could this be {}?",
)  # fmt: skip
ENDINGS = (
    "in plain style", "with a clean background", "as it is often seen", "on a screen", "from a collection",
    "made by hand", "with thick strokes", "in the middle", "without any text", "of good quality",
)  # fmt: skip
OTHERS = ("a table", "a wall", "a chair", "a rock", "a bag", "a cup", "a stick", "a box", "a rope", "a tile")

Noisy = Literal["texts", "class", "prototype", "encoder", "encoder kl", "encoder similarity"]


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
    """

    directions: bool = False
    from_clip: float | None = None
    noisy: Noisy | None = None
    weight: float = 1.0
    angle: float | None = None
    sets: int = 24

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
        return model

    def loss_of(self, model: Any, backbone: Backbone, classes: ClassTexts, seed: int) -> LossOfBatch:
        own = super().loss_of(model, backbone, classes, seed)
        if self.noisy is None:
            return own
        clip, clean, rng = adapted_clip(model), backbone.class_features(classes), random.Random(f"steps {seed}")
        scale = backbone.logit_scale
        texts = perturbed_texts(classes, self.sets, seed)
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


def perturbed_texts(classes: ClassTexts, sets: int, seed: int) -> list[list[str]]:
    """Return `sets` lists with one perturbed text per class."""
    rng = random.Random(f"perturbed {seed}")
    return [[perturbed(name, classes.templates[0], rng) for name in classes.written] for _ in range(sets)]


def perturbed(name: str, template: str, rng: random.Random) -> str:
    """Return a class text in another sentence, with an ending, with another thing, or with a word without meaning."""
    article = next((word for word in ("a", "an", "the") if f"{word} {{}}" in template), "")
    phrase = f"{article} {name}".strip()
    kind = rng.choice(("sentence", "ending", "both", "other", "non-word"))
    text = (
        rng.choice(SENTENCES).replace("{}", phrase) if kind in ("sentence", "both") else template.replace("{}", name)
    )
    if kind == "other":
        return template.replace("{}", f"{name} {rng.choice(('beside', 'near', 'and', 'behind'))} {rng.choice(OTHERS)}")
    if kind in ("ending", "both"):
        return f"{text.rstrip(' .?')}, {rng.choice(ENDINGS)}."
    if kind == "non-word":
        letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 8)))
        return f"{text.rstrip(' .?')}, with {letters}."
    return text


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
