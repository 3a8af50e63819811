"""The images of a run: to train on, to evaluate on while training, and to measure on, drawn as the options say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from anprompt_peft.data import ClassHalves, class_names_of, few_shot, halves, select_classes, split_data
from anprompt_peft.data.folders import some
from anprompt_peft.data.inspect import count_by_class, digests, without_images

from ..errors import Failure
from ..train import TrainOptions
from .advice import about_duplicates, duplicates_in, new_looks
from .labelled import check_parts, choose_classes, choose_split, load_splits, print_missing, select_parts
from .seen import MEASURED_SPLITS, Seen

HELD_OUT_SEED = 0


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
    held_out: dict[str, Any]
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

    def check(self, options: TrainOptions) -> list[str]:
        """Decode all images once, and leave out those that cannot be read, or fail with their names.

        It returns what is wrong with the others.
        """
        parts = {"train": self.train, **({} if self.evaluate is None else {"evaluate": self.evaluate})}
        learnt, measured = new_looks(["train"]), new_looks(self.measure)
        checked, corrupt = check_parts(parts, options.on_corrupt, learnt)
        if lost := [name for name in without_images(checked["train"]) if name not in without_images(self.train)]:
            raise Failure(f"None of the images to train on of these classes can be read: {some(lost)}.")
        self.train, self.evaluate = checked["train"], checked.get("evaluate")
        self.measure, left_out = check_parts(self.measure, options.on_corrupt, measured)
        self.corrupt = corrupt + left_out
        drawn = [(options.train_split, self.train, learnt.get("train"))]
        if self.split and self.split != options.train_split:
            drawn += [(self.split, part, measured.get(name)) for name, part in self.measure.items()]
        return about_duplicates(duplicates_in(drawn, options.data))


def draw_images(options: TrainOptions, evaluates: bool) -> Images:
    """Load the data and draw the images of a run, in which Trainer evaluates or not; none is decoded."""
    splits, held_out = _hold_out(choose_classes(load_splits(options, options.class_names), options), options)
    pool = choose_split(splits, options.train_split, "--train-split")
    half = _halves(options, class_names_of(pool))
    classes = list(half.base) if half else class_names_of(pool)
    train: Any = select_classes(pool, classes)
    check_classes(train, splits, options.train_split)
    if shots := options.shots or options.shots_up_to:
        train = few_shot(train, shots, options.seed, fewer=options.shots is None)
    evaluate = _to_evaluate(options, splits, classes) if evaluates else None
    split = options.eval_split or next((name for name in MEASURED_SPLITS if name in splits), None)
    if split is None:
        return Images(train, evaluate, split, {}, half, held_out)
    groups = {"base": half.base, "new": half.new} if half else {split: classes}
    measure = select_parts(choose_split(splits, split, "--eval-split"), groups)
    for part in measure.values():
        print_missing(split, part)
    return Images(train, evaluate, split, measure, half, held_out)


def _hold_out(splits: dict[str, Any], options: TrainOptions) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the splits with those that the shares hold out of the one to train on, and these alone."""
    pool = choose_split(splits, options.train_split, "--train-split")
    given = {"test": options.test_share, "validation": options.validation_share}
    shares = {name: share for name, share in given.items() if share}
    if present := [name for name in shares if name in splits]:
        raise ValueError(
            " ".join(f"--{name}-share {shares[name]}: the data have a split {name} already." for name in present)
        )
    if not shares:
        return splits, {}
    parts = dict(split_data(pool, **shares, seed=HELD_OUT_SEED))
    train = parts.pop("train")
    return {**splits, **parts, options.train_split: train}, parts


def _halves(options: TrainOptions, names: list[str]) -> ClassHalves | None:
    if not (options.halves or options.base_only):
        return None
    half = ClassHalves.load(options.halves) if options.halves else halves(names)
    try:
        half.check_sizes()
    except ValueError as error:
        raise ValueError(f"{'--halves' if options.halves else '--base-only'}: {error}") from None
    return half


def _to_evaluate(options: TrainOptions, splits: Mapping[str, Any], classes: list[str]) -> Any:
    if "validation" not in splits:
        what = f"--early-stopping {options.early_stopping}" if options.early_stopping else "training.eval_strategy"
        raise ValueError(
            f"{what} evaluates on validation: the data have no such split, only {', '.join(splits)}. Hold one out "
            "with --validation-share 0.1."
        )
    evaluate = select_classes(splits["validation"], classes)
    print_missing("validation", evaluate)
    return evaluate


def check_classes(train: Any, splits: Mapping[str, Any], name: str) -> None:
    """Raise if another split has images of classes without images to train on; print if none has."""
    if missing := without_images(train):
        for split, part in splits.items():
            counts = count_by_class(part)
            if unknown := [each for each in missing if counts.get(each)]:
                raise ValueError(
                    f"{split} has images of classes that {name} has none of to train on: {some(unknown)}. Add some to "
                    f"{name}, remove them from {split}, or list them as new in the file of --halves."
                )
    print_missing(name, train)
