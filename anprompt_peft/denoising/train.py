"""Training of a denoiser: updates of the text encoder, learnt from the tokenizer's vocabulary, without any image."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from ..method.class_texts import tokenize
from ..method.families import MODELS
from ..method.features import frozen_text_features, unit
from ..method.rephrase import vocabulary
from ..method.updates import MATRICES
from ..publish.non_finite import NonFiniteError
from .grammar import Grammar

TARGETS = rf"text_model\.encoder\.layers\.\d+\.self_attn\.({'|'.join(MATRICES)})"
OTHERS = re.compile(r"\.(lora|anprompt)_|\.base_layer\.")
"""Part of the names of weights of an adapter."""
WARMUP, MAX_NORM = 20, 1.0

OnStep = Callable[[int, float, float], None]
"""Called after each step with its number, from 1 on, and the terms of its loss: noisy and clean texts."""


@dataclass(frozen=True)
class Denoising:
    """How a denoiser is trained.

    Args:
        steps (`int`): of AdamW, with a cosine from `learning_rate` to 0 after 20 steps of warm-up.
        batch_size (`int`): pairs of texts per step.
        rank (`int`): r of the updates `1 / sqrt(r) * B A`.
        learning_rate (`float`): peak of AdamW's rate.
        hold (`float`): weight of the term that holds clean texts to their frozen features.
        seed (`int`): of all random numbers.

    Raises:
        ValueError: if a value lies outside its range.
    """

    steps: int = 4000
    batch_size: int = 32
    rank: int = 16
    learning_rate: float = 5e-3
    hold: float = 3.0
    seed: int = 1

    def __post_init__(self) -> None:
        for each in fields(self):
            value, least = getattr(self, each.name), 0 if each.name in ("hold", "seed") else 1
            if each.type == "int" and not (type(value) is int and least <= value < 2**32):
                raise ValueError(f"{each.name}={value!r} must be an integer from {least} to {2**32 - 1}.")
            is_number = type(value) in (int, float) and math.isfinite(value)
            if each.type == "float" and not (is_number and value >= 0 and (value or not least)):
                raise ValueError(f"{each.name}={value!r} must be a finite number {'above' if least else 'from'} 0.")


def train_denoiser(
    clip: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    how: Denoising | None = None,
    on_step: OnStep | None = None,
) -> PeftModel:
    """Train a denoiser of a CLIP's text encoder, a stock LoRA adapter.

    Each step draws pairs of a clean and a noisy text t, n of random words ([`Grammar`]). With f the text encoder's
    normalised feature and f' that with the updates, the loss is the mean of
    `1 - cos(f'(n), f(t)) + hold (1 - cos(f'(t), f(t)))`.

    Args:
        clip (`PreTrainedModel`): a model without adapters, of a family that ANPrompt serves. It is frozen and gets
            the updates; its weights stay as they are.
        tokenizer (`PreTrainedTokenizerBase`): the CLIP's own.
        how (`Denoising`, *optional*): the settings.
        on_step (`Callable`, *optional*): see [`OnStep`].

    Returns:
        `PeftModel`: around `clip`, in evaluation mode. [`save_denoiser`] saves it.

    Raises:
        TypeError: if this is a model of no such family, or one with adapters.
        ValueError: if the rank exceeds the text encoder's width, or the tokenizer is another model's or has no words.
        NonFiniteError: if the loss is NaN or infinite.
    """
    how = how or Denoising()
    check_clip(clip)
    if how.rank > (width := clip.config.text_config.hidden_size):
        raise ValueError(f"rank={how.rank} must not exceed the width of the text encoder, {width}.")
    texts, rng = Texts(clip, tokenizer), random.Random(how.seed)
    model = _with_updates(clip, how)
    updates = [each for each in model.parameters() if each.requires_grad]
    optimizer = AdamW(updates, how.learning_rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(WARMUP, how.steps // 2), how.steps)
    for step in range(1, how.steps + 1):
        clean, noisy = texts.draw(how.batch_size, rng)
        with model.disable_adapter():
            target = frozen_text_features(clip, clean)
        seen, held = (1 - _cosine(_features(clip, tokens), target) for tokens in (noisy, clean))
        loss = seen + how.hold * held
        if not loss.isfinite():
            raise NonFiniteError(f"The loss of step {step} is not finite. Lower learning_rate={how.learning_rate}.")
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(updates, MAX_NORM)
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(step, seen.item(), held.item())
    return model


class Texts:
    """Pairs of texts for a CLIP, as tokens."""

    def __init__(self, clip: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.device, self.config = tokenizer, clip.device, clip.config
        self.longest = clip.config.text_config.max_position_embeddings
        self.grammar = Grammar(vocabulary(tokenizer), self._fits)

    def draw(self, count: int, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Return the token ids of `count` clean texts `[count, L]` and of as many noisy ones `[count, L']`, int64."""
        pairs = [self.grammar.pair(rng) for _ in range(count)]
        clean, noisy = (self._tokens(list(texts)) for texts in zip(*pairs, strict=True))
        return clean, noisy

    def _fits(self, text: str) -> bool:
        return len(self.tokenizer(text, truncation=True, max_length=self.longest + 1)["input_ids"]) <= self.longest

    def _tokens(self, texts: list[str]) -> Tensor:
        return tokenize(texts, self.tokenizer, self.config, truncate=True).to(self.device)


class Similarity(NamedTuple):
    """Mean cosines with the frozen features of clean texts."""

    frozen: float  # noisy texts in the CLIP as it was
    noisy: float  # noisy texts in the denoised one
    clean: float  # clean texts in the denoised one


@torch.no_grad()
def similarity(
    clip: PreTrainedModel,
    denoised: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int = 512,
    seed: int = 2**32,
) -> Similarity:
    """Measure on `count` pairs of texts what a denoiser does; no training has this seed, nor draws these texts."""
    clean, noisy = Texts(clip, tokenizer).draw(count, random.Random(seed))
    target = frozen_text_features(clip, clean)
    rows = ((clip, noisy), (denoised, noisy), (denoised, clean))
    return Similarity(*(_cosine(frozen_text_features(model, tokens), target).item() for model, tokens in rows))


def check_clip(clip: PreTrainedModel) -> None:
    """Raise `TypeError` unless this is a model of one of the families, without adapters."""
    if not isinstance(clip, MODELS) or any(OTHERS.search(name) for name, _ in clip.named_parameters()):
        names = " or ".join(each.__name__ for each in MODELS)
        raise TypeError(
            f"A denoiser is for a plain transformers {names} without adapters, not {type(clip).__name__}. Load one "
            "with its from_pretrained; an adapter's own goes with unload()."
        )


def _with_updates(clip: PreTrainedModel, how: Denoising) -> PeftModel:
    """Return the CLIP with updates that change nothing yet; torch's random numbers go on as if none was drawn."""
    config = LoraConfig(r=how.rank, lora_alpha=1, use_rslora=True, target_modules=TARGETS)
    with torch.random.fork_rng():
        torch.manual_seed(how.seed)
        model: PeftModel = get_peft_model(clip, config)
    return model.eval()


def _features(clip: PreTrainedModel, tokens: Tensor) -> Tensor:
    return unit(clip.get_text_features(input_ids=tokens).pooler_output)


def _cosine(features: Tensor, others: Tensor) -> Tensor:
    return (features * others).sum(dim=-1).mean()
