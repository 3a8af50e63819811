"""Optional packages, and the extra of this package that installs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Let imports within a block that fail name the extra to install.

    Raises:
        ModuleNotFoundError: if a package is missing; the message has the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(missing(error.name or str(error), name), name=error.name) from error


def missing(package: str, name: str) -> str:
    """Return what to do about a package that is not installed, and belongs to the extra `name`."""
    return f"This needs {package}, which is not installed. Install it with: pip install 'anprompt-peft[{name}]'"
