"""Small models, tokenizers and images that the tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

import anprompt_peft  # noqa: F401 - registers the method
from export_folder import export
from tokenization import train_tokenizer

CONTEXT = 48
IMAGE_SIZE = 16
CORPUS = ["a photo of a cat.", "a picture of a dog.", "an image of a small fish.", "the drawing of one red bird."]

MakeClip = Callable[..., CLIPModel]

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer() -> CLIPTokenizer:
    return train_tokenizer(CORPUS, merges=40, context=CONTEXT)


@pytest.fixture(scope="session")
def make_clip(tokenizer: CLIPTokenizer) -> MakeClip:
    """Builds a small random CLIP whose two towers differ in width and depth; equal seeds give equal weights."""

    def make(attention: str = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0, **text: Any) -> CLIPModel:
        config = CLIPConfig(
            text_config={
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "vocab_size": len(tokenizer),
                "max_position_embeddings": CONTEXT,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
                **text,
            },
            vision_config={
                "hidden_size": 48,
                "intermediate_size": 64,
                "num_hidden_layers": 5,
                "num_attention_heads": 4,
                "image_size": IMAGE_SIZE,
                "patch_size": 8,
            },
            projection_dim=24,
            attn_implementation=attention,
        )
        torch.manual_seed(seed)
        clip = CLIPModel(config)
        with torch.no_grad():
            for parameter in clip.parameters():
                if parameter.dim():
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        return clip.to(dtype).eval()

    return make


@pytest.fixture
def clip(make_clip: MakeClip) -> CLIPModel:
    return make_clip()


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(3, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def clip_folder(make_clip: MakeClip, tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved base model with its processor, as it would lie in a Hub repository."""
    folder = tmp_path_factory.mktemp("base") / "clip"
    make_clip().save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The handwritten digits as an image folder, three per class and split."""
    folder = tmp_path_factory.mktemp("digits") / "images"
    export(folder, 3)
    return folder
