"""`anprompt push`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .adapters import check_folder, check_repo
from .options import argument, command, option


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Options of `anprompt push`."""

    folder: Path = argument("ADAPTER", "Folder that `train` wrote.", exists=True, file_okay=False)
    repo: str = argument("REPO", "Repository, namespace/name; created if it does not exist.")
    private: bool | None = option(
        "Whether a new repository is private. Default: your setting on the Hub.", None, "--private/--public"
    )
    revision: str | None = option("Branch to push to, created if it does not exist. Default: main.")
    message: str | None = option("Commit message.")


@command
def push(options: PushOptions) -> None:
    """Publish an adapter with its model card on the Hugging Face Hub.

    * `anprompt push adapter my-name/my-adapter --private`

    Log in before with `hf auth login`, or set HF_TOKEN. Everything is uploaded in one commit: an interrupted push
    leaves the repository unchanged. Text that you wrote into the card is kept.
    """
    check_repo(options.repo)
    check_folder(options.folder)
    settings: dict[str, Any] = {"private": options.private, "revision": options.revision}
    print(upload(options.folder, options.repo, commit_message=options.message, **settings))


def upload(folder: Path, repo: str, **settings: Any) -> Any:
    """Push the adapter in a folder, say where to before, and return the commit."""
    from huggingface_hub import constants

    from anprompt_peft.publish import push_folder

    print(f"Uploading {folder} to {constants.ENDPOINT}/{repo}.", file=sys.stderr)
    return push_folder(folder, repo, **settings)
