"""Calls of the command line in this process."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from anprompt_cli import main


@dataclass(frozen=True)
class Answer:
    """What a call of the command line left behind."""

    code: int
    out: str
    err: str


def call(*arguments: Any) -> Answer:
    """Run the command line in this process."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main([str(argument) for argument in arguments])
    return Answer(code, out.getvalue(), err.getvalue())


def done(*arguments: Any) -> Answer:
    """Run the command line, which must succeed."""
    answer = call(*arguments)
    assert answer.code == 0, answer.err
    return answer


def refused(*arguments: Any) -> str:
    """Run the command line, which must refuse with one line and write nothing else; return that line."""
    answer = call(*arguments)
    lines = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    assert (answer.code, answer.out, len(lines)) == (2, "", 1), answer
    assert "Traceback" not in answer.err
    return lines[0]
