"""Sets up the environment and runs the project's commands; needs nothing but Python.

    python3 run.py digits           adapt a tiny CLIP to handwritten digits and report what it gained
    python3 run.py classify IMAGE   classify an image file with the adapter that `digits` saved
    python3 run.py test             lint, type check and test

The environment goes to .venv, with the versions of constraints.txt. Further arguments go to the command.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = str(ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
COMMANDS: dict[str, list[list[str]]] = {
    "digits": [["examples/digits/base_to_new.py"]],
    "classify": [["examples/digits/classify.py"]],
    "test": [["-m", "ruff", "check"], ["-m", "ruff", "format", "--check"], ["-m", "mypy"], ["-m", "pytest"]],
}


def main(arguments: Sequence[str]) -> int:
    """Run a command's steps one after the other; the last one gets the further arguments."""
    if not arguments or arguments[0] not in COMMANDS:
        print(__doc__, file=sys.stderr)
        return 2
    if sys.version_info < (3, 11):  # noqa: UP036 - the reader may start this with any Python
        print(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}.", file=sys.stderr)
        return 2
    set_up()
    *first_steps, last_step = COMMANDS[arguments[0]]
    for step in [*first_steps, [*last_step, *arguments[1:]]]:
        if code := subprocess.run([PYTHON, *step], cwd=ROOT).returncode:
            return code
    return 0


def set_up() -> None:
    """Create the environment, or bring it up to date after pyproject.toml or constraints.txt changed."""
    wanted = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")))
    mark = ENVIRONMENT / "installed.sha256"
    if mark.is_file() and mark.read_text() == wanted.hexdigest():
        return
    print(f"Setting up {ENVIRONMENT} (once) ...", flush=True)
    venv.create(ENVIRONMENT, with_pip=True)
    install = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", "constraints.txt"]
    subprocess.run([*install, "torch"], cwd=ROOT, check=True)
    subprocess.run([*install, "-e", ".[dev]"], cwd=ROOT, check=True)
    mark.write_text(wanted.hexdigest())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
