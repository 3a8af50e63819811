"""One run at a time in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"


@contextmanager
def lock_folder(folder: str | Path) -> Iterator[None]:
    """Lock a folder for a block, against other processes and threads; the same thread may lock it again inside.

    The operating system releases the lock when the process ends, however that happens, and the data workers that it
    forked. A new folder that the block leaves empty is removed.

    Args:
        folder (`str` or `Path`): created if it does not exist.

    Raises:
        FileExistsError: if somebody else holds it.
    """
    folder = Path(folder).expanduser().resolve()
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        raise FileExistsError(
            f"{folder} is in use: another run is going on in it. Wait for its end, or choose another folder."
        ) from None
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            with suppress(OSError):  # Windows deletes no open file
                (folder / LOCK).unlink()
        lock.release()
        if is_new:
            with suppress(OSError):
                folder.rmdir()
