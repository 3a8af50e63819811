"""The job of `anprompt data`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from anprompt_peft.data import class_names_of
from anprompt_peft.data.inspect import count_by_class
from anprompt_peft.data.prompts import JOINT, Prompt, read_prompts
from anprompt_peft.extras import missing
from anprompt_peft.method.class_texts import tokenize_classes
from anprompt_peft.method.config import ANPromptConfig

from ..data import DataCheckOptions
from ..errors import Failure
from ..options import CLIP
from ..text import aligned, printable
from .advice import about_duplicates, about_names, about_repetition, duplicates_in, new_looks
from .draw import check_classes
from .labelled import check_parts, choose_classes, choose_split, load_splits

SHOWN = 20
"""Most classes whose prompt is shown; those that are cut always are."""


@dataclass
class Findings:
    """What a training would read.

    Attributes:
        counts (`dict[str, dict[str, int]]`): images by split and class.
        prompts (`list[Prompt]`): as the tokenizer reads them; empty if there is none.
        read (`list[str]`): what was read and what was left out.
        errors (`list[str]`): for what a training would refuse the data.
        warnings (`list[str]`): what else to look at.
    """

    counts: dict[str, dict[str, int]]
    prompts: list[Prompt] = field(default_factory=list)
    read: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return asdict(self)

    def as_text(self) -> str:
        """Return all of it as paragraphs."""
        parts = ["\n".join(map(printable, self.read)), _table(self.counts), self._prompt_table()]
        for title, lines in {"A training would refuse": self.errors, "To look at": self.warnings}.items():
            if lines:
                parts.append("\n".join([f"{title}:", *(f"- {printable(line)}" for line in lines)]))
        if not (self.errors or self.warnings):
            parts.append("Nothing to change.")
        return "\n\n".join(filter(None, parts))

    def _prompt_table(self) -> str:
        shown = [each for at, each in enumerate(self.prompts) if at < SHOWN or each.cut]
        rows = [(each.class_name, each.tokens, each.read + f" [cut: {each.cut}]" * bool(each.cut)) for each in shown]
        table = aligned([("class", "tokens", f"prompt ({JOINT} splits a word)"), *rows], left=True) if rows else ""
        more = len(self.prompts) - len(shown)
        return f"{table}\n{more} more" if more else table


def check_all(options: DataCheckOptions) -> Findings:
    """Read everything that a training would read."""
    read: list[str] = []
    splits = choose_classes(load_splits(options, options.class_names, read.append), options, read.append)
    pool = choose_split(splits, options.train_split, "--train-split")
    found = Findings({split: count_by_class(part) for split, part in splits.items()}, read=read)
    names = class_names_of(pool)
    try:
        check_classes(pool, splits, options.train_split)
    except ValueError as error:
        found.errors.append(str(error))
    template: Any = options.template or ANPromptConfig.template
    _read_prompts(found, names, ANPromptConfig(class_names=names, template=template).templates, options.model)
    found.warnings += about_names(names)
    _check_pictures(found, splits, options)
    return found


def _read_prompts(found: Findings, names: Sequence[str], templates: Sequence[str], model: str | None) -> None:
    name = model or CLIP
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        context = config.text_config.max_position_embeddings
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = f"The tokenizer of {name} cannot be loaded: {' '.join(str(error).split())}"
        if model:
            raise Failure(reason) from error
        found.warnings.append(f"{reason} Prompts were not read. Give a CLIP that is here: --model FOLDER.")
        return
    found.prompts = read_prompts(names, templates, tokenizer, context)
    try:
        tokenize_classes(names, templates, tokenizer, config)
    except ValueError as error:
        found.errors.append(str(error))


def _check_pictures(found: Findings, splits: Mapping[str, Any], options: DataCheckOptions) -> None:
    looks = new_looks(splits)
    readable, corrupt = check_parts(splits, "skip", looks)
    (found.warnings if options.on_corrupt == "skip" else found.errors).extend(corrupt)
    copies = duplicates_in([(split, part, looks.get(split)) for split, part in readable.items()], options.data)
    found.warnings += [*about_duplicates(copies), *about_repetition(copies)]
    if not looks:
        found.warnings.append(f"Only files of the same content were compared. {missing('ImageHash', 'duplicates')}")


def _table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Return the numbers of images by class and split, with their sums."""
    names = list(dict.fromkeys(name for classes in counts.values() for name in classes))
    rows = [[name, *(classes.get(name, 0) for classes in counts.values())] for name in names]
    sums = [f"{len(names)} classes", *(sum(classes.values()) for classes in counts.values())]
    return aligned([["class", *counts], *rows, sums])
