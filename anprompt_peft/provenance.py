"""What a result carries so that it can be repeated: versions, commit and hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .files import to_json, whole_file, whole_folder  # noqa: F401 - where version 0.1.0 had them

PACKAGES = ("anprompt-peft", "torch", "transformers", "peft", "accelerate", "datasets", "scikit-learn", "safetensors")


def provenance(*packages: str) -> dict[str, Any]:
    """Return package versions, git commit (with `-dirty` for uncommitted changes) and hardware.

    Args:
        packages (`str`): further installed packages whose versions matter.
    """
    versions = {name: version(name) for name in (*PACKAGES, *packages)}
    versions["torch"] = str(torch.__version__)  # with the build, such as +cpu
    return {
        "versions": {"python": platform.python_version(), **versions},
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


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
