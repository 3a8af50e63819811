"""Errors of the package, which name arguments of Python, in options of the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from .config_file import filled

PHRASES = {
    "class_names={name: better name}": '--classes-file and a JSON file {"name": "better name"}',
    "Rename with a dict, {name: better name}; reorder with select_classes.": (
        'Rename with --classes-file and a JSON file {"name": "better name"}.'
    ),
    "Leave these classes out with select_classes": "Leave these classes out of the data",
    "with fewer=True": "with --shots-up-to",
}
ARGUMENTS = {"test": "test_share", "validation": "validation_share"}
ARGUMENT = re.compile(
    r"(?<![\w./\-'\"{\[])([a-z]+(?:_[a-z]+)*)"  # not in a path, a quoted text or a longer name
    r"(?:=('[^']*'|[^\s,;:()]*[^\s,;:.()]))?"
    r"(?![\w/='\"-]|\.\w)"
)
NAMES = "class_names"


def in_options(text: str, options: Any) -> str:
    """Return a message with a command's options in place of the arguments that stand for them in Python.

    Arguments are named as in `shots=16` or `image_column`; a word alone needs an underscore.
    """
    for phrase, ours in PHRASES.items():
        text = text.replace(phrase, ours)
    known = {each.name for each in fields(options)}
    arguments = ARGUMENTS | {name: option for option, (_, name) in filled(options).items()}
    named = [name for name in (NAMES, "classes_file", "rename", "classes") if name in known]
    names = next((name for name in named if getattr(options, name)), (*named, NAMES)[0])

    def option(match: re.Match[str]) -> str:
        argument, value = match.groups()
        name = names if argument == NAMES else arguments.get(argument, argument)
        if name not in known or (value is None and "_" not in argument):
            return match[0]
        flag = f"--{name.replace('_', '-')}"
        return flag if value is None else f"{flag} {value.strip(chr(39))}"

    return ARGUMENT.sub(option, text)


@contextmanager
def worded(options: Any) -> Iterator[None]:
    """Word the messages of `ValueError`s within a block by [`in_options`]."""
    try:
        yield
    except ValueError as error:
        if len(error.args) == 1 and isinstance(error.args[0], str):
            error.args = (in_options(error.args[0], options),)
        raise
