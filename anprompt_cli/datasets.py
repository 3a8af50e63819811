"""`anprompt datasets check`, `list` and `show`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from .errors import FAILED
from .options import argument, command, flag, option
from .text import as_json

datasets = typer.Typer(no_args_is_help=True, help="The data sets of the benchmarks: what is known, and what is there.")


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Options of `anprompt datasets check`."""

    root: Path = argument("ROOT", "Folder that holds the folders of the data sets.", exists=True, file_okay=False)
    name: list[str] | None = option(
        "Data set to check, or a JSON file with an entry; repeat it. Default: the catalog's.", metavar="NAME"
    )
    all_images: bool = flag("--all-images", "Decode every image, and not one of each class in each split.")
    as_json: bool = flag("--json", "Print JSON.")


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """Options of `anprompt datasets list`."""

    as_json: bool = flag("--json", "Print JSON.")


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Options of `anprompt datasets show`."""

    name: str = argument("NAME", "Data set of the catalog, or a JSON file with an entry.")


@datasets.command(no_args_is_help=True)
@command
def check(options: CheckOptions) -> None:
    """Tell which data sets lie below a folder, whole and as expected, and where to get the others.

    * `anprompt datasets check /data`
    * `anprompt datasets check /data --name eurosat --name dtd --all-images`
    * `anprompt datasets check /data --name my-entry.json --json`

    Exit code 1 if one that is there is not as it should be.
    """
    from .jobs.datasets import as_text, check_all

    findings = check_all(options)
    print(as_json(findings) if options.as_json else as_text(findings))
    if any(each["status"] in ("different", "broken") for each in findings):
        raise typer.Exit(FAILED)


@datasets.command("list")
@command
def list_known(options: ListOptions) -> None:
    """List the data sets of the catalog: names, folders, sizes, copies on the Hub.

    * `anprompt datasets list`
    """
    from .jobs.datasets import known, known_as_text

    print(as_json(known()) if options.as_json else known_as_text())


@datasets.command(no_args_is_help=True)
@command
def show(options: ShowOptions) -> None:
    """Print the entry of a data set as JSON, to read it or to change a copy of it.

    * `anprompt datasets show eurosat > my-eurosat.json`

    A file with an entry can be given wherever a name can.
    """
    from .jobs.datasets import entry_of

    print(entry_of(options.name).to_json(), end="")
