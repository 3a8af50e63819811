"""The output of the frozen layers, cached on disk for images that are used again with the same pixels."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..files import atomic_file

DEFAULT_MAX_BYTES = 10 * 10**9
CLOCK_SLACK = 1.0  # seconds by which a file's times may lag behind the clock
CHECKSUM = "checksum"
HEADER_ROOM = 64 * 2**10
SHARING = 8
"""Processes that may fill a folder at once and stay within its limit."""
LARGEST_FILE = 2**28
"""Most bytes of a file whose tensors' shapes are not known yet."""

Row = dict[str, Tensor]
Layout = dict[str, tuple[torch.dtype, torch.Size]]

_LAYOUTS: dict[tuple[str, torch.dtype, torch.Size], Layout] = {}  # as this process computed them
_SHARD, _FILE = re.compile(r"[0-9a-f]{2}"), re.compile(r"[0-9a-f]{64}\.safetensors")


class ImageCache:
    """Tensors by image in a folder, a safetensors file each, for any number of runs and processes.

    A file is named by a digest of the image's pixels and of all else that its tensors depend on, so no file
    can be out of date. Files are written atomically and carry a checksum; one that is damaged, or that something else
    wrote, is computed and written again. When the folder is full, files that this run has not used are deleted, least
    recently used first; when there are none, further images are not cached, and a warning says so. The same happens,
    with one warning, when the disk is full or the folder cannot be written to.

    Only regular files of this user are read, with the names, shapes and dtypes that would be computed; links, pipes
    and files of other users are not, and anything that no cache wrote is neither counted nor deleted. The checksum
    finds damage and is not a signature: whoever can write files as this user can change results.

    Args:
        folder (`str` or `Path`): created if it does not exist, for this user only.
        max_bytes (`int`): limit of the size of this user's files in it; of several processes that write to it at
            once, each may exceed it by a batch.

    Raises:
        ValueError: if `max_bytes` is not a positive integer.
        NotADirectoryError: if `folder` is not a folder.
    """

    def __init__(self, folder: str | Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        if type(max_bytes) is not int or max_bytes < 1:
            raise ValueError(f"max_bytes={max_bytes!r} must be a whole number of bytes, at least 1: 10 * 10**9, say.")
        self.folder, self.max_bytes = Path(folder), max_bytes
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise NotADirectoryError(f"{error.filename} is a file. Name a folder for the image cache.") from error
        self._started = time.time() - CLOCK_SLACK
        self._can_write = True
        self._allowance = 0  # bytes to write before the folder, which others may fill, is listed again
        self._warned_of_others = False

    def fetch(
        self,
        images: Tensor,
        depends_on: str,
        compute: Callable[[Tensor], Row],
        outline: Callable[[Tensor], Row] | None = None,
    ) -> Row:
        """Return `compute(images)`, tensors `[B, ...]` by name, read from disk for all images that are cached.

        `depends_on` is all else that the result depends on. `outline` does the same with other values and less work,
        and is called once for the names, shapes and dtypes, which else are those of the first image.
        """
        key = (depends_on, images.dtype, images.shape[1:])
        if key not in _LAYOUTS and outline is not None:
            _LAYOUTS[key] = _layout(_rows(outline(images[:1]))[0])
        paths = [self._path(image, depends_on) for image in images.detach().cpu()]
        cached = {path: row for path in paths if (row := self._read(path, _LAYOUTS.get(key))) is not None}
        fresh: dict[Path, Row] = {}
        layout = _LAYOUTS.get(key) or next(map(_layout, cached.values()), None)
        cached = {path: row for path, row in cached.items() if _layout(row) == layout}
        while missing := [at for at, path in enumerate(paths) if path not in cached and path not in fresh]:
            rows = dict(zip([paths[at] for at in missing], _rows(compute(images[missing])), strict=True))
            self._try_to_write(rows)
            fresh |= rows
            _LAYOUTS[key] = layout = _layout(rows[paths[missing[0]]])
            cached = {path: row for path, row in cached.items() if _layout(row) == layout}
        found = cached | fresh
        names = found[paths[0]]
        return {name: torch.stack([found[path][name].to(images.device) for path in paths]) for name in names}

    def _path(self, image: Tensor, depends_on: str) -> Path:
        key = digest([image], depends_on)
        return self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, path: Path, layout: Layout | None) -> Row | None:
        """Return a file's tensors, `None` unless it is this user's, whole and no larger than it should be."""
        try:
            # not mapped: another process may damage it while it is in use
            with open(path, "rb", opener=_open_safely) as file:
                found, most = os.fstat(file.fileno()), _most_bytes(layout)
                if not stat.S_ISREG(found.st_mode) or found.st_size > most:
                    return None
                if found.st_uid != _user():
                    self._warn_of_others(path)
                    return None
                row = load(file.read(most))
                checksum = row.pop(CHECKSUM)
                if not torch.equal(checksum, _checksum(path, row)):
                    return None
                with suppress(OSError):  # a folder that may only be read
                    os.utime(file.fileno())
                return row
        except Exception:  # whatever is wrong with a file, its tensors can be computed
            return None

    def _warn_of_others(self, path: Path) -> None:
        if not self._warned_of_others:
            self._warned_of_others = True
            warnings.warn(
                f"{path} belongs to another user. Such files in the image cache are not read; their images are "
                "computed. Choose a folder of your own.",
                stacklevel=2,
            )

    def _try_to_write(self, tensors_by_path: dict[Path, Row]) -> None:
        if not self._can_write:
            return
        try:
            self._write(tensors_by_path)
        except OSError as error:
            self._can_write = False
            warnings.warn(
                f"The image cache in {self.folder} cannot be written to: {error}. Training goes on without it; images "
                "that are not in it are computed every time.",
                stacklevel=2,
            )

    def _write(self, tensors_by_path: dict[Path, Row]) -> None:
        contents = {path: _pack(path, tensors) for path, tensors in tensors_by_path.items()}
        size = sum(map(len, contents.values()))
        if size > self._allowance:
            contents = self._make_room(contents)
        else:
            self._allowance -= size
        for path, content in contents.items():
            if path.parent.is_symlink():
                raise NotADirectoryError(f"{path.parent} is a link")
            with atomic_file(path, durable=False) as fresh:  # a file that a power cut left empty is computed again
                fresh.write_bytes(content)

    def _make_room(self, contents: dict[Path, bytes]) -> dict[Path, bytes]:
        """Delete what has to go, and return the contents that fit into the folder then."""
        files = sorted(each for each in _files(self.folder) if each[2] not in contents)  # these are replaced
        unused = [(size, file) for used, size, file in files if used < self._started]
        room = self.max_bytes - sum(size for _, size, _ in files)
        fit = {}
        for path, content in contents.items():
            while room < len(content) and unused:
                size, file = unused.pop(0)
                file.unlink(missing_ok=True)
                room += size
            if room < len(content):
                warnings.warn(
                    f"The image cache in {self.folder} has reached {self.max_bytes:,} bytes: further images are "
                    "computed every time. Raise max_bytes, or use no cache if images are not used again.",
                    stacklevel=2,
                )
                break
            fit[path] = content
            room -= len(content)
        self._allowance = room // SHARING
        return fit


