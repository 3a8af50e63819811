"""Publishing on the Hugging Face Hub: adapters go up in one commit, with their card."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError
from transformers import CLIPModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files import DAMAGED, atomic_file, hub_id
from ..method.config import ANPromptConfig
from ..text import printable
from . import card as model_card

TRAINERS_FOLDER = re.compile(rf"({DAMAGED})?{PREFIX_CHECKPOINT_DIR}-\d+(-\d+)?|last-checkpoint")
FILES = ("adapter_config.json", "adapter_model.safetensors")
PICKLE = "adapter_model.bin"
PROCESSOR = (
    "processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
    "merges.txt", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip

CONFIGS = (FILES[0], "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
NAMES = ("name_or_path", "_file", "denoiser")  # how fields end that may name something on this machine
NO_BASE = (
    "The card names no base model, because it was loaded from a local folder. Others cannot load the adapter without "
    "it: push it too, and load it by its Hub id before saving."
)

logger = logging.getLogger(__name__)


def save_card(clip: CLIPModel, config: ANPromptConfig, folder: str | Path, subfolder: str | None = None) -> None:
    """Write or update the card of an adapter; the model remembers its cards, because Trainer writes over them."""
    path = Path(folder).resolve() / model_card.NAME
    base_model = hub_id(config.base_model_name_or_path or getattr(clip, "name_or_path", None))
    kept = clip.anprompt_state.cards
    kept[path] = model_card.update_card(path, config, base_model, subfolder, former=kept.get(path, ""))


def hide_local_names(clip: CLIPModel, folder: str | Path) -> None:
    """Remove names that only this machine can find from the configurations in a folder that Trainer pushes."""
    folder = Path(folder).resolve()
    if clip.anprompt_state.pushed.isdisjoint((folder, *folder.parents)):
        return
    for path in (folder / FILES[0], *folder.glob(f"*/{FILES[0]}")):
        text, local = _public(path) if path.is_file() else ("", {})
        if local:
            with atomic_file(path) as fresh:
                fresh.write_text(text, encoding="utf-8")


def push(model: Any, repo_id: str, **settings: Any) -> CommitInfo:
    """Save an adapted model's adapters with their card and push them, with the settings of [`push_folder`]."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return push_folder(folder, repo_id, **settings)


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
    tags: list[str] | None = None,
) -> CommitInfo:
    """Push a saved adapter to the Hub, in one commit: an interrupted push leaves the repository unchanged.

    Only adapters, the card and, if it was saved beside the adapter, the processor are pushed, no optimizer state for
    example. What their configurations name and is not a Hub id, such as a base model in a local folder, is null in the
    upload, and a warning says so. The card's code then loads the adapter from the repository. Text that the author
    wrote into the card on the Hub is kept.

    Args:
        folder (`str` or `Path`): what `save_pretrained` wrote.
        repo_id (`str`): the repository, `namespace/name`; it is created if it does not exist.
        private (`bool`, *optional*): whether a new repository is private.
        revision (`str`, *optional*): the branch, created if it does not exist. Defaults to `main`.
        token (`str` or `bool`, *optional*): defaults to the one of `hf auth login` or `HF_TOKEN`.
        commit_message (`str`, *optional*): defaults to `"Upload ANPrompt adapter"`.
        commit_description (`str`, *optional*): more about the commit.
        create_pr (`bool`): open a pull request instead of committing.
        tags (`list[str]`, *optional*): further tags for the card.

    Returns:
        `CommitInfo`: the commit; as a string, its URL.

    Raises:
        FileNotFoundError: if the folder holds no adapter with a card.
        ValueError: if the weights are a pickle, a file is a link to somewhere outside the folder, or a configuration
            is not JSON.
        HfHubHTTPError: what the Hub answered: `RepositoryNotFoundError`, `RevisionNotFoundError`, no permission (401,
            403), somebody else's commit in the meantime (412), and so on.
    """
    files = _adapter_files(Path(folder))
    api = HfApi(token=token, library_name="anprompt-peft")
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not create_pr and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    parent = api.model_info(repo_id, revision=revision).sha
    card = _card_to_push(api, Path(folder) / model_card.NAME, repo_id, parent, tags)
    operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), _upload(path)) for path in files]
    operations.append(CommitOperationAdd(model_card.NAME, str(card).encode()))
    return api.create_commit(
        repo_id,
        operations,
        commit_message=commit_message or "Upload ANPrompt adapter",
        commit_description=commit_description,
        revision=revision,
        create_pr=create_pr,
        parent_commit=parent,
    )


