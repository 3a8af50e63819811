"""Files and folders that appear atomically or are set aside, JSON of others, and names that may be Hub ids."""

from __future__ import annotations

import errno
import glob
import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id

MAX_BYTES = 64_000_000
MAX_DEPTH = 16
DAMAGED = "damaged-"


@contextmanager
def atomic_folder(folder: Path, replaces: str | None = None, scratch: Path | None = None) -> Iterator[Path]:
    """Give a temporary folder to write to, which becomes `folder`, once on the disk, if the block raises nothing.

    An earlier result is replaced if it has the file `replaces`; anything else there stays, with a `FileExistsError`
    before the block and at its end. The temporary folder lies in `scratch`, on the same disk, or beside `folder`.
    """
    _check_free(folder, replaces)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch or folder.parent, prefix=f".{folder.name}-") as own:
        fresh, old = Path(own) / "new", Path(own) / "old"
        fresh.mkdir()
        yield fresh
        sync(fresh)
        _check_free(folder, replaces)
        try:
            if replaces and folder.exists():
                folder.rename(old)
            _rename_to_free(fresh, folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
        sync_folder(folder.parent)


def _check_free(folder: Path, replaces: str | None) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file. Choose a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (replaces and (folder / replaces).is_file()):
        raise FileExistsError(f"{folder} is not empty. Choose another folder, or remove it first.")


def _rename_to_free(fresh: Path, folder: Path) -> None:
    """Rename a folder; the operating system refuses it where another process has filled the place meanwhile."""
    if folder.exists() and os.name != "posix":
        folder.rmdir()  # it is empty, and only POSIX replaces an empty folder
    try:
        fresh.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(f"{folder} was written by another process meanwhile, and stays.") from error
        raise


@contextmanager
def atomic_file(path: Path, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path to write to, which replaces the file `path` if the block raises nothing.

    It has reached the disk before it gets its name; if not `durable`, a power cut may leave an empty file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        fresh = Path(scratch) / path.name
        yield fresh
        if durable:
            sync(Path(scratch))
        fresh.replace(path)
        if durable:
            sync_folder(path.parent)


def sync(folder: Path) -> None:
    """Wait until all files and folders that a folder holds, and their names in it, have reached the disk."""
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            if path.is_file() and not path.is_symlink():
                _fsync(path)
        sync_folder(Path(place))


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder have reached the disk, where the file system can do that."""
    if os.name != "posix":
        return
    try:
        _fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def set_aside(path: Path) -> Path:
    """Rename what is damaged to `damaged-<name>`, with a number if that name is taken, and return the new path."""
    endings = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    places = (path.with_name(f"{DAMAGED}{path.name}{ending}") for ending in endings)
    aside = next(place for place in places if not os.path.lexists(place))
    path.rename(aside)
    sync_folder(path.parent)
    return aside


def remove_unfinished(path: Path) -> None:
    """Remove what a crash left of [`atomic_folder`] or [`atomic_file`]. No other process may be writing `path`."""
    for scratch in path.parent.glob(f".{glob.escape(path.name)}-*"):
        shutil.rmtree(scratch)


def to_json(record: Any, indent: int | None = 2) -> str:
    """Return a record as JSON text that ends in a newline; NaN and infinity, which JSON lacks, are null."""
    finite = json.loads(json.dumps(record), parse_constant=lambda _: None)
    text = json.dumps(finite, indent=indent, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode()  # of a file name that is not UTF-8, JSON's own escapes


def read_bytes(path: str | Path, most: int = MAX_BYTES) -> bytes:
    """Return what a file holds; raise `ValueError`, with its name, if that is more than `most` bytes."""
    with Path(path).open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path} is larger than {most:,} bytes.")
    return data


def read_json(path: str | Path) -> Any:
    """Return what a JSON file holds; raise `ValueError`, with its name, if it is over 64 MB or [`parse_json`] does."""
    data = read_bytes(path)
    try:
        return parse_json(data.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def parse_json(text: str) -> Any:
    """Return the value of a JSON text; raise `ValueError` for a name twice in an object and what is not plain."""
    try:
        value = json.loads(text, object_pairs_hook=_without_repetition)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep.") from None
    check_plain("it", value)
    return value


def check_plain(name: str, value: Any, depth: int = 0, key: str | None = None) -> None:
    """Raise `ValueError` for a value that is nested too deeply, or has text or numbers that others cannot read."""
    within = "" if key is None else f" in {short(key)}"
    if depth > MAX_DEPTH:
        raise ValueError(f"{name} is nested more than {MAX_DEPTH} levels deep.")
    if isinstance(value, int) and value.bit_length() > 63:
        raise ValueError(f"{name} holds a number of more than 64 bits{within}.")
    if isinstance(value, float) and depth and not math.isfinite(value):
        raise ValueError(f"{name} holds the number {value}{within}, which is not finite.")
    if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError(f"{name} holds half a character (a lone surrogate){within}: {short(value)}.")
    if isinstance(value, dict):
        check_plain(name, list(value), depth)
        for inner, each in value.items():
            check_plain(name, each, depth + 1, inner)
    elif isinstance(value, list):
        for each in value:
            check_plain(name, each, depth + 1, key)


def short(value: Any) -> str:
    """Return a value of a file as ASCII text for a message, cut to 80 characters."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name, value in pairs:
        if name in record:
            raise ValueError(f"an object has the name {short(name)} twice.")
        record[name] = value
    return record


def hub_id(name: str | None) -> str | None:
    """Return `name` if it is a Hub id (`namespace/name`) and no local path, else `None`."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name if name and "/" in name and not Path(name).exists() else None
