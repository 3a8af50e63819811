"""A training run before it starts: settings checked and written down, images drawn."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from anprompt_peft import ANPromptConfig
from anprompt_peft.data import ClassHalves, class_names_of, few_shot, halves, select_classes, split_data
from anprompt_peft.data.folders import some
from anprompt_peft.files import whole_file
from anprompt_peft.training import ANPromptTrainingArguments

from ..config_file import OWNED, RECORD, check_fields
from ..errors import Failure
from ..options import TrainingPrecision, TrainOptions
from ..records import read_record, to_yaml
from ..text import short
from .labelled import (
    check_parts,
    choose_split,
    count_by_class,
    load_splits,
    select_parts,
    tell_missing,
    without_images,
)
from .models import choose_device, precision_for
from .seen import Seen, digests

HALVES = "base-new.json"
MEASURED_SPLITS = ("test", "validation")
HELD_OUT_SEED = 0
CHECKPOINTS = {"save_strategy": "epoch", "save_total_limit": 2}  # a power cut may spoil the newer one
EARLY_STOPPING = {
    "eval_strategy": "epoch",
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy",
    "restore_callback_states_from_checkpoint": True,
}


@dataclass
class Images:
    """The images of a run.

    Attributes:
        train (`Dataset`): to train on.
        evaluate (`Dataset`, *optional*): for Trainer to evaluate on while training.
        split (`str`, *optional*): the split to measure on afterwards.
        measure (`dict[str, Dataset]`): its images: one part, or those of base and of new classes.
        halves (`ClassHalves`, *optional*): the classes trained on, and those kept unseen.
        held_out (`dict[str, Dataset]`): what the shares hold out, by the name of the split.
        corrupt (`list[str]`): a line for every image that was left out.
    """

    train: Any
    evaluate: Any
    split: str | None
    measure: dict[str, Any]
    halves: ClassHalves | None
    held_out: dict[str, Any] = field(default_factory=dict)
    corrupt: list[str] = field(default_factory=list)

    @property
    def class_names(self) -> list[str]:
        """The classes to train on, in the order of the labels."""
        return class_names_of(self.train)

    def seen(self, chooses: bool) -> Seen:
        """Return which images are trained on, and with `chooses` which the best checkpoint is chosen on."""
        return Seen(
            digests(self.train),
            digests(self.evaluate) if chooses and self.evaluate is not None else [],
            {name: digests(part) for name, part in self.held_out.items()},
        )

    def check(self, on_corrupt: str) -> None:
        """Decode all images once, and leave out those that cannot be read.

        Raises:
            Failure: for `on_corrupt="raise"`, if there are such images; else if a class has no others to train on.
        """
        parts = {"train": self.train, **({} if self.evaluate is None else {"evaluate": self.evaluate})}
        checked, corrupt = check_parts(parts, on_corrupt)
        if lost := [name for name in without_images(checked["train"]) if name not in without_images(self.train)]:
            raise Failure(f"None of the images to train on of these classes can be read: {some(lost)}.")
        self.train, self.evaluate = checked["train"], checked.get("evaluate")
        self.measure, left_out = check_parts(self.measure, on_corrupt)
        self.corrupt = corrupt + left_out


def training_arguments(options: TrainOptions, settings: Mapping[str, Any]) -> ANPromptTrainingArguments:
    """Return Trainer's arguments.

    Args:
        options (`TrainOptions`): output folder, seed, device, precision and early stopping.
        settings (`Mapping`): what [`~anprompt_cli.config_file.effective`] returned.

    Raises:
        ValueError: if a section is wrong, or the precision does not fit the device.
    """
    check_fields("adapter", settings["adapter"], ANPromptConfig)
    check_fields("training", settings["training"], ANPromptTrainingArguments)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("anprompt train runs as one process. For several, write a script with Accelerate.")
    device = choose_device(options.device)
    on_cpu, in_float16 = device.type == "cpu", options.precision == TrainingPrecision.FP16
    if in_float16 and on_cpu:
        raise ValueError("--precision fp16 needs a GPU. On a CPU use fp32 or bf16.")
    return ANPromptTrainingArguments(
        output_dir=str(options.output),
        seed=options.seed,
        use_cpu=on_cpu,
        fp16=in_float16,
        precision=None if in_float16 else precision_for(options.precision, device),
        label_names=["labels"],
        **{"dataloader_pin_memory": not on_cpu, **_defaults(options), **settings["training"]},
    )


def draw_images(options: TrainOptions, evaluates: bool) -> Images:
    """Load the data and draw the images of a run; none is decoded.

    Args:
        options (`TrainOptions`): data, splits, classes and shots.
        evaluates (`bool`): whether Trainer evaluates while training.

    Raises:
        ValueError: if splits, classes or shots are not there.
        Failure: if the data cannot be loaded.
    """
    splits = load_splits(options, options.class_names)
    parts: dict[str, Any] = {}
    pool = choose_split(splits, options.train_split, "--train-split")
    shares = {"test": options.test_share, "validation": options.validation_share}
    if held_out := {name: share for name, share in shares.items() if share}:
        if present := [name for name in held_out if name in splits]:
            raise ValueError(
                " ".join(f"--{name}-share {held_out[name]}: the data have a split {name} already." for name in present)
            )
        parts = dict(split_data(pool, **held_out, seed=HELD_OUT_SEED))
        splits = {**splits, **parts}
        pool = parts.pop("train")
    half = _halves(options, class_names_of(pool))
    classes = list(half.base) if half else class_names_of(pool)
    train: Any = select_classes(pool, classes)
    _check_classes(train, splits, options.train_split)
    if shots := options.shots or options.shots_up_to:
        train = few_shot(train, shots, options.seed, fewer=options.shots is None)
    evaluate = None
    if evaluates:
        if "validation" not in splits:
            what = f"--early-stopping {options.early_stopping}" if options.early_stopping else "training.eval_strategy"
            raise ValueError(
                f"{what} evaluates on validation: the data have no such split, only {', '.join(splits)}. Hold one out "
                "with --validation-share 0.1."
            )
        evaluate = select_classes(splits["validation"], classes)
        tell_missing("validation", evaluate)
    split = options.eval_split or next((name for name in MEASURED_SPLITS if name in splits), None)
    if split is None:
        return Images(train, evaluate, split, {}, half, parts)
    groups = {"base": half.base, "new": half.new} if half else {split: classes}
    measure = select_parts(choose_split(splits, split, "--eval-split"), groups)
    for part in measure.values():
        tell_missing(split, part)
    return Images(train, evaluate, split, measure, half, parts)


def adapter_config(settings: Mapping[str, Any], class_names: Sequence[str]) -> ANPromptConfig:
    """Return the adapter's configuration.

    Raises:
        ValueError: if a field of the section `adapter` is wrong.
    """
    return ANPromptConfig(class_names=list(class_names), **settings["adapter"])


def begin(
    options: TrainOptions, settings: Mapping[str, Any], config: ANPromptConfig, images: Images
) -> dict[str, Any]:
    """Write down what is about to run, or compare it with the run that is resumed.

    Returns:
        `dict`: the whole record, with the defaults filled in, from which the run can be repeated.

    Raises:
        ValueError: if another run was begun in the folder.
    """
    own = ANPromptTrainingArguments.__annotations__.keys() - OWNED["training"].keys()
    defaults = {each.name: each.default for each in fields(ANPromptTrainingArguments) if each.name in own}
    choices = [each.name for each in fields(config) if each.name not in OWNED["adapter"]]
    record = {
        **settings,
        "adapter": {name: getattr(config, name) for name in choices},
        "training": {**defaults, **_defaults(options), **settings["training"]},
    }
    path = options.output / RECORD
    if path.is_file():
        _check_same(_begun(path), record, path)
    else:
        text = to_yaml(record, "Repeat this run with: anprompt train --config run.yaml --output NEW_FOLDER")
        with whole_file(path) as fresh:
            fresh.write_text(text, encoding="utf-8")
    if images.halves and not (options.output / HALVES).is_file():
        images.halves.save(options.output / HALVES)
    return record


def _defaults(options: TrainOptions) -> dict[str, Any]:
    """Return the defaults of Trainer's arguments that this command changes."""
    return {**CHECKPOINTS, **(EARLY_STOPPING if options.early_stopping else {})}


