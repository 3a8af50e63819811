"""The output of the frozen layers, cached on disk for images that are used again with the same pixels."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..files import whole_file

DEFAULT_MAX_BYTES = 10 * 10**9
CLOCK_SLACK = 1.0  # seconds by which a file's times may lag behind the clock
CHECKSUM = "checksum"


class ImageCache:
    """Tensors by image in a folder, a safetensors file each, for any number of runs and processes.

    A file is named by a digest of the image's pixels and of all else that its tensors depend on, so no file
    can be out of date. Files are written atomically and carry a checksum; one that is damaged, or that something else
    wrote, is computed and written again. When the folder is full, files that this run has not used are deleted, least
    recently used first; when there are none, further images are not cached, and a warning says so. The same happens,
    with one warning, when the disk is full or the folder cannot be written to.

    Args:
        folder (`str` or `Path`): created if it does not exist.
        max_bytes (`int`): limit of the folder's size; other processes that write to it may each exceed it by a batch.

    Raises:
        ValueError: if `max_bytes` is not a positive integer.
        NotADirectoryError: if `folder` is a file.
    """

    def __init__(self, folder: str | Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        if type(max_bytes) is not int or max_bytes < 1:
            raise ValueError(f"max_bytes={max_bytes!r} must be a whole number of bytes, at least 1: 10 * 10**9, say.")
        self.folder, self.max_bytes = Path(folder), max_bytes
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"{self.folder} is a file. Name a folder for the image cache.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._started = time.time() - CLOCK_SLACK
        self._can_write = True

    @torch.compiler.disable
    def fetch(
        self, images: Tensor, depends_on: str, compute: Callable[[Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return `compute(images)`, read from disk for all images that are cached.

        Args:
            images (`Tensor`): `[B, ...]`.
            depends_on (`str`): all else that the result depends on.
            compute (`Callable`): turns images `[m, ...]` into tensors `[m, ...]` by name.
        """
        paths = [self._path(image, depends_on) for image in images.detach().cpu()]
        kept = {path: tensors for path in paths if (tensors := _read(path)) is not None}
        missing = [at for at, path in enumerate(paths) if path not in kept]
        if missing:
            computed = compute(images[missing])
            rows = [{name: tensor[at] for name, tensor in computed.items()} for at in range(len(missing))]
            fresh = dict(zip([paths[at] for at in missing], rows, strict=True))
            self._try_to_write(fresh)
            kept |= fresh
        names = kept[paths[0]]
        return {name: torch.stack([kept[path][name].to(images.device) for path in paths]) for name in names}

    def _path(self, image: Tensor, depends_on: str) -> Path:
        key = digest([image], depends_on)
        return self.folder / key[:2] / f"{key}.safetensors"

    def _try_to_write(self, tensors_by_path: dict[Path, dict[str, Tensor]]) -> None:
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

    def _write(self, tensors_by_path: dict[Path, dict[str, Tensor]]) -> None:
        files = sorted(_files(self.folder))
        unused = [(size, file) for used, size, file in files if used < self._started]
        room = self.max_bytes - sum(size for _, size, _ in files)
        for path, tensors in tensors_by_path.items():
            content = _pack(path, tensors)
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
                return
            with whole_file(path, durable=False) as fresh:  # a file that a power cut left empty is computed again
                fresh.write_bytes(content)
            room -= len(content)


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Give time of last use, size and path of every file; other processes may delete some meanwhile."""
    for file in folder.glob("*/*.safetensors"):
        with suppress(FileNotFoundError):
            found = file.stat()
            yield found.st_mtime, found.st_size, file


def digest(tensors: Iterable[Tensor], *others: str) -> str:
    """Return a SHA-256 of tensors, with their types and shapes, and of texts."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for other in others:
        found.update(f"{len(other)} {other}".encode())
    return found.hexdigest()


def _pack(path: Path, tensors: dict[str, Tensor]) -> bytes:
    """Return the content of a file: tensors, and their checksum, which goes with the file's name."""
    own = {name: tensor.cpu().contiguous() for name, tensor in sorted(tensors.items())}
    return save({**own, CHECKSUM: _checksum(path, own)})


def _checksum(path: Path, tensors: dict[str, Tensor]) -> Tensor:
    found = digest((tensors[name] for name in sorted(tensors)), path.name, *sorted(tensors))
    return torch.frombuffer(bytearray.fromhex(found), dtype=torch.uint8)


def _read(path: Path) -> dict[str, Tensor] | None:
    """Return a file's tensors, `None` unless it is there and whole."""
    try:
        content = path.read_bytes()  # not mapped: another process may damage it while it is in use
        tensors = load(content)
    except (OSError, SafetensorError):
        return None
    with suppress(OSError):  # a folder that may only be read
        os.utime(path)
    checksum = tensors.pop(CHECKSUM, None)
    return tensors if checksum is not None and torch.equal(checksum, _checksum(path, tensors)) else None
