"""The command `anprompt`: compare, train, evaluate, predict, serve, push, info, denoise and benchmark.

It is a package beside `anprompt_peft` and not in it, because importing that one loads torch, transformers and PEFT.
Help, shell completion, wrong options and `info` answer without them. A command imports its job from the folder `jobs`,
which needs them, when it runs.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Annotated

import typer

from .benchmark import benchmark
from .compare import compare
from .config_file import State
from .data import data
from .datasets import datasets
from .denoise import denoise
from .errors import CLOSED, INTERRUPTED, exit_code, message
from .evaluate import evaluate
from .info import info
from .predict import predict
from .push import push
from .serve import serve
from .signals import sigterm_interrupts
from .streams import closable_output, escaped_output
from .train import train

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)
for command in (data, compare, train, evaluate, predict, serve, push, info, denoise):
    app.command(no_args_is_help=True)(command)
app.add_typer(datasets, name="datasets")
app.add_typer(benchmark, name="benchmark")


def _show_version(asked: bool) -> None:
    if asked:
        print(f"anprompt {version('anprompt-peft')}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="ANPROMPT_DEBUG", help="Show the traceback of an error.")
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Adapt CLIP to your own image classes with ANPrompt, and use, measure and publish the adapter.

    From a folder of images to a published adapter:

    * `anprompt train photos --output adapter --shots 16`
    * `anprompt evaluate adapter photos`
    * `anprompt predict adapter holiday/*.jpg`
    * `anprompt push adapter my-name/my-adapter`

    Results go to standard output, progress and errors to standard error.

    Exit codes: 0 all done, 1 something failed, 2 wrong usage, 130 interrupted, 141 output closed, 143 by SIGTERM.
    """
    context.obj.debug = debug


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments (`Sequence[str]`, *optional*): defaults to `sys.argv[1:]`.

    Returns:
        `int`: 0 if all was done; 1 if something failed, or failed for part of the input; 2 for wrong usage; 130 if
        interrupted, 143 if by SIGTERM; 141 if the reader of standard output is gone.
    """
    state = State()
    received: list[int] = []
    with closable_output():
        try:
            with sigterm_interrupts() as received:
                code = app(arguments, prog_name="anprompt", standalone_mode=False, obj=state) or 0
            if code == INTERRUPTED:
                print("interrupted", file=sys.stderr)
            sys.stdout.flush()
        except Exception as error:
            code = exit_code(error)
            with escaped_output():
                if state.debug and code != CLOSED:
                    traceback.print_exc()
                if text := message(error):
                    print(text, file=sys.stderr)
            with suppress(typer.TyperException):
                sys.stdout.flush()
    return 128 + received[0] if received else code
