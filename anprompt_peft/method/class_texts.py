"""Class texts: names and templates checked, filled in, tokenised, and cut at the longest end-of-text token."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from .families import family_of, reads_highest

SPARE_ROWS = 1024
"""Fewer rows of token embeddings than these may belong to no token."""


def composed(name: str) -> str:
    """Return a class name with its accents composed (NFC), the one form in which names are stored and compared.

    macOS decomposes the names of files, and CLIP's tokenizer reads both forms as the same tokens.
    """
    return unicodedata.normalize("NFC", name)


def as_read(name: str) -> str:
    """Return a class name as CLIP's tokenizer reads it: [`composed`], in lower case, with single spaces."""
    return " ".join(composed(name).lower().split())


def check_class_names(names: Any) -> list[str]:
    """Return class names [`composed`]; raise `ValueError` unless they are two or more different, non-empty strings.

    A set is refused: its order, by which labels are numbered, differs between processes.
    """
    ordered = isinstance(names, Collection) and not isinstance(names, (str, Set))
    if not ordered or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names must be a list of strings, got {names!r}.")
    names = [composed(name) for name in names]
    if len(names) < 2:
        raise ValueError(f"class_names needs at least two classes, got {list(names)!r}.")
    if empty := [index for index, name in enumerate(names) if not name.strip()]:
        raise ValueError(f"class_names must not be empty strings: check position(s) {empty}.")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"class_names must all be different, these are repeated: {repeated}.")
    return names


def check_template(template: Any) -> None:
    """Raise `ValueError` unless `template` is one or more different strings with exactly one `{}` each."""
    templates = [template] if isinstance(template, str) else template
    if not isinstance(templates, (list, tuple)) or not templates:
        raise ValueError(f"template must be a string or a non-empty list of strings, got {template!r}.")
    for text in templates:
        if not isinstance(text, str) or text.count("{}") != 1:
            raise ValueError(
                f"template {text!r} must contain {{}} exactly once, where the class name goes: 'a photo of a {{}}.'"
            )
    if len(set(templates)) < len(templates):
        raise ValueError(f"template must not list a template twice, got {templates!r}.")


def check_descriptions(descriptions: dict[str, list[str]] | None, class_names: Sequence[str]) -> dict[str, list[str]]:
    """Return the descriptions; raise `ValueError` unless every class has at least one, and none is empty."""
    descriptions = descriptions or {}
    missing = [name for name in class_names if not descriptions.get(name)]
    missing += [name for name in class_names if any(not text.strip() for text in descriptions.get(name, ()))]
    if missing:
        raise ValueError(
            f"noise_source 'descriptions' needs at least one non-empty sentence for every class; check {missing}. "
            "Add them to `descriptions` or choose another noise_source."
        )
    return descriptions


@dataclass
class ClassSet:
    """Classes to tell apart, with what the method needs to know about their texts.

    Attributes:
        names (`tuple[str, ...]`): the C class names.
        templates (`tuple[str, ...]`): the T templates.
        input_ids (`Tensor`): int64 `[C * T, L]`, the texts of one class after the other.
        tokenizer (*optional*): for texts about these classes that are still to come.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...]
    input_ids: Tensor
    tokenizer: Any = None


def load_tokenizer(tokenizer: Any, name_or_path: str | None) -> Any:
    """Return the tokenizer object if there is one, else load it by name; raise `ValueError` if neither is one."""
    if tokenizer is not None:
        if not callable(getattr(tokenizer, "convert_ids_to_tokens", None)):
            inner = "its .tokenizer" if hasattr(tokenizer, "tokenizer") else "a tokenizer, or where to load one from"
            raise ValueError(f"{type(tokenizer).__name__} is no tokenizer. Pass {inner}.")
        return tokenizer
    if not name_or_path:
        raise ValueError(
            "No tokenizer: the base model has no name_or_path to load one from. Pass "
            "tokenizer_name_or_path=<Hub id, directory or tokenizer object> to ANPromptConfig."
        )
    return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)


def own_tokenizer(config: Any) -> Any:
    """Return the tokenizer that an adapter's configuration names, loaded at most once."""
    config.tokenizer = load_tokenizer(config.tokenizer, config.tokenizer_name_or_path)
    return config.tokenizer


