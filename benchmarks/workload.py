"""The step that the benchmarks time: ViT-B/16 at full size with random weights, random images, made-up class names."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from anprompt_peft import ANPromptConfig

BOS, EOS, CONTEXT = 49406, 49407, 77
WORDS_PER_NAME = (1, 1, 2, 2, 3, 4)
TEMPLATE = "a photo of a {}."


class WordTokenizer:
    """One token per word, so that lengths are known and no vocabulary has to be fetched."""

    name_or_path = "one token per word"

    def __call__(self, text: str) -> dict[str, list[int]]:
        """Return token ids between BOS and EOS."""
        words = text.replace(".", " .").split()
        return {"input_ids": [BOS, *(1 + zlib.crc32(word.encode()) % 40_000 for word in words), EOS]}


@dataclass
class Workload:
    """A batch of images with labels, and classes.

    Attributes:
        class_names: C names of one to four words.
        pixels: float32 [B, 3, H, W].
        labels: int64 [B].
    """

    class_names: list[str]
    pixels: Tensor
    labels: Tensor


def make_clip(seed: int = 0, **vision: Any) -> CLIPModel:
    """CLIP of ViT-B/16's size with random weights; the other sizes are transformers' defaults."""
    torch.manual_seed(seed)
    text = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS}
    return CLIPModel(CLIPConfig(text_config=text, vision_config={"patch_size": 16, **vision})).eval()


def make_workload(classes: int, batch: int, image_size: int = 224, seed: int = 0) -> Workload:
    """Images, labels and class names from a seed."""
    rng = random.Random(seed)
    names: dict[str, None] = {}
    while len(names) < classes:
        words = [f"w{rng.randrange(10**6)}" for _ in range(rng.choice(WORDS_PER_NAME))]
        names[" ".join(words)] = None
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(batch, 3, image_size, image_size, generator=generator)
    return Workload(list(names), pixels, torch.randint(classes, (batch,), generator=generator))


def make_adapted(work: Workload, clip: CLIPModel | None = None, **settings: Any) -> Any:
    """The method's model in training mode, at its default configuration."""
    config = ANPromptConfig(
        class_names=work.class_names, template=TEMPLATE, tokenizer_name_or_path=WordTokenizer(), **settings
    )
    return get_peft_model(clip or make_clip(), config).train()


def train_step(model: Any, work: Workload) -> Callable[[], None]:
    """One optimiser step of an adapted model, to be called again and again."""
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-3)

    def step() -> None:
        model(pixel_values=work.pixels, labels=work.labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def lora_step(work: Workload) -> Callable[[], None]:
    """The same step with PEFT's LoRA, rank 8 on queries and values of all layers of both towers."""
    model: Any = get_peft_model(make_clip(), LoraConfig(r=8, target_modules=["q_proj", "v_proj"])).train()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-3)
    ids = class_ids(work.class_names)

    def step() -> None:
        logits = model(input_ids=ids, pixel_values=work.pixels).logits_per_image
        F.cross_entropy(logits, work.labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def class_ids(names: list[str]) -> Tensor:
    """Token ids of the class texts, cut at the longest: int64 [C, L]."""
    rows = [WordTokenizer()(TEMPLATE.format(name))["input_ids"] for name in names]
    length = max(map(len, rows))
    return torch.tensor([row + [EOS] * (length - len(row)) for row in rows])
