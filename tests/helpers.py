"""What the tests share: a tiny random CLIP, its tokenizer, an adapted model, and short hands.

A test that needs an adapted model calls [`adapted`], without any fixture:

    model = adapted()                                    # float32, evaluation mode, weights away from their start
    model = adapted(dtype=torch.float64, alpha=0.5)      # further keywords are settings of ANPromptConfig
    model = adapted(make_clip(seed=1), scattered=False)  # around a CLIP of its own, as `get_peft_model` leaves it
"""

from __future__ import annotations

import re
import shutil
import string
from collections.abc import Mapping, Sequence
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    MetaClip2Config,
    PreTrainedTokenizerFast,
    SiglipConfig,
)
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.utils import check_peft_version

from anprompt_cli import main as command_line
from anprompt_peft import ANPromptConfig
from anprompt_peft.method.families import FAMILIES
from anprompt_peft.training import ANPromptTrainer, ANPromptTrainingArguments

TINY_CLIP = Path(__file__).parents[1] / "examples" / "embedded" / "tiny_clip"
WEIGHTS = "adapter_model.safetensors"
CONTEXT = 48
IMAGE_SIZE = 16
CORPUS = ["a photo of a cat.", "a picture of a dog.", "an image of a small fish.", "the drawing of one red bird."]
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


@cache
def tiny_tokenizer() -> CLIPTokenizer:
    """The tokenizer of the tiny CLIP."""
    from tokenization import train_tokenizer  # in `examples`, which the worker processes of the tests do not see

    return train_tokenizer(CORPUS, merges=40, context=CONTEXT)


@cache
def tokenizer_of(family: str) -> Any:
    """The tokenizer of the tiny model of a family, with the conventions of those that are published."""
    if family == "clip":
        return tiny_tokenizer()
    begins = family == "metaclip_2"
    special = ["<s>", "<pad>", "</s>", "<unk>"] if begins else ["<pad>", "</s>", "<unk>"]
    trained = Tokenizer(BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.NFKC()
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    alphabet = [*string.ascii_letters, *string.digits, *string.punctuation]
    trainer = BpeTrainer(vocab_size=180, initial_alphabet=alphabet, special_tokens=special, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    start, ends = ("<s> $A </s>", ("<s>", "</s>")) if begins else ("$A </s>", ("</s>",))
    trained.post_processor = processors.TemplateProcessing(
        single=start, special_tokens=[(each, trained.token_to_id(each)) for each in ends]
    )
    named = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=trained, **named, **({"bos_token": "<s>"} if begins else {}))


CONFIGS = {"clip": CLIPConfig, "metaclip_2": MetaClip2Config, "siglip": SiglipConfig}
"""By family, as transformers calls it."""


def make_clip(attention: str = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0, **text: Any) -> CLIPModel:
    """A small random CLIP whose two towers differ in width and depth; equal seeds give equal weights."""
    return make_model("clip", attention, dtype, seed, **text)


def make_model(
    family: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0, **text: Any
) -> Any:
    """The same of a family."""
    tokenizer = tokenizer_of(family)
    own: dict[str, Any] = {"text": {}, "projection_dim": 24}
    if family == "siglip":  # its configurations do not name the tokens
        own = {"text": {"projection_size": 48, "eos_token_id": 49407}}
    config = CONFIGS[family](
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
            **own.pop("text"),
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
        attn_implementation=attention,
        **own,
    )
    torch.manual_seed(seed)
    clip = FAMILIES[family].model(config)
    with torch.no_grad():
        for parameter in clip.parameters():
            if parameter.dim():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        if family == "siglip":
            clip.logit_scale.fill_(2.5)
            clip.logit_bias.fill_(-3.0)
    return clip.to(dtype).eval()


def make_config(tokenizer: Any = None, **settings: Any) -> ANPromptConfig:
    """A configuration for three classes and two target layers per tower, whose loss draws nothing at random."""
    if "tokenizer_name_or_path" not in settings:
        settings["tokenizer_name_or_path"] = tokenizer or tiny_tokenizer()
    defaults = {"class_names": CLASSES, "text_layers": 2, "vision_layers": 2, "rephrased_weight": 0.0}
    return ANPromptConfig(**{**defaults, **settings})


def adapted(
    clip: Any = None,
    /,
    *,
    dtype: torch.dtype = torch.float32,
    scattered: bool = True,
    adapter_name: str = "default",
    **settings: Any,
) -> Any:
    """The tiny CLIP, or the given one, with an adapter, in evaluation mode.

    Args:
        clip (`CLIPModel`, *optional*): to adapt instead of `make_clip(dtype=dtype)`.
        dtype (`torch.dtype`): of the tiny CLIP.
        scattered (`bool`): whether the trainable weights leave their initial values.
        adapter_name (`str`): of the adapter.
        settings: of the configuration, beside those of [`make_config`].
    """
    clip = clip or make_clip(dtype=dtype)
    config = make_config(tokenizer_of(clip.config.model_type), **settings)
    model: Any = get_peft_model(clip, config, adapter_name=adapter_name).eval()
    return scatter(model) if scattered else model


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


def copies(model: Any) -> dict[str, Tensor]:
    """Copies of the trainable parameters by name."""
    return {name: weight.detach().clone() for name, weight in trainable(model).items()}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Checks that tensors by name are equal bit for bit."""
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def make_trainer(folder: Path, data: Any, model: Any = None, callbacks: Sequence[Any] = (), /, **settings: Any) -> Any:
    """An `ANPromptTrainer` of the tiny CLIP, as `adapted(scattered=False)` makes it, or of a given model."""
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "num_train_epochs": 3}
    arguments = ANPromptTrainingArguments(str(folder), **{**quiet, **settings})
    model = adapted(scattered=False) if model is None else model
    return ANPromptTrainer(model, arguments, train_dataset=data, eval_dataset=data, callbacks=[*callbacks])


def train_by_command(data: Path, output: Path, *more: Any) -> int:
    """Run `anprompt train` for an epoch of two steps, unless more options say otherwise; return its exit code."""
    settings = ("--model", TINY_CLIP, "--shots", 1, "--epochs", 1, "--batch-size", 5)
    return command_line([str(each) for each in ("train", data, "--output", output, *settings, *more)])


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
