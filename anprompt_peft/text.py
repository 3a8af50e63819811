"""Names and other texts from anywhere, made safe to stand in a line, a log or Markdown."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

JOINERS = "\u200c\u200d"  # parts of words in Persian and Hindi, and of emoji
MARKUP = re.compile(r"[\\`*<>\[\]|~]|^[#+=-]|&(?=#?\w)")


def printable(text: Any) -> str:
    """Return a text as one line, in which characters that end lines, control terminals or turn text are escaped."""
    return "".join(char if _is_shown(char) else repr(char)[1:-1] for char in str(text))


def plain_markdown(text: Any) -> str:
    """Return a text as plain text of Markdown, on one line: no HTML, link, image or end of a table's cell."""
    return MARKUP.sub(r"\\\g<0>", printable(" ".join(str(text).split())))


def _is_shown(char: str) -> bool:
    return char.isprintable() or char in JOINERS or unicodedata.category(char) == "Zs"
