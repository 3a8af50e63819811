"""`anprompt push`."""

from __future__ import annotations

from .adapters import check_folder, check_repo
from .options import PushOptions, command


@command
def push(options: PushOptions) -> None:
    """Publish an adapter with its model card on the Hugging Face Hub.

    * `anprompt push adapter my-name/my-adapter --private`

    Log in before with `hf auth login`, or set HF_TOKEN. Everything is uploaded in one commit: an interrupted push
    leaves the repository unchanged. Text that you wrote into the card is kept.
    """
    check_repo(options.repo)
    check_folder(options.folder)
    from anprompt_peft.publish import push_folder

    url = push_folder(
        options.folder,
        options.repo,
        private=options.private,
        revision=options.revision,
        commit_message=options.message,
    )
    print(url)
