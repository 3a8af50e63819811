"""Measurements in fresh processes: their memory is their own, and one that breaks off takes nothing else with it.

Imports nothing heavy, as each of the processes imports it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from tqdm import tqdm

Job = TypeVar("Job")
Result = TypeVar("Result")
Row = dict[str, Any]


def in_process(run: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function of a module in a fresh process, which does not outlive this call or this process.

    Raises:
        ChildProcessError: if it ends without a result.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(sender, run, arguments), daemon=True)
    worker.start()
    sender.close()
    try:
        result: Result = receiver.recv()
    except EOFError:
        worker.join()
        killed = ", killed, perhaps for want of memory" if worker.exitcode == -signal.SIGKILL else ""
        raise ChildProcessError(f"its process ended with code {worker.exitcode}{killed}") from None
    finally:
        worker.kill()
        worker.join()
    return result


def collect(jobs: Iterable[Job], measure: Callable[[Job], list[Row]]) -> tuple[list[Row], list[str]]:
    """The rows of all jobs, and a line for each job whose process broke off."""
    rows: list[Row] = []
    failures = []
    with tqdm(list(jobs), unit="measurement") as bar:
        for job in bar:
            bar.set_description(str(job))
            try:
                rows += measure(job)
            except ChildProcessError as error:
                failures.append(f"{job}: {error}")
    if not rows:
        raise ChildProcessError("\n".join(failures))
    return rows, failures


def _work(sender: Connection, run: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sender.send(run(*arguments))
    sender.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