def _open_safely(path: str, flags: int) -> int:
    """Open a file, following no link and waiting for no pipe, where the system can."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def _user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0  # Windows says 0 of every file


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Give time of last use, size and path of every file that a cache of this user wrote; others may delete some."""
    with os.scandir(folder) as entries:
        shards = [entry for entry in entries if _SHARD.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)]
    for shard in shards:
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError), os.scandir(shard) as files:
            for file in files:
                with suppress(FileNotFoundError):
                    found = file.stat(follow_symlinks=False)
                    is_own = stat.S_ISREG(found.st_mode) and found.st_uid == _user()
                    if is_own and _FILE.fullmatch(file.name) and file.name.startswith(shard.name):
                        yield found.st_mtime, found.st_size, Path(file.path)


def digest(tensors: Iterable[Tensor], *others: str) -> str:
    """Return a SHA-256 of tensors, with their types and shapes, and of texts."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for other in others:
        found.update(f"{len(other)} {other}".encode())
    return found.hexdigest()


def _rows(tensors: Row) -> list[Row]:
    """Take tensors `[m, ...]` by name apart, into those of every image."""
    return [dict(zip(tensors, row, strict=True)) for row in zip(*tensors.values(), strict=True)]


def _layout(row: Row) -> Layout:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in row.items()}


def _most_bytes(layout: Layout | None) -> int:
    if layout is None:
        return LARGEST_FILE
    return HEADER_ROOM + sum(dtype.itemsize * shape.numel() for dtype, shape in layout.values())


def _pack(path: Path, tensors: Row) -> bytes:
    """Return the content of a file: tensors, and their checksum, which goes with the file's name."""
    own = {name: tensor.cpu().contiguous() for name, tensor in sorted(tensors.items())}
    return save({**own, CHECKSUM: _checksum(path, own)})


def _checksum(path: Path, tensors: Row) -> Tensor:
    found = digest((tensors[name] for name in sorted(tensors)), path.name, *sorted(tensors))
    return torch.frombuffer(bytearray.fromhex(found), dtype=torch.uint8)
