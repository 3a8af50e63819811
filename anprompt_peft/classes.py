"""Class texts as CLIP sees them: templates filled in, tokenised, and cut at the longest end-of-text token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig


@dataclass
class ClassSet:
    """Classes to tell apart, with what the method needs to know about their texts.

    Attributes:
        names (`tuple[str, ...]`): the C class names.
        templates (`tuple[str, ...]`): the T templates.
        input_ids (`Tensor`): int64 `[C * T, L]`, the texts of one class after the other.
        targets (`dict[str, tuple[Tensor, Tensor]]`): by adapter, the frozen CLIP's normalised clean and perturbed
            features w and u, each `[C, d]`, once they are known.
        tokenizer (*optional*): for computing targets that are not known yet.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...]
    input_ids: Tensor
    targets: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    tokenizer: Any = None


def class_texts(names: list[str] | tuple[str, ...], templates: list[str] | tuple[str, ...]) -> list[str]:
    """Return the C * T texts, all templates of the first class first."""
    return [template.replace("{}", name) for name in names for template in templates]


def load_tokenizer(tokenizer: Any, name_or_path: str | None) -> Any:
    """Return the tokenizer object if there is one, else load it by name.

    Raises:
        ValueError: if neither is known.
    """
    if tokenizer is not None:
        return tokenizer
    if not name_or_path:
        raise ValueError(
            "No tokenizer: the base model has no name_or_path to load one from. Pass "
            "tokenizer_name_or_path=<Hub id, directory or tokenizer object> to ANPromptConfig."
        )
    return AutoTokenizer.from_pretrained(name_or_path)


def tokenize(texts: list[str], tokenizer: Any, config: CLIPConfig, truncate: bool = False) -> Tensor:
    """Tokenise texts into rows that end at the longest end-of-text token.

    Shorter rows are filled up with the end-of-text token. CLIP reads the first one and its text encoder is causal, so
    nothing after it matters and no attention mask is needed.

    Args:
        texts (`list[str]`): n texts.
        tokenizer: a CLIP tokenizer.
        config (`CLIPConfig`): of the backbone.
        truncate (`bool`): cut texts that exceed the context instead of raising.

    Returns:
        `Tensor`: int64 `[n, L]`.

    Raises:
        ValueError: if a text is longer than the context, or the tokenizer does not fit the backbone.
    """
    context = config.text_config.max_position_embeddings
    rows = [tokenizer(text)["input_ids"] for text in texts]
    if truncate:
        rows = [row if len(row) <= context else row[: context - 1] + row[-1:] for row in rows]
    for text, row in zip(texts, rows, strict=True):
        if len(row) > context:
            raise ValueError(
                f"The text {text!r} has {len(row)} tokens, more than the {context} of CLIP's context. Shorten it."
            )
    length = max(len(row) for row in rows)
    input_ids = torch.tensor([row + row[-1:] * (length - len(row)) for row in rows])
    ends = end_of_text_positions(input_ids, config)
    if int(input_ids.max()) >= config.text_config.vocab_size or ends.tolist() != [len(row) - 1 for row in rows]:
        raise ValueError(
            f"The tokenizer {getattr(tokenizer, 'name_or_path', '') or type(tokenizer).__name__!r} does not belong to "
            f"this CLIP (vocabulary of {config.text_config.vocab_size}, end-of-text token "
            f"{config.text_config.eos_token_id}). Pass the backbone's own as tokenizer_name_or_path."
        )
    return input_ids


def end_of_text_positions(input_ids: Tensor, config: CLIPConfig) -> Tensor:
    """Return the positions `[n]` that CLIP pools at, by the same rule as transformers' `CLIPTextModel`."""
    if config.text_config.eos_token_id == 2:
        return input_ids.argmax(dim=-1)
    return (input_ids == config.text_config.eos_token_id).int().argmax(dim=-1)


def trim(input_ids: Tensor, config: CLIPConfig) -> Tensor:
    """Cut the rows after the longest end-of-text position."""
    return input_ids[:, : int(end_of_text_positions(input_ids, config).max()) + 1]
