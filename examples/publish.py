"""Publish a saved adapter on the Hugging Face Hub.

python examples/publish.py ADAPTER_FOLDER --repo user/name [--private] [--revision BRANCH]

The token comes from `hf auth login` or the variable HF_TOKEN.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from anprompt_peft.publish import push_folder


def main(arguments: list[str] | None = None) -> int:
    """Push the folder and print where it went."""
    parser = argparse.ArgumentParser(description="Publish a saved adapter on the Hugging Face Hub.")
    parser.add_argument("folder", type=Path, help="what save_pretrained wrote")
    parser.add_argument("--repo", required=True, help="repository, user/name; created if it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch, created if it does not exist (default: main)")
    options = parser.parse_args(arguments)
    print(push_folder(options.folder, options.repo, private=options.private, revision=options.revision))
    return 0


if __name__ == "__main__":
    sys.exit(main())
