"""`anprompt push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def push(
    folder: Annotated[
        Path,
        Argument(
            metavar="ADAPTER", exists=True, file_okay=False, help="Folder that `train` wrote.", show_default=False
        ),
    ],
    repo: Annotated[
        str, Argument(metavar="REPO", help="Repository, namespace/name; created if need be.", show_default=False)
    ],
    private: Annotated[
        bool | None,
        Option(
            "--private/--public",
            help="Whether a new repository is private. Default: as on the Hub.",
            show_default=False,
        ),
    ] = None,
    revision: Annotated[
        str | None, Option(help="Branch to push to, created if need be. Default: main.", show_default=False)
    ] = None,
    message: Annotated[str | None, Option(help="Message of the commit.", show_default=False)] = None,
) -> None:
    """Publish an adapter with its model card on the Hugging Face Hub.

    * `anprompt push adapter my-name/my-adapter --private`

    Log in before with `hf auth login`, or set HF_TOKEN. Everything goes up in one commit, so that a push that breaks
    off leaves the repository as it was. Text that you wrote into the card is kept.
    """
    from anprompt_peft.publish import push_folder

    print(push_folder(folder, repo, private=private, revision=revision, commit_message=message))
