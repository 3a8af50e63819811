"""The frozen share of an adapter, chosen by folds over the classes of its training images."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import get_peft_model
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, default_data_collator, set_seed

from ..data import ClipTransform, class_names_of, select_classes
from ..data.columns import labels_of
from ..method.config import ANPromptConfig
from ..method.families import MODELS
from ..method.features import evaluating
from ..tuner import adapted_clip
from .folds import Fold, HeldOut, ShareChoice, choose_share, class_folds
from .trainer import ANPromptTrainer, ANPromptTrainingArguments

ASIDE: dict[str, Any] = {
    "save_strategy": "no",
    "eval_strategy": "no",
    "logging_strategy": "no",
    "load_best_model_at_end": False,
    "report_to": [],
    "push_to_hub": False,
}
"""Trainer's arguments for a training whose adapter is thrown away."""


def choose_frozen_share(
    clip: PreTrainedModel,
    config: ANPromptConfig,
    arguments: ANPromptTrainingArguments,
    train: Dataset,
    processor: Any,
    *,
    augment: bool = True,
    image_cache: str | Path | None = None,
    cuts: int = 1,
    prepare: Callable[[ANPromptTrainer, int, int], None] | None = None,
) -> ShareChoice:
    """Choose `frozen_share` by folds over the classes, before or after the training of the adapter itself.

    For each fold an adapter is trained on half of the classes as the arguments say (all epochs, without early
    stopping; `max_steps` shrink with the images), and answers for the images of the other half. Each cut takes about
    as long as one training. See [`~anprompt_peft.training.folds.choose_share`] for the rule. Random numbers go on
    afterwards as if nothing had been drawn.

    Args:
        clip (`CLIPModel`): the base model, without an adapter. It is copied, and left as it is.
        config (`ANPromptConfig`): of the adapter, which is left as it is; its `frozen_share` plays no part.
        arguments (`ANPromptTrainingArguments`): how it is trained. Nothing is written to their folder.
        train (`Dataset`): the images to train on, with a column `label` that numbers the classes.
        processor (`CLIPProcessor`): of the base model.
        augment (`bool`): whether it is trained on random crops.
        image_cache (`str` or `Path`, *optional*): as `set_image_cache` takes it.
        cuts (`int`): how often the classes are cut into halves.
        prepare (`Callable`, *optional*): called with each trainer before it trains, its number from 1, and how many
            there are; to show progress, say.

    Returns:
        `ShareChoice`: `share` is for `frozen_share` of the configuration, also of a trained adapter's, and `to_dict()`
            for its `TrainingFacts`.

    Raises:
        TypeError: if `clip` has an adapter already.
        ValueError: if the data have no labels, number other classes than the configuration, or `inference_logits` has
            no share in it.
    """
    if type(clip) not in MODELS:
        raise TypeError(f"clip must be a CLIPModel without an adapter, got {type(clip).__name__}.")
    names = class_names_of(train)
    if names != config.class_names:
        raise ValueError(f"The data number {names}, and the configuration has class_names={config.class_names}.")
    if config.inference_logits not in ("auto", "ensemble"):
        raise ValueError(
            f"inference_logits={config.inference_logits!r} takes no frozen_share: leave it 'auto' to choose one."
        )
    folds, labels, answers = class_folds(names, arguments.seed, cuts), labels_of(train), []
    for number, fold in enumerate(folds, 1):
        learned, held_out = (_selected(train, each) for each in fold)
        with random_numbers_kept(), TemporaryDirectory() as folder:
            set_seed(arguments.seed)
            model = _adapted(clip, config, fold)
            model.set_image_cache(image_cache)
            trainer = ANPromptTrainer(
                model,
                _aside(arguments, folder, len(learned) / len(train)),
                train_dataset=ClipTransform(processor, augment).apply(learned),
            )
            if prepare is not None:
                prepare(trainer, number, len(folds))
            trainer.train()
            trained = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
            rows = torch.tensor([row for row, label in enumerate(labels) if names[label] in fold.held_out])
            images: Any = ClipTransform(processor).apply(held_out)
            loader = DataLoader(images, arguments.per_device_eval_batch_size, collate_fn=default_data_collator)
            answers.append(_answer(trained, fold, rows, loader))
    return choose_share(folds, answers, arguments.seed)


def _selected(train: Dataset, names: tuple[str, ...]) -> Dataset:
    selected = select_classes(train, names)
    assert isinstance(selected, Dataset)
    return selected


def _adapted(clip: PreTrainedModel, config: ANPromptConfig, fold: Fold) -> Any:
    """Return a copy of CLIP with a new adapter for the classes of a fold, whose ensemble is the frozen CLIP alone."""
    descriptions = config.descriptions and {name: config.descriptions[name] for name in fold.learned}
    own = copy.deepcopy(config)
    own.class_names, own.descriptions, own.frozen_share = list(fold.learned), descriptions, 1.0
    own.classifier_weight, own.classifier_strength = 0.0, None  # it says nothing of other classes
    own.init_noise_prompts, own.inference_mode = True, False  # which a loaded adapter's configuration has not
    return get_peft_model(copy.deepcopy(clip), own)


def _aside(arguments: ANPromptTrainingArguments, folder: str, share: float) -> ANPromptTrainingArguments:
    steps = max(1, round(share * arguments.max_steps)) if arguments.max_steps > 0 else arguments.max_steps
    return replace(arguments, **{"output_dir": folder, "max_steps": steps, **ASIDE})


@torch.no_grad()
def _answer(model: Any, fold: Fold, rows: Tensor, batches: DataLoader) -> HeldOut:
    clip = adapted_clip(model)
    model.set_classes(fold.held_out)
    model.set_image_cache(None)
    labels, adapted, frozen = [], [], []
    with evaluating(model):
        for batch in batches:
            found = model(pixel_values=batch["pixel_values"].to(clip.device, clip.dtype))
            labels.append(batch["labels"])
            adapted.append(found.logits_class.cpu())
            frozen.append(found.logits_ensemble.cpu())
    return HeldOut(rows, torch.cat(labels), torch.cat(adapted), torch.cat(frozen))


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Let Python's, NumPy's and torch's random numbers go on after a block as if nothing had been drawn in it."""
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)
