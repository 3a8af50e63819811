"""A planned call run: arithmetic alone, without caches, random numbers of the host, or looks at values of tensors.

Shapes: B images, C classes, T templates, m drawn texts, p prompts, d the joint width, d_v the vision encoder's.
"""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from ..anchored import join
from ..method.config import ANPromptConfig
from ..method.families import family_of, image_head
from ..method.features import at_least_float32, ensemble, full_precision, unit
from ..method.losses import Frozen, Scores, Term, clip_logits, loss_terms, score
from .encoders import ImageFeatures, encode_images, encode_texts
from .plan import Plan, Texts
from .sharding import gather_shards


def run(
    clip: PreTrainedModel, plan: Plan, pixel_values: Tensor, labels: Tensor | None = None, interpolate: bool = False
) -> tuple[Tensor, Scores, dict[str, Term]]:
    """Return the logits `[B, C]` to use, those of every kind and, with labels, the loss terms.

    Args:
        clip (`CLIPModel`): the adapted model.
        plan (`Plan`): of this call.
        pixel_values (`Tensor`): `[B, 3, H, W]`.
        labels (`Tensor`, *optional*): int64 `[B]`.
        interpolate (`bool`): allow other image sizes.
    """
    text = encode_classes(clip, plan)  # C, d
    images = encode_images(clip, plan, pixel_values, interpolate)  # B, d; B, p, d_v; B, d
    scores = score_images(clip, plan, images, text)  # B, C
    logits = getattr(scores, f"logits_{plan.kind}")
    if plan.classifier is not None and images.frozen is not None:
        logits = join_classifier(clip, plan.config, plan.classifier, logits, images.frozen)
    return logits, scores, {} if labels is None else _terms(clip, plan, scores, text, images.frozen, labels)


def join_classifier(
    clip: PreTrainedModel, config: ANPromptConfig, classifier: tuple[Tensor, Tensor], logits: Tensor, frozen: Tensor
) -> Tensor:
    """Return logits `[B, C]` with a classifier's joined, of the frozen CLIP's image features `[B, d]`."""
    at, rows = classifier
    with full_precision(logits):
        return join(
            logits, at, unit(frozen, clip).to(logits), rows.to(logits), logit_scale(clip), config.classifier_weight
        )


def encode_classes(clip: PreTrainedModel, plan: Plan) -> Tensor:
    """Return the prompted, normalised features of the plan's classes, `[C, d]`."""
    if plan.text_features is not None:
        return plan.text_features
    assert plan.texts is not None
    rows = _unit_rows(clip, plan, plan.texts)  # C * T, d
    with full_precision(rows):
        return ensemble(rows, len(plan.classes.templates))


def score_images(clip: PreTrainedModel, plan: Plan, images: ImageFeatures, text: Tensor) -> Scores:
    """Return the logits `[B, C]` of encoded images over texts `[C, d]`, of every kind that the plan prepares."""
    prompts = None if images.prompts is None else clip.vision_model.post_layernorm(images.prompts)  # B, p, d_v
    with full_precision(images.features):
        prototype = None if prompts is None else unit(image_head(clip).prototype(prompts, plan.adapter))  # B, d
        frozen, scale, bias = None, logit_scale(clip), logit_bias(clip)
        if plan.clean_text is not None and images.frozen is not None:
            frozen = clip_logits(unit(images.frozen, clip), plan.clean_text.to(text), scale, bias)  # B, C
        return score(unit(images.features, clip), prototype, text, scale, plan.config, frozen, bias)


def _terms(
    clip: PreTrainedModel, plan: Plan, scores: Scores, text: Tensor, image: Tensor | None, labels: Tensor
) -> dict[str, Term]:
    rephrased = frozen = weights = None
    if plan.rephrased is not None and plan.rephrased_targets is not None:
        rephrased = _unit_rows(clip, plan, plan.rephrased), plan.rephrased_targets  # m, d
    with full_precision(text):
        if image is not None and plan.text_targets is not None:
            clean, perturbed = plan.text_targets
            frozen = Frozen(unit(image, clip), clean.to(text), perturbed.to(text))
        if plan.class_weights is not None:
            weights = plan.class_weights.to(text)
        smoothing = plan.label_smoothing
        return loss_terms(scores, text, labels, frozen, logit_scale(clip), plan.config, weights, rephrased, smoothing)


def _unit_rows(clip: PreTrainedModel, plan: Plan, texts: Texts) -> Tensor:
    features = encode_texts(clip, plan, texts)
    with full_precision(features):
        rows = unit(features, clip)
    return rows if texts.shared is None else gather_shards(rows, texts.shared)


def logit_scale(clip: PreTrainedModel) -> Tensor:
    """Return `exp(logit_scale)`, at least float32."""
    return at_least_float32(clip.logit_scale).exp()


def logit_bias(clip: PreTrainedModel) -> Tensor | None:
    """Return what is added to all logits, at least float32, if anything is."""
    return at_least_float32(clip.logit_bias) if family_of(clip).biased else None
