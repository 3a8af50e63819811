"""Noise prompts: perturb the class texts, fuse them weakly with the clean ones, cluster (ANPrompt, section 3).

The pipeline works on L2-normalised text features `[n, d]` of the frozen CLIP and is deterministic in its seed. Each
draw of a class has a random source of its own, named by seed, class and draw, so neither the order nor the number of
the other classes changes it.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .class_texts import ClassSet, check_descriptions, own_tokenizer, tokenize, tokenize_classes
from .config import ANPromptConfig
from .features import ensemble, frozen_text_features, normalize
from .perturb import perturb_class_text
from .updates import Denoiser, denoised

KMEANS_RESTARTS = 10

Noise = tuple[Tensor, list[int]]
"""Features n of perturbed texts `[M, d]`, and the class of each."""


class Fitted(NamedTuple):
    """What an adapter freezes: noise prompts `[K, d]`, w and u `[C, d]`, token ids, int64 `[C * T, L]`, a denoiser."""

    noise_prompts: Tensor
    clean: Tensor
    perturbed: Tensor
    input_ids: Tensor
    denoiser: Denoiser | None = None


def fit(clip: PreTrainedModel, config: ANPromptConfig, denoiser: Denoiser | None = None) -> Fitted:
    """Compute what an adapter freezes, from the frozen CLIP and the class texts; the tokenizer stays in `config`.

    With a denoiser, in the CLIP's dtype and on its device, all texts are denoised.

    A model on the meta device, a tokenizer that does not fit it, a class text that is too long or equal to another's,
    and more noise prompts than distinct perturbed features raise `ValueError`.
    """
    if any(parameter.is_meta for parameter in clip.parameters()):
        raise ValueError("The noise prompts need CLIP's weights, but the model is on the meta device. Load it first.")
    own_tokenizer(config)
    names, templates = tuple(config.class_names), tuple(config.templates)
    input_ids = tokenize_classes(names, templates, config.tokenizer, clip.config)
    with denoised(clip.text_model, denoiser):
        clean, perturbed, draws = text_targets(clip, ClassSet(names, templates, input_ids, config.tokenizer), config)
    noise_prompts = cluster(draws, config.num_noise_tokens, config.noise_seed)
    return Fitted(noise_prompts, clean, perturbed, input_ids, denoiser)


@torch.no_grad()
def text_targets(
    clip: PreTrainedModel, classes: ClassSet, config: ANPromptConfig, adapter: str = ""
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the method needs from the frozen text encoder about C classes with their tokenizer.

    An `adapter` that has a denoiser denoises them.

    These are the clean features w `[C, d]`, the perturbed ones u `[C, d]` (the normalised mean over a class's draws),
    and the draws `normalize(w + noise_scale * n)` `[M, d]`.
    """
    clean = clean_features(clip, classes, adapter)  # C, d
    noise, owner = [], []
    for source in config.noise_sources:
        features, classes_of = _SOURCES[source](clip, classes, clean, config, adapter)
        noise.append(features)
        owner.extend(classes_of)
    owners = torch.tensor(owner, device=clean.device)
    draws = normalize(clean[owners] + config.noise_scale * torch.cat(noise))  # M, d
    return clean, class_means(draws, owners, len(classes.names)), draws


def clean_features(clip: PreTrainedModel, classes: ClassSet, adapter: str = "") -> Tensor:
    """Return the frozen CLIP's features w `[C, d]` of classes, normalised, at least float32; perhaps denoised."""
    return ensemble(frozen_text_features(clip, classes.input_ids, adapter), len(classes.templates))


def class_means(features: Tensor, owners: Tensor, num_classes: int) -> Tensor:
    """Return the normalised mean `[C, d]` of the features `[M, d]` of each class."""
    sums = features.new_zeros(num_classes, features.shape[-1]).index_add_(0, owners, features)
    return normalize(sums)


def cluster(features: Tensor, num_clusters: int, seed: int) -> Tensor:
    """Return the KMeans centroids `[K, d]` of the features `[M, d]`, of which as many must be distinct."""
    if num_clusters == 0:
        return features.new_zeros(0, features.shape[-1])
    distinct = len(torch.unique(features, dim=0))
    if num_clusters > distinct:
        raise ValueError(
            f"num_noise_tokens={num_clusters} asks for more clusters than there are distinct perturbed features "
            f"({distinct}). Use at most {distinct}, or raise noise_draws."
        )
    from sklearn.cluster import KMeans  # takes a second and 120 MB, and a loaded adapter never clusters
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        kmeans = KMeans(num_clusters, n_init=KMEANS_RESTARTS, random_state=seed).fit(features.double().cpu().numpy())
    return torch.from_numpy(kmeans.cluster_centers_).to(features)


def _text_noise(
    clip: PreTrainedModel, classes: ClassSet, clean: Tensor, config: ANPromptConfig, adapter: str
) -> Noise:
    texts = [
        perturb_class_text(name, list(classes.templates), random.Random(f"{config.noise_seed}-{name}-{draw}"))
        for name in classes.names
        for draw in range(config.noise_draws)
    ]
    input_ids = tokenize(texts, classes.tokenizer, clip.config, truncate=True)
    return frozen_text_features(clip, input_ids, adapter), _repeat(len(classes.names), config.noise_draws)


def _described_noise(
    clip: PreTrainedModel, classes: ClassSet, clean: Tensor, config: ANPromptConfig, adapter: str
) -> Noise:
    sentences = check_descriptions(config.descriptions, classes.names)
    texts, owner = [], []
    for index, name in enumerate(classes.names):
        rng = random.Random(f"{config.noise_seed}-{name}-descriptions")
        chosen = rng.sample(sentences[name], min(config.noise_draws, len(sentences[name])))
        texts.extend(chosen)
        owner.extend([index] * len(chosen))
    return frozen_text_features(clip, tokenize(texts, classes.tokenizer, clip.config), adapter), owner


def _gaussian_noise(
    clip: PreTrainedModel, classes: ClassSet, clean: Tensor, config: ANPromptConfig, adapter: str
) -> Noise:
    draws = []
    for name in classes.names:
        seed = random.Random(f"{config.noise_seed}-{name}-gaussian").getrandbits(63)
        generator = torch.Generator().manual_seed(seed)
        draws.append(torch.randn(config.noise_draws, clean.shape[-1], generator=generator))
    return normalize(torch.cat(draws).to(clean)), _repeat(len(classes.names), config.noise_draws)


def _repeat(num_classes: int, draws: int) -> list[int]:
    return [index for index in range(num_classes) for _ in range(draws)]


_SOURCES = {"text": _text_noise, "descriptions": _described_noise, "gaussian": _gaussian_noise}
