"""What only the author of an adapter knows about it; saved in its configuration and shown on its card."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from types import NoneType
from typing import Any

from huggingface_hub.utils import validate_repo_id

LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class Metric:
    """One measured figure.

    Args:
        type (`str`): the metric's identifier on the Hub, for example `"accuracy"`.
        value (`float`): the figure, or the mean over `seeds`, in the unit that `name` says.
        dataset (`str`): the data it was measured on: a Hub id or any name.
        name (`str`, *optional*): a readable name, for example `"accuracy on new classes, %"`. Defaults to `type`.
        split (`str`, *optional*): the split of the data, for example `"test"`.
        seeds (`Sequence[int]`): the seeds of the runs behind the figure.
        interval (`Sequence[float]`, *optional*): lower and upper end of its 95 % interval.
        baseline (`float`, *optional*): the same figure of zero-shot CLIP, in the same unit.

    Raises:
        ValueError: if value, interval or baseline is not made of finite numbers, or a seed is not an integer.
    """

    type: str
    value: float
    dataset: str
    name: str | None = None
    split: str | None = None
    seeds: Sequence[int] = ()
    interval: Sequence[float] | None = None
    baseline: float | None = None

    def __post_init__(self) -> None:
        if not (_is_text(self.type) and _is_text(self.dataset)):
            raise ValueError(f"a metric needs a type and a dataset, got {self.type!r} and {self.dataset!r}.")
        if not all(text is None or _is_text(text) for text in (self.name, self.split)):
            raise ValueError(f"{self.type}: name={self.name!r} and split={self.split!r} must be texts.")
        if not (_is_list(self.seeds) and _is_list(self.interval or ())):
            raise ValueError(f"{self.type}: seeds={self.seeds!r} and interval={self.interval!r} must be lists.")
        baseline = () if self.baseline is None else (self.baseline,)
        if not all(map(_is_number, (self.value, *(self.interval or ()), *baseline))):
            raise ValueError(
                f"{self.type}: value={self.value!r}, interval={self.interval!r} and baseline={self.baseline!r} must "
                "be finite numbers."
            )
        if self.interval is not None and len(self.interval) != 2:
            raise ValueError(f"{self.type}: interval={self.interval!r} must be its lower and its upper end.")
        if not all(isinstance(seed, int) for seed in self.seeds):
            raise ValueError(f"{self.type}: seeds={self.seeds!r} must be integers.")


@dataclass(frozen=True)
class TrainingFacts:
    """Facts about an adapter that the model cannot know. The card omits what is left out.

    Args:
        license (`str`, *optional*): the Hub's identifier of the adapter's licence, for example `"apache-2.0"`.
        training_data (`str`, *optional*): what it was trained on, in words.
        datasets (`Sequence[str]`): Hub ids of the training data.
        arguments (`Mapping[str, Any]`): how it was trained, for example `{"epochs": 10, "seed": 1}`; JSON values.
        metrics (`Sequence[Metric]`): what was measured.

    Raises:
        ValueError: for a licence or a data set that is not a valid id, or arguments that are not JSON.
    """

    license: str | None = None
    training_data: str | None = None
    datasets: Sequence[str] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Metric] = ()

    def __post_init__(self) -> None:
        if self.license is not None and not (_is_text(self.license) and LICENSE.fullmatch(self.license)):
            raise ValueError(
                f"license={self.license!r} is not an identifier of the Hub such as 'mit', 'apache-2.0' or 'other' "
                "(https://huggingface.co/docs/hub/repositories-licenses)."
            )
        if not (_is_list(self.datasets) and all(map(_is_text, self.datasets))):
            raise ValueError(f"datasets={self.datasets!r} must be a list of Hub ids.")
        for dataset in self.datasets:
            validate_repo_id(dataset)
        if not isinstance(self.training_data, (str, NoneType)):
            raise ValueError(f"training_data={self.training_data!r} must be a text.")
        try:
            json.dumps(dict(self.arguments), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"arguments={self.arguments!r} must be made of JSON values: {error}.") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON values, for the adapter's configuration."""
        record: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any] | None) -> TrainingFacts:
        """Return the facts of a configuration, without those of newer versions; none at all if it has none.

        Raises:
            ValueError: for a fact of a wrong type or value; the message names it.
        """
        record = _known(cls, record or {}, "training_facts")
        metrics = record.get("metrics", ())
        if not _is_list(metrics):
            raise ValueError(f"training_facts.metrics={metrics!r} must be a list.")
        try:
            return cls(**{**record, "metrics": [Metric(**_known(Metric, each, "metrics")) for each in metrics]})
        except TypeError as error:
            raise ValueError(f"training_facts: {error}.") from error


def _known(kind: type[Any], record: Any, name: str) -> dict[str, Any]:
    if not isinstance(record, Mapping):
        raise ValueError(f"{name}={record!r} must hold facts by name.")
    return {field.name: record[field.name] for field in fields(kind) if field.name in record}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_number(value: Any) -> bool:
    """Whether `value` is a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -math.inf < value < math.inf and (isinstance(value, float) or value.bit_length() < 1024)
