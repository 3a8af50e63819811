"""Loading base models and adapters, with their image processors."""

from __future__ import annotations

import sys
import warnings
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME
from transformers.utils import logging as transformers_logging

from anprompt_peft.classifier import load_classifier
from anprompt_peft.data.processor import load_image_processor
from anprompt_peft.fast import choose_precision, set_precision
from anprompt_peft.files import hub_id  # also registers the method
from anprompt_peft.method.families import FAMILIES, OTHERWISE

from ..adapters import CLASSIFIER, CONFIG, METHOD, is_classifier, locate
from ..choices import Device, Precision
from ..errors import Failure
from ..text import printable

MALFORMED = (AttributeError, KeyError, RecursionError, TypeError, JSONDecodeError)
"""What transformers raises for malformed JSON files."""


def disable_progress_bars() -> None:
    """Leave the terminal to the command's own progress."""
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)  # PEFT's, for every adapter


def choose_device(device: Device) -> torch.device:
    """Return the accelerator if there is one and `device` lets it be used, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None and device == "auto" else torch.device("cpu")


def load_clip(name: str, revision: str | None = None) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a base model, in float32, and its processor from the Hub or a folder."""
    folder = Path(name)
    if (folder / CONFIG).is_file():
        raise ValueError(f"{name} is an adapter. Give the model that it adapts: `anprompt info {name}` names it.")
    if folder.is_dir() and not (folder / CONFIG_NAME).is_file():
        raise ValueError(f"{name} holds no model: there is no {CONFIG_NAME} in it.")
    if not folder.is_dir() and hub_id(name) is None:
        raise ValueError(f"There is no folder {name}, and a model on the Hub is called namespace/name.")
    try:
        kind = PreTrainedConfig.get_config_dict(name, revision=revision)[0].get("model_type")
        if kind not in FAMILIES:
            raise ValueError(
                f"{name} is a model of type {kind!r}, and ANPrompt adapts those of type "
                f"{' or '.join(map(repr, FAMILIES))}. Use a CLIP with both encoders, such as "
                f"openai/clip-vit-base-patch16.{OTHERWISE.get(kind, '')}"
            )
        family = FAMILIES[kind]
        clip = family.model.from_pretrained(name, revision=revision, dtype=torch.float32)
    except OSError as error:
        raise Failure(f"The model {name} cannot be loaded: {' '.join(str(error).split())}") from error
    except MALFORMED as error:
        raise ValueError(f"{name}/{CONFIG_NAME} cannot be read: {type(error).__name__}: {error}") from error
    try:
        load_image_processor(name, clip.config.vision_config.image_size, revision)
        return clip.eval(), family.processor.from_pretrained(name, revision=revision, trust_remote_code=False)
    except OSError as error:
        raise Failure(
            f"{name} holds a CLIP without its processor (image processor and tokenizer). Save the one that it was "
            f"trained with beside it: {family.processor.__name__}.from_pretrained(...).save_pretrained({name!r})."
        ) from error
    except MALFORMED as error:
        raise ValueError(f"The tokenizer of {name} cannot be read: {type(error).__name__}: {error}") from error


def precision_for(asked: str, device: torch.device) -> str:
    """Return the precision to train in; if the device decides it, print which on standard error."""
    chosen = choose_precision(asked, device)
    if asked == "auto":
        kind = "GPU" if device.type == "cuda" else device.type.upper()
        reason = f"this {kind} {'multiplies' if chosen == 'bf16' else 'does not multiply'} bfloat16 natively"
        print(f"Computing in {chosen}: {reason} (--precision).", file=sys.stderr)
    return chosen


def load_adapter(
    name: str, revision: str | None, device: Device, precision: Precision, model: str | None = None
) -> tuple[Any, Any]:
    """Load an adapter or a saved classifier, ready to evaluate, on its base model or `model`; return it and its image
    processor."""
    disable_progress_bars()
    folder = locate(name, revision, (METHOD, CLASSIFIER))
    place = choose_device(device)
    if is_classifier(folder):
        return _load_classifier(folder, model, place, choose_precision(precision, place))
    config = PeftConfig.from_pretrained(str(folder))
    base = config.base_model_name_or_path
    if not (model or base):
        raise ValueError(f"{name} names no base model. Give the CLIP that it was trained with: --model ID-OR-FOLDER.")
    if model is None and hub_id(base) is not None:
        print(printable(f"Loading the base model {base}, which the adapter names."), file=sys.stderr)
    elif not (model or Path(base).is_dir()):
        raise ValueError(
            f"{folder / CONFIG} names the base model {base!r} (base_model_name_or_path), and there is no such folder"
            f"{'' if Path(base).is_absolute() else f' in {Path.cwd()}'}. Put the model there, or say where it is: "
            "--model ID-OR-FOLDER."
        )
    clip, processor = load_clip(model) if model else load_clip(base, config.revision)
    adapted = PeftModel.from_pretrained(clip, folder).eval().to(place)
    set_precision(adapted, choose_precision(precision, place))
    if any((folder / file).is_file() for file in (IMAGE_PROCESSOR_NAME, PROCESSOR_NAME)):
        return adapted, load_image_processor(folder, clip.config.vision_config.image_size)
    return adapted, processor.image_processor


def _load_classifier(folder: Path, model: str | None, place: torch.device, precision: str) -> tuple[Any, Any]:
    classifier = load_classifier(folder, model).to(place)
    if precision == "bf16":
        classifier.clip.to(torch.bfloat16)
    return classifier, load_image_processor(folder, classifier.clip.config.vision_config.image_size)
