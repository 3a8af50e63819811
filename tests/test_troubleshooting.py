"""docs/troubleshooting.md quotes messages that the code still has."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOREIGN = {"KeyError: 'ANPROMPT'"}  # of PEFT; tried below
VALUE = "\0"


def quoted() -> list[str]:
    """The first cells of the page's tables."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([^`|]+)` \|", page, re.MULTILINE)


@cache
def texts() -> tuple[str, ...]:
    """All strings of the package, with a mark where a value goes."""
    return tuple(
        text
        for package in ("anprompt_peft", "anprompt_cli")
        for path in (ROOT / package).rglob("*.py")
        for text in strings_of(path)
    )


def strings_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.replace("%s", VALUE)


@pytest.mark.parametrize("message", [message for message in quoted() if message not in FOREIGN])
def test_the_code_has_the_message(message: str) -> None:
    """Word for word in one string, with a value where the page has `...`."""
    words = message.removeprefix("... ").removesuffix(" ...")
    assert len(words) >= 18, "too short to tell messages apart"
    assert [text for text in texts() if words.replace("...", VALUE) in text]


def test_an_unknown_method_has_this_error() -> None:
    """PEFT's, where this package is not imported."""
    load = "from peft import PeftConfig; PeftConfig.from_pretrained('tests/golden/format-1/default')"
    result = subprocess.run([sys.executable, "-c", load], cwd=ROOT, capture_output=True, text=True)
    assert result.stderr.splitlines()[-1] in FOREIGN


def test_the_page_quotes_messages() -> None:
    messages = quoted()
    assert len(messages) == len(set(messages)) >= 20
    assert set(messages) >= FOREIGN
    rows = re.findall(r"^\| (?!message \|)(.*) \|$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert [row for row in rows if row.count(" | ") != 2] == []
    assert len(rows) == len(messages)
