"""What a saved classifier is: its `config.json`, and what that may hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME

from ..files import check_plain, read_json, short
from ..method.class_texts import check_class_names, check_template
from ..method.config import mismatch

MODEL_TYPE = "anprompt_classifier"
LORA = "lora"
METHODS = ("zero-shot", "linear-probe", "tip-adapter-f", "prolip", LORA)
FIELDS: Mapping[str, Any] = {
    "method": str,
    "class_names": list[str],
    "templates": list[str],
    "base_model_name_or_path": str,
    "base_model_revision": str | None,
    "settings": dict[str, float],
}
"""The fields that a classifier has besides those of any configuration, with their types."""


class CLIPClassifierConfig(PreTrainedConfig):
    """Which method classifies which classes on which CLIP.

    Args:
        method (`str`): one of [`METHODS`].
        class_names (`Sequence[str]`): the C classes that it was made for, in the order of its tensors.
        templates (`Sequence[str]`): texts with `{}` for the class name.
        base_model_name_or_path (`str`): the frozen CLIP.
        base_model_revision (`str`, *optional*): branch, tag or commit of it.
        settings (`Mapping[str, float]`): numbers that its logits depend on.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        method: str = METHODS[0],
        class_names: Sequence[str] = (),
        templates: Sequence[str] = (),
        base_model_name_or_path: str = "",
        base_model_revision: str | None = None,
        settings: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.method = method
        self.class_names = list(class_names)
        self.templates = list(templates)
        self.base_model_name_or_path = base_model_name_or_path
        self.base_model_revision = base_model_revision
        self.settings = dict(settings or {})
        names = dict(enumerate(self.class_names))
        super().__init__(**{**kwargs, "id2label": names, "label2id": {name: at for at, name in names.items()}})


def read_config(folder: Path) -> CLIPClassifierConfig:
    """Read a classifier's `config.json`, which a stranger may have written.

    Raises:
        ValueError: if it is not a classifier's, or a field is missing or has a wrong value; the message names it.
    """
    path = folder / CONFIG_NAME
    record = read_json(path)
    if not isinstance(record, dict) or record.get("model_type") != MODEL_TYPE:
        raise ValueError(f"{path} is not the configuration of a classifier that `anprompt compare --save` wrote.")
    for name, kind in FIELDS.items():
        if name not in record:
            raise ValueError(f"{path} has no field {name!r}.")
        check_plain(name, record[name])
        if wrong := mismatch(record[name], kind):
            raise ValueError(f"{path}: the field {name!r} {wrong}, and is {short(record[name])}.")
    if record["method"] not in METHODS:
        raise ValueError(f"{path}: the method {short(record['method'])} is not one of {', '.join(METHODS)}.")
    try:
        check_class_names(record["class_names"])
        check_template(record["templates"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return CLIPClassifierConfig(**{name: record[name] for name in FIELDS})
