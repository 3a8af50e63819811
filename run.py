"""Sets up the environment and runs the project's commands; needs nothing but Python.

    python3 run.py compare          compare ANPrompt with baselines on digits and icons: where it wins, and where not
    python3 run.py digits           adapt a tiny CLIP to handwritten digits and report what it gained
    python3 run.py classify IMAGE   classify an image file with the adapter that `digits` saved
    python3 run.py test             lint, type check and test

The environment goes to .venv, with the versions of constraints.txt. Further arguments go to the command; paths in them
are relative to the current folder.
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
DIGITS = ROOT / "outputs" / "digits"
QUIET = ["-W", "ignore:`is_gradient_checkpointing`:FutureWarning"]  # raised by PEFT for every adapter
IN_PROCESSES = ["--numprocesses=logical", "--maxprocesses=4", "--dist=loadfile"]  # each test runs in one thread
EXAMPLES: dict[str, list[str]] = {
    "compare": [*QUIET, f"{ROOT}/examples/embedded/compare.py", f"--output={ROOT}/outputs/compare"],
    "digits": [*QUIET, f"{ROOT}/examples/digits/base_to_new.py", f"--output={DIGITS}"],
    "classify": [*QUIET, f"{ROOT}/examples/digits/classify.py", f"--adapter={DIGITS}/adapter"],
}
CHECKS = [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"], ["pytest", *IN_PROCESSES]]


def main(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code: that of the first step that failed, 2 for wrong usage."""
    command, *further = arguments or [""]
    if command in ("-h", "--help"):
        print(__doc__)
        return 0
    if command not in (*EXAMPLES, "test"):
        allowed = ", ".join([*EXAMPLES, "test"])
        print(f"error: unknown command {command!r}. Choose one of: {allowed}.\n" if command else "", file=sys.stderr)
        print(__doc__, file=sys.stderr)
        return 2
    if sys.version_info < (3, 11):  # noqa: UP036 - the reader may start this with any Python
        print(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}.", file=sys.stderr)
        return 2
    set_up()
    if command in EXAMPLES:
        environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # of loading weights
        return subprocess.run([PYTHON, *EXAMPLES[command], *further], env=environment).returncode
    *first_checks, last_check = CHECKS
    further = [str(Path(each).resolve()) if Path(each).exists() else each for each in further]
    for check in [*first_checks, [*last_check, *further]]:
        if code := subprocess.run([PYTHON, "-m", *check], cwd=ROOT).returncode:
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
