"""Short hands of the tests."""

from __future__ import annotations

import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.utils import check_peft_version

from anprompt_peft import ANPromptConfig

CLASSES = ["cat", "dog", "small fish"]
LABELS = torch.tensor([0, 2, 1])


def _refusal() -> str:
    """Why transformers' own `add_adapter` refuses the installed PEFT, empty if it does not."""
    try:
        check_peft_version(MIN_PEFT_VERSION)
    except ValueError as error:
        return f"transformers' own add_adapter: {error}"
    return ""


needs_add_adapter = pytest.mark.skipif(bool(_refusal()), reason=_refusal())


def make_config(tokenizer: CLIPTokenizer, **settings: Any) -> ANPromptConfig:
    """A configuration for three classes and two target layers per tower, whose loss draws nothing at random."""
    defaults = {"class_names": CLASSES, "tokenizer_name_or_path": tokenizer, "text_layers": 2, "vision_layers": 2}
    return ANPromptConfig(**{**defaults, "rephrased_weight": 0.0, **settings})


def adapt(clip: CLIPModel, tokenizer: CLIPTokenizer, **settings: Any) -> Any:
    """An adapted model in evaluation mode whose trainable weights have left their initial values."""
    return scatter(get_peft_model(clip, make_config(tokenizer, **settings)).eval())


def scatter(model: Any, scale: float = 0.1, seed: int = 2) -> Any:
    """Moves every trainable weight a little, so that nothing is tested at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


def trainable(model: Any) -> dict[str, Any]:
    """The trainable parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def assert_exact(ours: Tensor, expected: Tensor, name: str = "") -> None:
    """Checks float64 equality within 1e-10."""
    assert ours.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10, msg=lambda text: f"{name}: {text}")


@torch.no_grad()
def logits(model: Any, pixels: Tensor) -> Tensor:
    """The model's logits for images."""
    return model(pixel_values=pixels).logits


def cached(cache: Path, repository: str, files: Path, commit: str) -> Path:
    """Lay a repository out as `huggingface_hub` keeps it after a download."""
    root = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(files, root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    return root / "snapshots" / commit


def count_calls(module: torch.nn.Module) -> list[int]:
    """Counts a module's calls, by the number of rows."""
    rows: list[int] = []
    module.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    return rows


def marks(page: str) -> dict[str, tuple[float, float]]:
    """The marks of a page's charts: their titles and places, from the left and from the top."""
    found = re.findall(r'<use [^>]*x="([\d.-]+)" y="([\d.-]+)"[^>]*><title>(.*?)</title>', page)
    return {unescape(title): (float(x), float(y)) for x, y, title in found}


def texts(page: str) -> list[str]:
    """The texts in a page's charts."""
    return [unescape(text) for text in re.findall(r"<text[^>]*>(.*?)</text>", page)]
