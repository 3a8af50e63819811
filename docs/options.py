"""Puts the tables of options into the page about the command line when mkdocs builds the site."""

from __future__ import annotations

import re
from typing import Any

from typer import Context
from typer.main import get_command

from anprompt_cli import app

MARK = re.compile(r"<!-- options of ([\w ]+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each mark by the table of its command."""
    return MARK.sub(lambda mark: option_table(mark[1]), markdown)


def option_table(name: str) -> str:
    """Return the arguments and options of a command as a Markdown table, in the words of `--help`."""
    command: Any = get_command(app)
    for part in name.split():
        command = command.commands[part]
    records = (each.get_help_record(Context(command)) for each in command.params)
    cells = ([f"`{names}`", text.replace("  [", " [")] for names, text in records)
    rows = (" | ".join(each.replace("|", "\\|") for each in row) for row in cells)
    return "\n".join(["| option | |", "|---|---|", *(f"| {row} |" for row in rows)])
