"""Small models, tokenizers and images that the tests share."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

import anprompt_peft  # noqa: F401 - registers the method
from export_folder import export
from helpers import CONTEXT, IMAGE_SIZE, make_clip, tiny_tokenizer, train_by_command

__all__ = ["CONTEXT", "IMAGE_SIZE"]

torch.set_num_threads(1)
gc.disable()  # nothing that the collection of tests makes is garbage


def pytest_collection_finish() -> None:
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _few_objects_to_search() -> None:
    """Hides modules, tests and caches from the garbage collector, which Trainer calls twice in each training."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer() -> CLIPTokenizer:
    return tiny_tokenizer()


@pytest.fixture
def clip() -> CLIPModel:
    return make_clip()


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(3, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def data() -> Dataset:
    """Twelve random images of three classes, for three steps an epoch."""
    pixels = torch.randn(12, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(3))
    return Dataset.from_dict({"pixel_values": pixels.numpy(), "labels": [0, 1, 2] * 4}).with_format("torch")


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved base model with its processor, as it would lie in a Hub repository."""
    folder = tmp_path_factory.mktemp("base") / "clip"
    make_clip().save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    CLIPProcessor(image_processor=image_processor, tokenizer=tiny_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The handwritten digits as an image folder, three per class and split."""
    folder = tmp_path_factory.mktemp("digits") / "images"
    export(folder, 3)
    return folder


@pytest.fixture(scope="session")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the command line on the digits."""
    output = tmp_path_factory.mktemp("trained") / "adapter"
    assert train_by_command(digits, output) == 0
    return output


@pytest.fixture
def fresh_accelerate(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets each training of a test run on the CPU, and the next test choose again."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("COLUMNS", "80")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