class CardCallback(TrainerCallback):
    """Writes the card before every push of Trainer, with the repository's name in its code.

    Without it, Trainer pushes the card at the end only, and the model does not know the repository's name. With it,
    pushes during training (`hub_strategy="every_save"`) include the card too, and adapters that are saved in the
    folder that Trainer pushes do not name a base model or a tokenizer that lies on this machine.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Note the folder if training pushes it."""
        if args.push_to_hub:
            _note_pushed(args, model)

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Write the card into the folder that is about to be pushed."""
        if not state.is_world_process_zero:
            return
        _note_pushed(args, model)
        model.create_or_update_model_card(args.output_dir)
        path = Path(args.output_dir) / model_card.NAME
        card = model_card.read(path)
        repo_id = args.hub_model_id or path.parent.resolve().name
        if "/" not in repo_id:
            repo_id = HfApi(token=args.hub_token).get_full_repo_name(repo_id)
        model_card.name_repository(card, repo_id)
        model_card.write(card, path)


def _adapter_files(folder: Path) -> list[Path]:
    folders = [folder, *(sub for sub in folder.glob("*/") if not TRAINERS_FOLDER.fullmatch(sub.name))]
    files = sorted(sub / name for sub in folders for name in FILES if (sub / name).is_file())
    processor = [folder / name for name in PROCESSOR if (folder / name).is_file()]
    pickled = sorted(sub / PICKLE for sub in folders if (sub / PICKLE).exists() and not (sub / FILES[1]).is_file())
    if pickled:
        raise ValueError(
            f"{pickled[0]} is a pickle, which can run code when it is read. Save it with save_pretrained."
        )
    if not files or not (folder / model_card.NAME).is_file():
        raise FileNotFoundError(
            f"{folder} holds no adapter with a card ({model_card.NAME}). Give a folder that save_pretrained wrote."
        )
    for path in (*files, *processor, folder / model_card.NAME):
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{path} is a link to a file outside {folder}. Put the file itself there.")
    return [*files, *processor]


def _note_pushed(args: TrainingArguments, model: Any) -> None:
    folder, state = Path(args.output_dir).resolve(), model.anprompt_state
    if folder not in state.pushed:
        state.pushed.add(folder)
        if hub_id(model.active_config.base_model_name_or_path or model.name_or_path) is None:
            logger.warning(NO_BASE)


def _upload(path: Path) -> Path | bytes:
    """Return a file to upload, or the text of a configuration without what only this machine can find."""
    if path.name not in CONFIGS:
        return path
    text, local = _public(path)
    for name, value in local.items():
        logger.warning("%s is pushed without %s=%r, which is not a Hub id.", path.name, name, value)
    return text.encode() if local else path


def _public(path: Path) -> tuple[str, dict[str, str]]:
    """Return the text of a configuration in which names that are not Hub ids are null, and these names."""
    try:
        text = path.read_text(encoding="utf-8")
        config = json.loads(text)
        named = {name: value for name, value in config.items() if name.endswith(NAMES) and isinstance(value, str)}
    except (ValueError, RecursionError, AttributeError) as error:
        raise ValueError(f"{path} does not hold a JSON object: {error}") from error
    local = {name: value for name, value in named.items() if value and hub_id(value) is None}
    return json.dumps({**config, **dict.fromkeys(local)}, indent=2) if local else text, local


def _card_to_push(api: HfApi, path: Path, repo_id: str, revision: str | None, tags: list[str] | None) -> Any:
    """Return the folder's card with the repository's name, the author's text on the Hub, and the base's licence."""
    card: Any = model_card.read(path)
    card.data.tags = [*(card.data.tags or ()), *(tags or ())]
    try:
        published = api.hf_hub_download(repo_id, model_card.NAME, revision=revision)
        model_card.absorb(card, model_card.read(Path(published)))
    except RemoteEntryNotFoundError:
        logger.info("%s has no card yet.", repo_id)
    model_card.name_repository(card, repo_id)
    card.data.license = card.data.license or _base_license(api, card.data.base_model)
    if card.data.license is None:
        logger.warning(
            "The card states no licence. Add `license: mit`, say, to the head of its README.md, or describe_training("
            "TrainingFacts(license='mit')) before saving."
        )
    if card.data.base_model is None:
        logger.warning(NO_BASE)
    return card


def _base_license(api: HfApi, base_model: str | None) -> str | None:
    """Return the licence that the base model's card states, `None` if it states none or cannot be read."""
    if not isinstance(base_model, str):
        return None
    logger.info("Asking the Hub for the licence of the base model %s, which the card names.", printable(base_model))
    try:
        data = api.model_info(base_model).card_data
    except HfHubHTTPError as error:
        logger.warning("The licence of the base model %s is not known: %s", printable(base_model), printable(error))
        return None
    return data.license if data else None
