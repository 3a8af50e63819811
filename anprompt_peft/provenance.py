"""What a result carries so that it can be repeated, and how it gets to disk whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("anprompt-peft", "torch", "transformers", "peft", "accelerate", "datasets", "scikit-learn", "safetensors")


def provenance(*packages: str) -> dict[str, Any]:
    """Return package versions, git commit (with `-dirty` for uncommitted changes) and hardware.

    Args:
        packages (`str`): further installed packages whose versions matter.
    """
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in (*PACKAGES, *packages)}},
        "git_commit": git_commit(),
        "hardware": {
            "processor": _processor(),
            "cpu_count": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def git_commit(folder: Path | None = None) -> str | None:
    """Return the commit checked out in `folder` (default: this package's), `None` outside a repository."""
    folder = folder or Path(__file__).parent
    describe = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


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


def to_json(record: Any) -> str:
    """Return a record as indented JSON text that ends in a newline."""
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
