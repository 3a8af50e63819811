"""A training run before it starts: settings checked and written down, images drawn."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from anprompt_peft import ANPromptConfig
from anprompt_peft.data import ClassHalves, class_names_of, few_shot, halves, select_classes, split_data
from anprompt_peft.files import whole_file
from anprompt_peft.training import ANPromptTrainingArguments

from .config_file import OWNED, RECORD, check_fields, from_yaml, to_yaml
from .labelled import check_parts, choose_split, load_splits, select_parts
from .models import choose_device
from .options import Device, Precision

HALVES = "base-new.json"
MEASURED_SPLITS = ("test", "validation")
HELD_OUT_SEED = 0
CHECKPOINTS = {"save_strategy": "epoch", "save_total_limit": 1}


@dataclass
class Images:
    """The images of a run.

    Attributes:
        train (`Dataset`): to train on.
        evaluate (`Dataset`, *optional*): for Trainer to evaluate on while training.
        split (`str`, *optional*): the split to measure on afterwards.
        measure (`dict[str, Dataset]`): its images: one part, or those of base and of new classes.
        halves (`ClassHalves`, *optional*): the classes trained on, and those kept unseen.
        corrupt (`list[str]`): a line for every image that was left out.
    """

    train: Any
    evaluate: Any
    split: str | None
    measure: dict[str, Any]
    halves: ClassHalves | None
    corrupt: list[str] = field(default_factory=list)

    @property
    def class_names(self) -> list[str]:
        """The classes to train on, in the order of the labels."""
        return class_names_of(self.train)

    def check(self, on_corrupt: str) -> None:
        """Decode all images once, and leave out those that cannot be read.

        Raises:
            Failure: for `on_corrupt="raise"`, if there are such images.
        """
        parts = {"train": self.train, **({} if self.evaluate is None else {"evaluate": self.evaluate})}
        checked, corrupt = check_parts(parts, on_corrupt)
        self.train, self.evaluate = checked["train"], checked.get("evaluate")
        self.measure, left_out = check_parts(self.measure, on_corrupt)
        self.corrupt = corrupt + left_out


def training_arguments(settings: Mapping[str, Any], output: Path, device: Device) -> ANPromptTrainingArguments:
    """Return Trainer's arguments.

    Args:
        settings (`Mapping`): what [`~anprompt_cli.config_file.effective`] returned.
        output (`Path`): where checkpoints go.
        device (`Device`): where to train.

    Raises:
        ValueError: if a section is wrong, or the precision does not fit the device.
    """
    check_fields("adapter", settings["adapter"], ANPromptConfig)
    check_fields("training", settings["training"], ANPromptTrainingArguments)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("anprompt train runs as one process. For several, write a script with Accelerate.")
    precision, on_cpu = settings["precision"], choose_device(device).type == "cpu"
    if precision == Precision.FP16 and on_cpu:
        raise ValueError("--precision fp16 needs a GPU. On a CPU use fp32 or bf16.")
    arguments = ANPromptTrainingArguments(
        output_dir=str(output),
        seed=settings["seed"],
        use_cpu=on_cpu,
        fp16=precision == Precision.FP16,
        bf16=precision == Precision.BF16,
        label_names=["labels"],
        **{"dataloader_pin_memory": not on_cpu, **CHECKPOINTS, **settings["training"]},
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # no DataParallel
    return arguments


def draw_images(settings: Mapping[str, Any], evaluates: bool) -> Images:
    """Load the data and draw the images of a run; none is decoded.

    Args:
        settings (`Mapping`): what [`~anprompt_cli.config_file.effective`] returned.
        evaluates (`bool`): whether Trainer evaluates while training.

    Raises:
        ValueError: if splits, classes or shots are not there.
        Failure: if the data cannot be loaded.
    """
    splits = load_splits(settings)
    pool = choose_split(splits, settings["train_split"], "--train-split")
    if share := settings.get("test_share"):
        if "test" in splits:
            raise ValueError(f"--test-share {share}: the data have a split test already.")
        held_out = split_data(pool, test=share, seed=HELD_OUT_SEED)
        pool, splits = held_out["train"], {**splits, **held_out}
    half = _halves(settings, class_names_of(pool))
    classes = list(half.base) if half else class_names_of(pool)
    train: Any = select_classes(pool, classes)
    if shots := settings.get("shots"):
        train = few_shot(train, shots, settings["seed"])
    evaluate = None
    if evaluates:
        validation = choose_split(splits, "validation", "training.eval_strategy evaluates on")
        evaluate = select_classes(validation, classes)
    split = settings.get("eval_split") or next((name for name in MEASURED_SPLITS if name in splits), None)
    if split is None:
        return Images(train, evaluate, split, {}, half)
    groups = {"base": half.base, "new": half.new} if half else {split: classes}
    return Images(train, evaluate, split, select_parts(choose_split(splits, split, "--eval-split"), groups), half)


def adapter_config(settings: Mapping[str, Any], class_names: Sequence[str]) -> ANPromptConfig:
    """Return the adapter's configuration.

    Raises:
        ValueError: if a field of the section `adapter` is wrong.
    """
    return ANPromptConfig(class_names=list(class_names), **settings["adapter"])


def begin(settings: Mapping[str, Any], config: ANPromptConfig, images: Images, output: Path) -> dict[str, Any]:
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
        "training": {**defaults, **CHECKPOINTS, **settings["training"]},
    }
    path = output / RECORD
    if path.is_file():
        _check_same(from_yaml(path), record, path)
    else:
        output.mkdir(parents=True, exist_ok=True)
        if images.halves:
            images.halves.save(output / HALVES)
        text = to_yaml(record, "Repeat this run with: anprompt train --config run.yaml --output NEW_FOLDER")
        with whole_file(path) as fresh:
            fresh.write_text(text, encoding="utf-8")
    return record


def _halves(settings: Mapping[str, Any], names: list[str]) -> ClassHalves | None:
    if settings.get("halves"):
        return ClassHalves.load(settings["halves"])
    return halves(names) if settings.get("base_only") else None


def _check_same(begun: Mapping[str, Any], record: Mapping[str, Any], path: Path) -> None:
    old, new = _flat(begun), _flat(record)
    if changed := [name for name in {**old, **new} if old.get(name) != new.get(name)]:
        changes = "; ".join(f"{name} is {new.get(name)!r} and was {old.get(name)!r}" for name in changed)
        raise ValueError(f"{path} was begun with other settings: {changes}. Leave these out, or begin another run.")


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    parts = {name: value if isinstance(value, dict) else {"": value} for name, value in record.items()}
    return {f"{name}.{key}".rstrip("."): value for name, part in parts.items() for key, value in part.items()}
