"""Adapters and data, in folders or on the Hub: whether they are there, and whether they can be read safely."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .errors import Failure

METHOD, DENOISER = "ANPROMPT", "LORA"
"""Methods of PEFT: this package's own, and that of text denoisers."""
CLASSIFIER, MODEL_CONFIG = "anprompt_classifier", "config.json"
"""The type of a classifier that `compare` saved, and the file that says so."""
CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
TIMEOUT = 10.0


def locate(adapter: str, revision: str | None = None, methods: Collection[str] = (METHOD,)) -> Path:
    """Return the folder of an adapter, which is not a pickle; from the Hub, JSON and safetensors files are fetched."""
    folder = Path(adapter).expanduser()
    if folder.is_dir() and revision is not None:
        raise ValueError(f"--revision {revision} is for adapters on the Hub, and {adapter} is a folder.")
    if not folder.is_dir():
        folder = _fetch(adapter, revision)
    _check(folder, adapter, methods)
    return folder


def is_classifier(folder: Path) -> bool:
    """Whether a folder holds a classifier that `compare` saved."""
    try:
        record = json.loads((folder / MODEL_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.get("model_type") == CLASSIFIER


def check_folder(folder: Path) -> None:
    """Raise `ValueError` if a folder, or a folder in it, holds an adapter that [`locate`] would not return."""
    if is_classifier(folder):
        raise ValueError(
            f"{folder} holds a classifier, not an adapter of ANPrompt. `hf upload REPO {folder}` publishes it."
        )
    for each in (folder, *sorted(folder.glob("*/"))):
        if (each / CONFIG).is_file():
            _check(each, str(each), (METHOD,))


def check_repo(repo: str) -> None:
    """Raise `ValueError` unless a new repository on the Hub can have this name."""
    if not ("/" in repo and _is_hub_id(repo)):
        raise ValueError(f"{repo!r} is not a valid repository name. Give namespace/name: my-name/my-adapter.")


def check_data(data: str) -> None:
    """Ask the Hub once for data that are not on this machine or cached; `load_dataset` would try for half a minute."""
    if Path(data).expanduser().exists() or data.endswith((".parquet", ".csv", ".tsv")):
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if not _is_hub_id(data):
        raise FileNotFoundError(f"There is no folder {data}, and a data set on the Hub is called namespace/name.")
    try:
        HfApi().dataset_info(data, timeout=TIMEOUT)
    except GatedRepoError:
        return
    except RepositoryNotFoundError:
        raise FileNotFoundError(_absent(data, "data set")) from None
    except HfHubHTTPError:
        return
    except Exception as error:  # an HTTP client's own, or that of offline mode
        from datasets import config

        namespace, slash, _ = data.rpartition("/")
        if not any(Path(config.HF_DATASETS_CACHE).glob(f"{namespace}___*" if slash else data)):
            raise unreachable(data) from error


def unreachable(name: str) -> Failure:
    """Return the error for what is not in a folder, and may be on the Hub."""
    return Failure(f"There is no folder {name}, and the Hub cannot be reached to look there.")


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """Return an adapter's or a classifier's configuration; raise `ValueError` unless it is a JSON object."""
    try:
        config = json.loads((folder / name).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / name} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder / name} must hold an object.")
    return config


def _check(folder: Path, name: str, methods: Collection[str]) -> None:
    if CLASSIFIER in methods and is_classifier(folder):
        return
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{name} holds no adapter: there is no {CONFIG} in it.{_sub_folders(folder, name)}")
    if (method := read_config(folder).get("peft_type")) not in methods:
        raise ValueError(f"{name} holds an adapter of the method {method!r}, not {' or '.join(map(repr, methods))}.")
    if not (folder / WEIGHTS).is_file():
        pickled = f" {PICKLE} is a pickle, which can run code when it is read." if (folder / PICKLE).exists() else ""
        raise ValueError(f"{name} holds no {WEIGHTS}.{pickled} Save the adapter with save_pretrained.")


def _sub_folders(folder: Path, name: str) -> str:
    """Return which sub-folders hold adapters, where PEFT saves all but `default`, and how to name one."""
    names = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    if not names:
        return ""
    if folder == Path(name).expanduser():
        cure = f"Give {folder / names[0]}."
    else:
        cure = f"Download it with `hf download {name} --local-dir FOLDER`, and give FOLDER/{names[0]}."
    return f" Its sub-folders hold adapters: {', '.join(names)}. {cure}"


def _absent(name: str, kind: str) -> str:
    return f"There is neither a folder {name} nor such a {kind} on the Hub. A private one needs `hf auth login`."


def _is_hub_id(name: str) -> bool:
    """Whether a repository may have that name; old data sets have no namespace."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.endswith("/")


def _fetch(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if not ("/" in repo and _is_hub_id(repo)):
        raise ValueError(f"There is no folder {repo}, and an adapter on the Hub is called namespace/name.")
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=["*.json", WEIGHTS]))
    except RevisionNotFoundError:
        raise ValueError(f"{repo} has no revision {revision!r}.") from None
    except RepositoryNotFoundError:
        raise ValueError(_absent(repo, "repository")) from None
    except LocalEntryNotFoundError as error:
        raise unreachable(repo) from error
    except HfHubHTTPError as error:
        raise Failure(f"The Hub does not give {repo}: {error}") from error
