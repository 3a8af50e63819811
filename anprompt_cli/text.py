"""Text for terminals and files."""

from __future__ import annotations

from collections.abc import Sequence


def printable(text: str) -> str:
    """Return a text in which control characters, which a terminal would obey, are escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as lines with columns of equal width: the first one flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