def _halves(options: TrainOptions, names: list[str]) -> ClassHalves | None:
    if not (options.halves or options.base_only):
        return None
    half = ClassHalves.load(options.halves) if options.halves else halves(names)
    try:
        half.check_sizes()
    except ValueError as error:
        raise ValueError(f"{'--halves' if options.halves else '--base-only'}: {error}") from None
    return half


def _begun(path: Path) -> dict[str, Any]:
    try:
        begun = read_record(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(begun, dict):
        raise ValueError(f"{path} is not the record of a run.")
    return begun


def _check_classes(train: Any, splits: Mapping[str, Any], name: str) -> None:
    """Raise if another split has images of classes without images to train on; say if none has."""
    if missing := without_images(train):
        for split, part in splits.items():
            counts = count_by_class(part)
            if unknown := [each for each in missing if counts.get(each)]:
                raise ValueError(
                    f"{split} has images of classes that {name} has none of to train on: {some(unknown)}. Add some to "
                    f"{name}, remove them from {split}, or list them as new in the file of --halves."
                )
    tell_missing(name, train)


def _check_same(begun: Mapping[str, Any], record: Mapping[str, Any], path: Path) -> None:
    old, new = _flat(begun), _flat(record)
    if changed := [name for name in {**old, **new} if old.get(name) != new.get(name)]:
        changes = "; ".join(f"{name} is {short(new.get(name))} and was {short(old.get(name))}" for name in changed)
        raise ValueError(f"{path} was begun with other settings: {changes}. Leave them out, or start a new run.")


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    parts = {name: value if isinstance(value, dict) else {"": value} for name, value in record.items()}
    return {f"{name}.{key}".rstrip("."): value for name, part in parts.items() for key, value in part.items()}
