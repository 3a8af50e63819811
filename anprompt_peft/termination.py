"""SIGTERM, which schedulers and containers send, treated as Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Terminated(SystemExit, KeyboardInterrupt):
    """SIGTERM was received: a `KeyboardInterrupt` to all who handle that, and else the end with exit code 143."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM interrupt a block as Ctrl-C does; a second one ends the process at once.

    So what is half-written is removed, and worker processes are ended. Outside the main thread, and where SIGTERM is
    handled already, nothing changes.

    Raises:
        Terminated: inside the block.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def interrupt(number: int, _: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated(128 + number)

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