def tokenize_classes(
    names: Sequence[str], templates: Sequence[str], tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig
) -> Tensor:
    """Tokenise the C * T class texts, all templates of the first class first: int64 `[C * T, L]`.

    Two classes with the same tokens, which could not be told apart, raise `ValueError`.
    """
    texts = [template.replace("{}", name) for name in names for template in templates]
    input_ids = tokenize(texts, tokenizer, config)
    alike = defaultdict(list)
    for name, ids in zip(names, input_ids.view(len(names), -1).tolist(), strict=True):
        alike[tuple(ids)].append(name)
    if clashes := [same for same in alike.values() if len(same) > 1]:
        raise ValueError(
            f"class_names {clashes} become the same tokens, for CLIP reads all letters as lower case. Give each class "
            "a name of its own."
        )
    return input_ids


def cleaned(text: str, config: PreTrainedConfig) -> str:
    """Return a text as a model's tokenizer has to be given it: where padding is read, in lower case."""
    return text.lower() if family_of(config).pads else text


def tokenize(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, truncate: bool = False
) -> Tensor:
    """Tokenise texts into rows that end at the longest end-of-text token, or where padding is read, at the context's.

    Shorter rows are filled up with the end-of-text token. CLIP reads the first one and its text encoder is causal, so
    nothing after it matters and no attention mask is needed. Returns int64 `[n, L]`. Texts that exceed the
    context are cut with `truncate`, and else raise `ValueError`, as does a tokenizer that does not fit the backbone.
    """
    context, filled = config.text_config.max_position_embeddings, {}
    if family_of(config).pads:
        _check_padding(tokenizer, config)
        texts, filled = (
            [cleaned(text, config) for text in texts],
            {"padding": "max_length", "padding_side": "right", "max_length": context},
        )
    rows = [tokenizer(text, verbose=False, **filled)["input_ids"] for text in texts]
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
        _check_special_tokens(texts, rows, tokenizer, config)
        raise _misfit(tokenizer, config, f"end-of-text token {config.text_config.eos_token_id}")
    return input_ids


def _misfit(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, needed: str) -> ValueError:
    return ValueError(
        f"The tokenizer {getattr(tokenizer, 'name_or_path', '') or type(tokenizer).__name__!r} does not belong to "
        f"this CLIP (vocabulary of {config.text_config.vocab_size}, {needed}). Pass the backbone's own as "
        "tokenizer_name_or_path."
    )


def _check_padding(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Raise `ValueError` for a tokenizer that does not pad, puts a token in front, or has another vocabulary.

    Configurations of these models do not name the end-of-text token; a vocabulary may have a few rows to spare.
    """
    spare = config.text_config.vocab_size - len(tokenizer)
    first, *_ = tokenizer("a", verbose=False)["input_ids"]
    if tokenizer.pad_token_id is None or first == tokenizer.bos_token_id or not 0 <= spare < SPARE_ROWS:
        raise _misfit(tokenizer, config, "a padding token, and no token in front of texts")


def _check_special_tokens(
    texts: Sequence[str], rows: list[list[int]], tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig
) -> None:
    """Raise `ValueError` if a text ends early by its own words, or CLIP would read it at a token that was added."""
    end = tokenizer.eos_token_id
    for text, row in zip(texts, rows, strict=True):
        if end in row[:-1]:
            raise ValueError(
                f"The text {text!r} contains {tokenizer.eos_token!r}, where CLIP stops reading. Take it out of the "
                "class name or template."
            )
        if reads_highest(config) and row[-1] == end < max(row) < config.text_config.vocab_size:
            raise ValueError(
                f"The text {text!r} has a token added behind {tokenizer.eos_token!r}, and with eos_token_id=2 "
                "transformers reads a text at its highest token. Set config.text_config.eos_token_id = "
                "tokenizer.eos_token_id, and load CLIP with it: CLIPModel.from_pretrained(name, config=config)."
            )


def end_of_text_positions(input_ids: Tensor, config: PreTrainedConfig) -> Tensor:
    """Return the positions `[n]` that texts are read at, by the same rule as transformers' text model."""
    if family_of(config).text_end == "last":
        return torch.full_like(input_ids[:, 0], input_ids.shape[1] - 1)
    if reads_highest(config):
        return input_ids.argmax(dim=-1)
    return (input_ids == config.text_config.eos_token_id).int().argmax(dim=-1)


def trim(input_ids: Tensor, config: PreTrainedConfig) -> Tensor:
    """Cut the rows after the longest end-of-text position."""
    return input_ids[:, : int(end_of_text_positions(input_ids, config).max()) + 1]
