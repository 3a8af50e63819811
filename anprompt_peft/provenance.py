"""What a result carries so that it can be repeated: versions, commit and hardware."""

from __future__ import annotations

import os
import platform
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PROJECT = "anprompt-peft"
PACKAGES = (PROJECT, "torch", "transformers", "peft", "accelerate", "datasets", "scikit-learn", "safetensors")


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


def git_commit(package: Path | None = None) -> str | None:
    """Return the commit of this project's clone around `package` (default: this one); `None` outside of one.

    No other repository around it is asked, and neither hooks nor the file monitor of the clone run.
    """
    project = (package or Path(__file__).parent).resolve().parent
    if not _is_clone(project):
        return None
    settings = ("core.fsmonitor=false", f"core.hooksPath={os.devnull}", f"safe.directory={project.as_posix()}")
    flags = [part for each in settings for part in ("-c", each)]
    describe = ["git", *flags, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_CEILING_DIRECTORIES"] = str(project.parent)
    try:
        done = subprocess.run(describe, cwd=project, env=environment, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _is_clone(folder: Path) -> bool:
    """Whether a folder is the top of a clone of this project."""
    try:
        described = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return described.get("project", {}).get("name") == PROJECT and (folder / ".git").exists()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
