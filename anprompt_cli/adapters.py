"""Finding an adapter, in a folder or on the Hub, and making sure that it can be read safely."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import Failure

METHOD = "ANPROMPT"
CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"


def locate(adapter: str, revision: str | None = None) -> Path:
    """Return the folder that holds an adapter; from the Hub, its JSON and safetensors files are fetched.

    Args:
        adapter (`str`): a folder, or the id of a repository.
        revision (`str`, *optional*): branch, tag or commit on the Hub.

    Raises:
        ValueError: if there is no such adapter, or its weights are a pickle.
        Failure: if the Hub cannot be reached.
    """
    folder = Path(adapter).expanduser()
    if folder.is_dir() and revision is not None:
        raise ValueError(f"--revision {revision} is for adapters on the Hub, and {adapter} is a folder.")
    if not folder.is_dir():
        folder = _fetch(adapter, revision)
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{adapter} holds no adapter: there is no {CONFIG} in it.")
    if (method := read_config(folder).get("peft_type")) != METHOD:
        raise ValueError(f"{adapter} holds an adapter of the method {method!r}, not {METHOD!r}.")
    if not (folder / WEIGHTS).is_file():
        pickled = f" {PICKLE} is a pickle, which can run code when it is read." if (folder / PICKLE).exists() else ""
        raise ValueError(f"{adapter} holds no {WEIGHTS}.{pickled} Save the adapter with save_pretrained.")
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """Return an adapter's configuration.

    Raises:
        ValueError: if the file holds no JSON object.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG} must hold an object.")
    return config


def _fetch(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        if "/" not in repo or repo.endswith("/"):
            raise HFValidationError
        return Path(snapshot_download(repo, revision=revision, allow_patterns=["*.json", WEIGHTS]))
    except HFValidationError:
        raise ValueError(f"There is no folder {repo}, and an adapter on the Hub is called namespace/name.") from None
    except RevisionNotFoundError:
        raise ValueError(f"{repo} has no revision {revision!r}.") from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"There is neither a folder {repo} nor such a repository on the Hub. A private one needs `hf auth login`."
        ) from None
    except LocalEntryNotFoundError as error:
        raise Failure(f"There is no folder {repo}, and the Hub cannot be reached to look there.") from error
    except HfHubHTTPError as error:
        raise Failure(f"The Hub does not give {repo}: {error}") from error
