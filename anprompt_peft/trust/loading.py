"""Loading hooks: each method of PEFT and transformers that loads an adapter checks one of ANPrompt first."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from peft import AutoPeftModel, PeftConfig, PeftModel
from peft.config import PeftConfigMixin
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from transformers import PreTrainedModel

from ..files import hub_id
from ..method.config import ANPromptConfig
from ..method.families import FAMILIES, MODELS
from ..method.registration import NAME
from ..patches import wrap
from ..tuner import ANPromptModel, check_backbone
from .base_model import warn_of_another_clip
from .fields import check_attributes, check_same_adapter, known_fields
from .rollback import restored_on_error
from .tensors import check_file, check_tensors

HUB = set(inspect.signature(hf_hub_download).parameters) - {"repo_id", "filename", "subfolder"}
OF_THE_ADAPTER = {"subfolder", "autocast_adapter_dtype", "ephemeral_gpu_offload"}
"""Arguments of `AutoPeftModel` that are not the base model's, besides the named ones."""

CURE = "Load the CLIP that it was trained with, and then the adapter with PeftModel.from_pretrained(clip, name)."
Stock = Callable[..., Any]

logger = logging.getLogger(__name__)

_LOADING: ContextVar[bool] = ContextVar("anprompt_loading", default=False)


def patch_loading() -> None:
    """Let all loading methods check an ANPrompt adapter before anything is built, and undo a load that fails."""
    wrap(PeftConfigMixin, "from_json_file", _from_json_file)
    wrap(PeftConfigMixin, "from_peft_type", _from_peft_type)
    wrap(PeftModel, "from_pretrained", _from_pretrained)
    wrap(PeftModel, "load_adapter", _load_adapter)
    for family in FAMILIES.values():
        wrap(family.model, "load_adapter", _native_load_adapter)
        wrap(family.model.mro()[1], "from_pretrained", _clip_from_pretrained)
    wrap(AutoPeftModel, "from_pretrained", _auto_from_pretrained)


