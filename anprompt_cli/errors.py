"""Exit codes, and what the user reads when something goes wrong."""

from __future__ import annotations

import signal

import typer

from .text import short

MAX_TEXT = 4000
FAILED, USAGE, CLOSED = 1, 2, 141
INTERRUPTED = 128 + signal.SIGINT
WRONG_INPUT = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


class Failure(typer.TyperException):
    """Something failed that other options would not fix: exit code 1."""

    exit_code = FAILED


class Interrupted(typer.TyperException):
    """A signal stopped the command: exit code 130, or 143 by SIGTERM; the message says how to go on, in one line."""

    def __init__(self, message: str, received: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + received


class OutputClosed(typer.TyperException):
    """Nobody reads the results any more, as after `| head`: nothing is printed, and the exit code is SIGPIPE's."""

    exit_code = CLOSED


def exit_code(error: Exception) -> int:
    """Return 2 for a wrong option, file or value, and 1 for anything else that went wrong."""
    if isinstance(error, typer.TyperException):
        return error.exit_code
    return USAGE if isinstance(error, WRONG_INPUT) else FAILED


def message(error: Exception) -> str:
    """Return what to print about an error: one line, unless it lists several files. Nothing after help was shown."""
    if isinstance(error, Interrupted | Failure):
        return f"{'error: ' * isinstance(error, Failure)}{error.message}"
    text = error.format_message() if isinstance(error, typer.TyperException) else str(error)
    if not text and isinstance(error, typer.TyperException):
        return ""
    text = " ".join(text.replace("Value error, ", "").split())
    if len(text) > MAX_TEXT:
        text = f"{text[: MAX_TEXT // 2]} [...] {text[-MAX_TEXT // 2 :]}"
    return f"error: {_kind(error)}{text}{_given(error)}{_hint(error)}"


def _kind(error: Exception) -> str:
    """Name the type of an unexpected error, whose text alone may not say much."""
    expected = (typer.TyperException, FloatingPointError, *WRONG_INPUT)
    return "" if isinstance(error, expected) else f"{type(error).__name__}: "


def _given(error: Exception) -> str:
    """Name the value of an option where typer only says what it should be."""
    details = getattr(error.__cause__, "errors", None)
    value = short(details()[0]["input"]) if isinstance(error, typer.BadParameter) and details else ""
    return "" if value in str(error) else f", not {value}."


def _hint(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f" See {context.command_path} --help." if context else ""
