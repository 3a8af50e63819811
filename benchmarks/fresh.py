"""Measurements in fresh processes: their memory is their own, and one that breaks off takes nothing else with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from tqdm import tqdm

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_process(run: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function of a module in a fresh process; see [`in_processes`]."""
    return in_processes(run, [arguments])[0]


def in_processes(run: Callable[..., Result], calls: list[tuple[Any, ...]]) -> list[Result]:
    """Make all calls at the same time, each in a fresh process, and return the results in order.

    No process outlives this call or this process.

    Raises:
        ChildProcessError: if one of them ends without a result; the others are ended.
    """
    context = multiprocessing.get_context("spawn")
    workers: dict[Any, Any] = {}
    results: dict[Any, Result] = {}
    try:
        for arguments in calls:
            receiver, sender = context.Pipe(duplex=False)
            workers[receiver] = context.Process(target=_work, args=(sender, run, arguments), daemon=True)
            workers[receiver].start()
            sender.close()
        while waiting := [receiver for receiver in workers if receiver not in results]:
            ready: Any
            for ready in wait(waiting):
                try:
                    results[ready] = ready.recv()
                except EOFError:
                    workers[ready].join()
                    raise ChildProcessError(_ending(workers[ready].exitcode)) from None
    finally:
        for receiver, worker in workers.items():
            if receiver not in results:
                worker.kill()
            worker.join()
    return [results[receiver] for receiver in workers]


def collect(
    jobs: Iterable[Job], measure: Callable[[Job], Result], name: Callable[[Job], str]
) -> tuple[list[Result], list[str]]:
    """Measure one job after another; return the results, and a line for each job whose process broke off.

    Raises:
        ChildProcessError: if all of them did.
    """
    jobs, results, failures = list(jobs), [], []
    with tqdm(jobs, unit="measurement") as bar:
        for job in bar:
            bar.set_description(name(job))
            try:
                results.append(measure(job))
            except ChildProcessError as error:
                failures.append(f"{name(job)}: {error}")
    if not results:
        raise ChildProcessError("\n".join(failures))
    return results, failures


def _ending(code: int) -> str:
    killed = ", killed, perhaps for want of memory" if code == -signal.SIGKILL else ""
    return f"its process ended with code {code}{killed}"


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