def weights_file(model_id: Any, subfolder: str | None = None, **hub: Any) -> Path:
    """Return where an adapter's safetensors file lies, in a folder or, once downloaded, in the Hub's cache."""
    folder = Path(model_id, subfolder or "")
    if (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
        return folder / SAFETENSORS_WEIGHTS_NAME
    if not folder.is_dir():
        try:
            return Path(hf_hub_download(str(model_id), SAFETENSORS_WEIGHTS_NAME, subfolder=subfolder, **hub))
        except RemoteEntryNotFoundError:
            pass
    raise ValueError(
        f"{folder} holds no {SAFETENSORS_WEIGHTS_NAME}. Weights in a pickle ({WEIGHTS_NAME}), which can run code when "
        "it is read, are not loaded. Ask the author to save the adapter with save_pretrained."
    )


def _from_json_file(stock: Stock, cls: type[PeftConfig], path_json_file: str, **kwargs: Any) -> dict[str, Any]:
    try:
        attributes = stock(cls, path_json_file, **kwargs)
    except (RecursionError, ValueError, TypeError) as error:
        raise ValueError(f"{path_json_file} is not a valid JSON object: {error}") from error
    checked = check_attributes(str(path_json_file), attributes, cls)
    own = _LOADING.get() and checked.get("peft_type") == NAME
    return {**checked, "init_noise_prompts": False} if own else checked


def _from_peft_type(stock: Stock, cls: type[PeftConfig], **kwargs: Any) -> Any:
    return stock(cls, **(known_fields(kwargs) if kwargs.get("peft_type") == NAME else kwargs))


def _from_pretrained(
    stock: Stock,
    cls: type[PeftModel],
    model: Any,
    model_id: Any,
    adapter_name: str = "default",
    is_trainable: bool = False,
    config: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if config is None:
        config = _read_config(model_id, **kwargs)
    if not isinstance(config, ANPromptConfig):
        return stock(cls, model, model_id, adapter_name, is_trainable, config, *args, **kwargs)
    check_backbone(model)
    check_file(weights_file(model_id, **_hub(kwargs)), config, model)
    with _loading(model, adapter_name):
        return stock(cls, model, model_id, adapter_name, is_trainable, config, *args, **kwargs)


def _load_adapter(stock: Stock, self: PeftModel, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(self.base_model, ANPromptModel) or _LOADING.get():  # called by what checked already
        return stock(self, model_id, adapter_name, *args, **kwargs)
    config, clip = _read_config(model_id, **kwargs), self.get_base_model()
    if isinstance(config, ANPromptConfig):
        if own := self.peft_config.get(adapter_name):
            check_same_adapter(own, config.resolved(clip.config), adapter_name, str(model_id))
        check_file(weights_file(model_id, **_hub(kwargs)), config, clip)
    with _loading(self, adapter_name):
        return stock(self, model_id, adapter_name, *args, **kwargs)


def _native_load_adapter(
    stock: Stock,
    self: PreTrainedModel,
    peft_model_id: str | None = None,
    adapter_name: str | None = None,
    peft_config: Any = None,
    adapter_state_dict: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    load_config = kwargs.get("load_config")
    hub = {
        **(getattr(load_config, "download_kwargs", None) or {}),
        **(kwargs.get("download_kwargs") or {}),
        **(kwargs.get("adapter_kwargs") or {}),
        "local_files_only": kwargs.get("local_files_only", False),
    }
    name = peft_model_id or getattr(load_config, "pretrained_model_name_or_path", None)
    config = _read_config(name, **hub) if peft_config is None and name is not None else peft_config
    if not isinstance(config, ANPromptConfig):
        return stock(self, peft_model_id, adapter_name, peft_config, adapter_state_dict, *args, **kwargs)
    check_backbone(self)
    if kwargs.get("use_safetensors", getattr(load_config, "use_safetensors", None)) is False:
        raise ValueError("ANPrompt adapters are loaded from safetensors only. Leave use_safetensors out.")
    if adapter_state_dict is not None:
        check_tensors(adapter_state_dict, config, self)
    elif name is not None:
        check_file(weights_file(name, **_hub(hub)), config, self)
    if peft_config is not None:
        peft_config = copy.copy(config)
        peft_config.init_noise_prompts = False
    with _loading(self, adapter_name or "default"):
        return stock(self, peft_model_id, adapter_name, peft_config, adapter_state_dict, *args, **kwargs)


def _clip_from_pretrained(
    stock: Stock,
    cls: type[PreTrainedModel],
    pretrained_model_name_or_path: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Before the base model is loaded, take the adapted CLIP as the image classifier, or refuse another class."""
    name = pretrained_model_name_or_path
    if name is None or issubclass(cls, MODELS):
        return stock(cls, name, *args, **kwargs)
    hub = dict(kwargs.get("adapter_kwargs") or {})
    adapter = hub.pop("_adapter_model_path", None)  # from transformers' auto classes, and so its pipelines
    source = adapter or name
    config = None if adapter is None and not Path(name, CONFIG_NAME).is_file() else _read_config(source, **hub)
    if config is None:
        return stock(cls, name, *args, **kwargs)
    family = config.family
    if cls is family.classifier and adapter is not None:
        return family.model.from_pretrained(name, *args, **kwargs)
    own = family.model.__name__
    raise TypeError(
        f"{source} is an ANPrompt adapter, which works in transformers' {own}, with both towers, and not in "
        f"{cls.__name__}. Load it with {own}.from_pretrained({str(source)!r})."
    )


def _auto_from_pretrained(
    stock: Stock,
    cls: type[AutoPeftModel],
    pretrained_model_name_or_path: Any,
    adapter_name: str = "default",
    is_trainable: bool = False,
    config: Any = None,
    revision: str | None = None,
    import_allowlist: list[str] | None = None,
    **kwargs: Any,
) -> Any:
    """Load the base model that the adapter names, and no tokenizer: this method never resizes embeddings."""
    name = pretrained_model_name_or_path
    found = _read_config(name, revision=revision, **kwargs)
    if not isinstance(found, ANPromptConfig):
        return stock(cls, name, adapter_name, is_trainable, config, revision, import_allowlist, **kwargs)
    base = found.base_model_name_or_path
    if not base:
        raise ValueError(f"{name} names no base model. {CURE}")
    if hub_id(base) is not None:
        logger.warning("Loading the base model %r, which the adapter names.", base)
    try:
        of_both = {key: value for key, value in kwargs.items() if key not in OF_THE_ADAPTER}
        clip = found.family.model.from_pretrained(base, revision=found.revision, **of_both)
    except OSError as error:
        raise FileNotFoundError(
            f"{base!r}, the base model that {name} names, cannot be loaded: {error} {CURE}"
        ) from error
    return PeftModel.from_pretrained(
        clip, name, adapter_name, is_trainable, config or found, revision=revision, **kwargs
    )


def _read_config(model_id: Any, **kwargs: Any) -> Any:
    """Return the configuration of an adapter if it is one of this method, else `None`."""
    hub = _hub(kwargs)
    _check_folder(Path(model_id), hub.get("subfolder", ""))
    with _noise_prompts_from_weights():
        method = PeftConfig._get_peft_type(model_id, **hub)
        return ANPromptConfig.from_pretrained(model_id, **hub) if method == NAME else None


def _check_folder(folder: Path, subfolder: str) -> None:
    """Raise `ValueError` if adapters lie in other sub-folders than the one that was asked for, or none was."""
    names = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_NAME}"))
    if names and not (folder / subfolder / CONFIG_NAME).is_file():
        raise ValueError(
            f"Can't find {CONFIG_NAME!r} at {str(folder / subfolder)!r}. There are adapters in the sub-folders "
            f"{', '.join(names)}: load {str(folder / names[0])!r}."
        )


@contextmanager
def _loading(model: Any, adapter: str) -> Iterator[None]:
    """Undo a load of an adapter that fails, and warn of one that was trained with another CLIP."""
    with _noise_prompts_from_weights(), restored_on_error(model):
        yield
    warn_of_another_clip(model.get_base_model() if isinstance(model, PeftModel) else model, adapter)


@contextmanager
def _noise_prompts_from_weights() -> Iterator[None]:
    """Within this block configurations are those of adapters that are loaded: their noise prompts are not computed."""
    token = _LOADING.set(True)
    try:
        yield
    finally:
        _LOADING.reset(token)


def _hub(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name in HUB | {"subfolder"} and value is not None}
