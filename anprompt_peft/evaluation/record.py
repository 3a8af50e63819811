"""One data set of a benchmark in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from datasets import Dataset

from ..data import class_names_of
from ..data.columns import labels_of
from ..method.class_texts import check_template
from .task import ClassTexts

PHOTO = "a photo of a {}."


@dataclass(frozen=True, eq=False)
class BenchmarkData:
    """A data set with its fixed splits, class names and templates.

    Every split has the columns `image`, an [`RGBImage`], and `label`, a `ClassLabel` with the same names in the order
    of the label ids.

    Args:
        name (`str`): for tables.
        train (`Dataset`): to draw shots from; empty where the data set is only measured on.
        test (`Dataset`): all of it is measured.
        templates (`tuple[str, ...]`): zero-shot templates with `{}` for the class name.
        validation (`Dataset`, *optional*): to draw validation shots from.
        comparable (`bool`): whether the test set is that of the published tables.
        note (`str`): what a table should say beside the figures.
        written (`Mapping[str, str]`): how texts spell a class, where its name is not the spelling. ImageNet has two
            classes `missile` and two `sunglasses`, whose names must differ.
        synonyms (`Mapping[str, Sequence[str]]`): other names of a class, to measure robustness with.
        ensemble (`tuple[str, ...]`): templates that some methods average in place of the zero-shot ones.

    Raises:
        ValueError: if the splits have different classes, a template lacks `{}`, there is nothing to test on, a test
            image has no label, or `written` or `synonyms` names an unknown class.
    """

    name: str
    train: Dataset
    test: Dataset
    templates: tuple[str, ...] = (PHOTO,)
    validation: Dataset | None = None
    comparable: bool = True
    note: str = ""
    written: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=lambda: MappingProxyType({}))
    ensemble: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_template(list(self.templates))
        if self.ensemble:
            check_template(list(self.ensemble))
        names = class_names_of(self.test)
        for split, part in (("train", self.train), ("validation", self.validation)):
            if part is not None and class_names_of(part) != names:
                raise ValueError(f"{self.name}: the classes of {split} are not those of test, in the same order.")
        if not len(labels_of(self.test)):
            raise ValueError(f"{self.name}: the split test is empty, so there is nothing to measure on.")
        for field_name in ("written", "synonyms"):
            if unknown := sorted(set(getattr(self, field_name)) - set(names)):
                raise ValueError(f"{self.name}: {field_name} has {unknown}, which are not classes of it.")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The C classes in the order of the label ids."""
        return tuple(class_names_of(self.test))

    def texts(self, names: Sequence[str] | None = None) -> ClassTexts:
        """Return the texts of some classes, or of all."""
        chosen = self.class_names if names is None else tuple(names)
        written = tuple(self.written.get(name, name) for name in chosen)
        return ClassTexts(chosen, self.templates, written, self.ensemble)
