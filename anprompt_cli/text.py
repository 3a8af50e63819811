"""Text for terminals and files. The package's `printable` and `short` stand apart: importing them loads PyTorch."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

JOINERS = "\u200c\u200d"  # parts of words in Persian and Hindi, and of emoji


def printable(text: str) -> str:
    """Return a text with escapes for what a terminal would obey: control and bidirectional characters, raw bytes."""
    return "".join(map(_escaped, text))


def as_json(record: Any, indent: int | None = 2) -> str:
    """Return a record as JSON text; NaN and infinity, which JSON lacks, are null."""
    finite = json.loads(json.dumps(record), parse_constant=lambda _: None)
    return json.dumps(finite, indent=indent, ensure_ascii=False)


def as_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as CSV text, with a line end after each."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def short(value: Any) -> str:
    """Return a value for a message, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def aligned(rows: Sequence[Sequence[Any]], left: bool = False) -> str:
    """Return rows as lines with columns of equal width: the first one flush left, the others right or left."""
    rows = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = map(str.ljust if left else str.rjust, others, widths[1:])
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def _escaped(char: str) -> str:
    """Return a character, or its escape, which from U+007F on is JSON's, so that JSON stays JSON."""
    if char.isprintable() or char in JOINERS or unicodedata.category(char) == "Zs":
        return char
    return repr(char)[1:-1] if char < " " else json.dumps(char)[1:-1]
