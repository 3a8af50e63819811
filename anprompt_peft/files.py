"""Files and folders that appear atomically, JSON text, and names that may be paths or Hub ids."""

from __future__ import annotations

import glob
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id


@contextmanager
def whole_folder(folder: Path, replaces: str | None = None) -> Iterator[Path]:
    """Give a temporary folder to write to, which becomes `folder` when the block ends without an error.

    Args:
        folder (`Path`): where the result goes; until the block ends, nothing there changes.
        replaces (`str`, *optional*): name of a file by which an earlier result, which may be replaced, is known.

    Raises:
        FileExistsError: before the block runs, if `folder` is a file or holds anything but such an earlier result.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file. Choose a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (replaces and (folder / replaces).is_file()):
        raise FileExistsError(f"{folder} is not empty. Choose another folder, or remove it first.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        fresh, old = Path(scratch) / "new", Path(scratch) / "old"
        fresh.mkdir()
        yield fresh
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, which replaces the file `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        fresh = Path(scratch) / path.name
        yield fresh
        fresh.replace(path)


def remove_unfinished(path: Path) -> None:
    """Remove what a crash left of [`whole_folder`] or [`whole_file`]. No other process may be writing `path`."""
    for scratch in path.parent.glob(f".{glob.escape(path.name)}-*"):
        shutil.rmtree(scratch)


def to_json(record: Any) -> str:
    """Return a record as indented JSON text that ends in a newline."""
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def hub_id(name: str | None) -> str | None:
    """Return `name` if it is a Hub id (`namespace/name`) and no local path, else `None`."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name if name and "/" in name and not Path(name).exists() else None
