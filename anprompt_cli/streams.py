"""Standard output and standard error: what is written to them is escaped, and they may be closed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

from .errors import Failure, OutputClosed
from .text import printable

CURSOR_UP = re.compile(r"(\x1b\[A|\n)+")


@contextmanager
def closable_output() -> Iterator[None]:
    """Drop progress and errors of a block whose stream is closed; results that cannot be written end it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed; another file would get its number
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for as long as the process runs
    out: Any = _Closable(sys.stdout, needed=True)
    err: Any = _Closable(sys.stderr, needed=False)
    with redirect_stdout(out), redirect_stderr(err):
        yield


@contextmanager
def escaped_output() -> Iterator[None]:
    """Escape within a block all that is printed, logged or warned of, line by line, as names may come from strangers.

    What progress bars need passes: a carriage return at the ends of a text, and a text of steps to the line above.
    """
    out: Any = _Escaping(sys.stdout)
    err: Any = _Escaping(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        yield


class _Wrapped:
    """A stream that is written to in another way, and is otherwise the given one."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Closable(_Wrapped):
    """A stream that may be closed while it is written to."""

    def __init__(self, stream: Any, needed: bool) -> None:
        super().__init__(stream)
        self._needed = needed

    def write(self, text: str) -> int:
        """Write a text."""
        with self._open():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is held back."""
        with self._open():
            self._stream.flush()

    @contextmanager
    def _open(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _discard(self._stream)
            if self._needed:
                gone = isinstance(error, BrokenPipeError)
                raise (OutputClosed("") if gone else Failure(f"Standard output cannot be written: {error}")) from None


class _Escaping(_Wrapped):
    """A stream that escapes what is written to it."""

    def write(self, text: str) -> int:
        """Write a text, escaped."""
        self._stream.write(text if CURSOR_UP.fullmatch(text) else self._escape(text))
        return len(text)

    def _escape(self, text: str) -> str:
        inner = text.strip("\r")
        lines = "\n".join("\t".join(map(printable, line.split("\t"))) for line in inner.split("\n"))
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        return text.replace(inner, lines, 1).encode(encoding, "backslashreplace").decode(encoding)


def _discard(stream: Any) -> None:
    """Let what a stream holds, and all that is written to it, go nowhere."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
