"""SIGTERM, which schedulers and containers send, treated as Ctrl-C by every command.

`anprompt_peft.termination` does it for the package: to import it would load PyTorch, while the signal may come.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def sigterm_interrupts() -> Iterator[list[int]]:
    """Let SIGTERM raise `KeyboardInterrupt` in a block, and list it; a second one ends the process at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def interrupt(number: int, _: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        received.append(number)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous)
