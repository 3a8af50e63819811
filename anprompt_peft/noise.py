"""Noise prompts: perturb the class texts, fuse them weakly with the clean ones, cluster (ANPrompt, section 3).

The pipeline works on L2-normalised text features `[n, d]` of the frozen CLIP and is deterministic in its seed. Each
draw of a class has a random source of its own, named by seed, class and draw, so neither the order nor the number of
the other classes changes it.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from .config import ANPromptConfig, check_descriptions
from .perturb import perturb_class_text

KMEANS_RESTARTS = 10

TextEncoder = Callable[[list[str], bool], Tensor]
"""Maps texts to their normalised features `[n, d]`; the flag says whether too long texts are cut or refused."""


def normalize(features: Tensor) -> Tensor:
    """Return `features` divided by their L2 norm over the last dimension, computed as transformers' CLIP does."""
    return features / features.pow(2).sum(dim=-1, keepdim=True).pow(0.5)


def perturbed_features(
    names: list[str], templates: list[str], clean: Tensor, encode: TextEncoder, config: ANPromptConfig
) -> tuple[Tensor, Tensor]:
    """Return the weakly fused features u = normalize(w + noise_scale * n) of every draw.

    Args:
        names (`list[str]`): C class names.
        templates (`list[str]`): their templates.
        clean (`Tensor`): `[C, d]`, the clean features w.
        encode (`TextEncoder`): the frozen text encoder.
        config (`ANPromptConfig`): names the sources, the scale, the draws and the seed.

    Returns:
        `tuple[Tensor, Tensor]`: u `[M, d]` and, int64 `[M]`, the class of each.
    """
    noise, owner = [], []
    for source in config.noise_sources:
        features, classes = _SOURCES[source](names, templates, clean, encode, config)
        noise.append(features)
        owner.extend(classes)
    owners = torch.tensor(owner, device=clean.device)
    return normalize(clean[owners] + config.noise_scale * torch.cat(noise)), owners


def class_means(features: Tensor, owners: Tensor, num_classes: int) -> Tensor:
    """Return the normalised mean `[C, d]` of the features `[M, d]` of each class."""
    sums = features.new_zeros(num_classes, features.shape[-1]).index_add_(0, owners, features)
    return normalize(sums)


def cluster(features: Tensor, num_clusters: int, seed: int) -> Tensor:
    """Return the KMeans centroids `[K, d]` of the features `[M, d]`: the noise prompts.

    Raises:
        ValueError: if there are fewer distinct features than clusters.
    """
    if num_clusters == 0:
        return features.new_zeros(0, features.shape[-1])
    points = features.double().cpu().numpy()
    distinct = len(torch.unique(features, dim=0))
    if num_clusters > distinct:
        raise ValueError(
            f"num_noise_tokens={num_clusters} asks for more clusters than there are distinct perturbed features "
            f"({distinct}). Use at most {distinct}, or raise noise_draws."
        )
    with threadpool_limits(1):
        kmeans = KMeans(num_clusters, n_init=KMEANS_RESTARTS, random_state=seed).fit(points)
    return torch.from_numpy(kmeans.cluster_centers_).to(features)


def _text_noise(
    names: list[str], templates: list[str], clean: Tensor, encode: TextEncoder, config: ANPromptConfig
) -> tuple[Tensor, list[int]]:
    texts = [
        perturb_class_text(name, templates, random.Random(f"{config.noise_seed}-{name}-{draw}"))
        for name in names
        for draw in range(config.noise_draws)
    ]
    return encode(texts, True), _repeat(len(names), config.noise_draws)


def _description_noise(
    names: list[str], templates: list[str], clean: Tensor, encode: TextEncoder, config: ANPromptConfig
) -> tuple[Tensor, list[int]]:
    check_descriptions(config.descriptions, names)
    assert config.descriptions is not None
    texts, owner = [], []
    for index, name in enumerate(names):
        sentences = config.descriptions[name]
        rng = random.Random(f"{config.noise_seed}-{name}-descriptions")
        chosen = rng.sample(sentences, min(config.noise_draws, len(sentences)))
        texts.extend(chosen)
        owner.extend([index] * len(chosen))
    return encode(texts, False), owner


def _gaussian_noise(
    names: list[str], templates: list[str], clean: Tensor, encode: TextEncoder, config: ANPromptConfig
) -> tuple[Tensor, list[int]]:
    draws = []
    for name in names:
        seed = random.Random(f"{config.noise_seed}-{name}-gaussian").getrandbits(63)
        generator = torch.Generator().manual_seed(seed)
        draws.append(torch.randn(config.noise_draws, clean.shape[-1], generator=generator))
    return normalize(torch.cat(draws).to(clean)), _repeat(len(names), config.noise_draws)


def _repeat(num_classes: int, draws: int) -> list[int]:
    return [index for index in range(num_classes) for _ in range(draws)]


_SOURCES = {"text": _text_noise, "descriptions": _description_noise, "gaussian": _gaussian_noise}
