"""The fenced blocks of the pages, and processes that run them as a reader would.

Python blocks and commands run in processes that are forked from one that has imported torch, transformers and PEFT,
but not this package; packages outside a page's install are hidden from them (`page_install/sitecustomize.py`).
"""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, entry_points, packages_distributions, requires
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = "anprompt-peft"
BASE = "openai/clip-vit-base-patch16"  # from the stand-in of the Hub, where it is the tiny CLIP
TIMEOUT = 240  # seconds for one block
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
EXTRAS = re.compile(rf"(?:{PROJECT}|(?<=[\s'\"])\.)\[([\w\s,-]+)\]")
PRELOADED = [
    "sitecustomize", "torch", "transformers", "transformers.trainer", "transformers.pipelines", "peft", "accelerate",
    "transformers.models.clip.modeling_clip", "transformers.models.clip.processing_clip", "datasets",
    "sklearn.cluster",
]  # fmt: skip


@dataclass(frozen=True)
class Block:
    """One fenced block, or one code cell of a notebook."""

    page: str
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block, with continued lines joined and comments left out."""
        lines = [re.sub(r"(^|\s)#.*", "", line) for line in self.text.replace("\\\n", " ").splitlines()]
        return [" ".join(line.split()) for line in lines if line.strip()]


def pages() -> list[str]:
    """The pages that tell readers what to type, by their paths in the repository."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    found += [*ROOT.glob("examples/*/README.md"), *ROOT.glob("examples/*.ipynb")]
    return sorted(str(path.relative_to(ROOT)) for path in found if path.is_file())


def read_blocks(page: str) -> list[Block]:
    """All blocks of a page in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith(".ipynb"):
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        return [Block(page, number, "python", "".join(cell["source"])) for number, cell in enumerate(cells, 1)]
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, match[2].strip(), re.sub(f"(?m)^{match[1]}", "", match[3]))
        for match in FENCE.finditer(text)
    ]


# --- the install


def extras_of(page: str) -> set[str]:
    """The extras that a page tells its readers to install."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return {extra.strip() for found in EXTRAS.findall(text) for extra in found.split(",")}


def installed_with(extras: set[str]) -> set[str]:
    """The distributions that an install of the package with these extras brings here, by canonical name."""
    found: set[str] = set()
    waiting = [(PROJECT, frozenset(extras))]
    seen = set()
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        with suppress(PackageNotFoundError):  # a requirement of another platform
            for requirement in map(Requirement, requires(name) or []):
                if not requirement.marker or any(requirement.marker.evaluate({"extra": e}) for e in (*wanted, "")):
                    waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
            found.add(canonicalize_name(name))
    return found


def modules_of(extras: set[str]) -> tuple[set[str], set[str]]:
    """The top-level modules that are there and those that are not in an install with these extras."""
    distributions = installed_with(extras) | {"pip", "setuptools"}
    there: set[str] = set()
    absent: set[str] = set()
    for module, providers in packages_distributions().items():
        provided = any(canonicalize_name(provider) in distributions for provider in providers)
        (there if provided else absent).add(module)
    return there, absent - {"sitecustomize"}


def imports_of(source: str) -> set[str]:
    """The top-level modules that a program imports anywhere."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def sources_of(script: Path) -> list[str]:
    """A script of the repository and the modules beside it that it imports, directly or not."""
    found: dict[Path, str] = {}
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found[path] = path.read_text(encoding="utf-8")
            beside = (script.parent / f"{name}.py" for name in imports_of(found[path]))
            waiting += [each for each in beside if each.is_file()]
    return list(found.values())


# --- running


def start_server() -> None:
    """Start the process that all others are forked from, with the environment of this moment."""
    get_context("forkserver").set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


class PythonSession:
    """A Python process that runs block after block, as one program, until its `with` block ends.

    Args:
        folder: where it runs.
        environment: variables that differ from those of the process it is forked from.
        hidden: modules that are as good as not installed.
        assumed: names of `objects()` that the first block finds.
        log: file that takes what is printed.
    """

    def __init__(
        self, folder: Path, environment: dict[str, str], hidden: set[str], assumed: Sequence[str], log: Path
    ) -> None:
        self.pipe, theirs = get_context("forkserver").Pipe()
        self.log = log
        arguments = (theirs, str(folder), str(log), environment, sorted(hidden), assumed)
        self.process = get_context("forkserver").Process(target=_serve_blocks, args=arguments)

    def __enter__(self) -> Self:
        self.process.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self.pipe.send(None)
        self.process.join(30)
        self.process.kill()

    def run(self, code: str, where: str) -> str:
        """Run one block and return what the process has printed so far; an exception in it fails the test."""
        self.pipe.send((code, where))
        if not self.pipe.poll(TIMEOUT):
            self.process.kill()
            raise TimeoutError(f"{where} took more than {TIMEOUT} s:\n{_end_of(self.log)}")
        try:
            error = self.pipe.recv()
        except EOFError:
            error = "The process died."
        if error:
            raise AssertionError(f"{where} fails:\n{_end_of(self.log)}\n{error}")
        return self.log.read_text(errors="replace")


def _end_of(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join([line for line in lines if line.strip()][-40:])


def run_command(command: str, folder: Path, environment: dict[str, str], hidden: set[str], log: Path) -> None:
    """Run one command line.

    Raises:
        AssertionError: if it fails, with the end of what it printed.
        TimeoutError: if it takes too long.
    """
    program, _, target = command.partition(" > ")
    words = shlex.split(program, comments=True)
    unquoted = [word for word in shlex.split(f"{program} {target}", posix=False) if word[0] not in "'\""]
    if words[0] in ("python", "anprompt") and not any(set(word) & set("|&;<>*$`") for word in unquoted):
        arguments = (words, str(folder), str(log), environment, sorted(hidden), target)
        process = get_context("forkserver").Process(target=_run_words, args=arguments)
        process.start()
        process.join(TIMEOUT)
        if process.is_alive():
            process.kill()
            raise TimeoutError(f"{command} took more than {TIMEOUT} s:\n{_end_of(log)}")
        code = process.exitcode
    else:
        everything = {**os.environ, **environment, "HIDDEN_MODULES": ",".join(sorted(hidden))}
        everything["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with log.open("w") as output:
            call = subprocess.Popen(["bash", "-c", command], cwd=folder, env=everything, stdout=output, stderr=output)
            code = call.wait(TIMEOUT)
    assert code == 0, f"{command} ends with code {code}:\n{_end_of(log)}"


def _settle(folder: str, log: str, environment: dict[str, str], hidden: Sequence[str]) -> None:
    sitecustomize: Any = import_module("sitecustomize")

    os.chdir(folder)
    os.environ.update(environment, HIDDEN_MODULES=",".join(hidden))
    sitecustomize.HIDDEN.clear()
    sitecustomize.HIDDEN.update(hidden)
    sys.path[:] = ["", *sitecustomize.PATH]
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def _serve_blocks(
    pipe: Connection, folder: str, log: str, environment: dict[str, str], hidden: Sequence[str], assumed: Sequence[str]
) -> None:
    _settle(folder, log, environment, hidden)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    if assumed:
        namespace.update((name, objects()[name]) for name in assumed)
    for code, where in iter(pipe.recv, None):
        error = None
        try:
            exec(compile(code, where, "exec"), namespace)
        except BaseException:
            error = traceback.format_exc()
        sys.stdout.flush()
        pipe.send(error)


def _run_words(
    words: list[str], folder: str, log: str, environment: dict[str, str], hidden: Sequence[str], target: str
) -> None:
    _settle(folder, log, environment, hidden)
    if target:
        os.dup2(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    program, *arguments = words
    try:
        if program == "anprompt":
            (script,) = entry_points(group="console_scripts", name="anprompt")
            sys.argv = words
            sys.exit(script.load()())
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str(Path(arguments[0]).resolve().parent)
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


@cache
def objects() -> dict[str, Any]:
    """What some pages take as given, made in the process that runs them: see `ASSUMED` in test_docs."""
    import torch
    from accelerate import Accelerator
    from peft import PeftModel, get_peft_model
    from transformers import CLIPModel, CLIPProcessor, TrainingArguments

    from anprompt_peft import ANPromptConfig
    from anprompt_peft.data import ClipTransform, class_names_of, load_image_data

    processor = CLIPProcessor.from_pretrained(BASE)
    clip = CLIPModel.from_pretrained(BASE)
    photos = load_image_data("photos")
    model: PeftModel = get_peft_model(
        CLIPModel.from_pretrained(BASE), ANPromptConfig(class_names=class_names_of(photos["train"]))
    )
    return {
        "accelerator": Accelerator(),
        "arguments": TrainingArguments("outputs/trainer", max_steps=1, report_to="none", remove_unused_columns=False),
        "clip": clip,
        "data": ClipTransform(processor).apply(photos["train"]),
        "labels": torch.tensor([0, 1, 2]),
        "model": model,
        "pixel_values": torch.randn(3, 3, 32, 32),
        "processor": processor,
        "step": 1,
        "train": photos["train"],
        "validation": photos["test"],
    }


def options_of(command: str) -> Iterator[str]:
    """The long options of a command line, without their values."""
    for word in shlex.split(command, comments=True):
        if word.startswith("--"):
            yield word.partition("=")[0]
