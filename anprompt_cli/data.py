"""`anprompt data`: a dry run of a training, which reads everything and trains nothing."""

from __future__ import annotations

from dataclasses import dataclass

import typer

from .adapters import check_data
from .errors import FAILED
from .options import CLIP, PoolOptions, check_exclusive, command, flag, option
from .text import as_json


@dataclass(frozen=True, kw_only=True)
class DataCheckOptions(PoolOptions):
    """Options of `anprompt data`."""

    model: str | None = option(
        f"CLIP whose tokenizer reads the prompts: id on the Hub, or folder. Default: {CLIP}, if it can be loaded."
    )
    as_json: bool = flag("--json", "Print JSON.")


@command
def data(options: DataCheckOptions) -> None:
    """Show what a training would read, and what to change before it. Nothing is trained, and no model is loaded.

    * `anprompt data photos`
    * `anprompt data photos --template "a photo of a {}, a type of flower." --model clip-folder`
    * `anprompt data photos --json > photos.json`

    It shows splits and classes with their numbers of images, the prompts as the tokenizer reads them, what is left
    out, unreadable files, pictures that are in two classes or in two splits, and class names that CLIP reads badly.

    Exit code 1 if `anprompt train` with the same options would refuse the data.
    """
    check_exclusive(options, ("class_names", "classes_file"), ("class_names", "rename"))
    check_data(options.data)
    from .jobs.data import check_all

    found = check_all(options)
    print(as_json(found.to_dict()) if options.as_json else found.as_text())
    if found.errors:
        raise typer.Exit(FAILED)
