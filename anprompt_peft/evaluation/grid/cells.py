"""What a grid is made of: cells, each one method fitted to one draw of shots and measured."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from typing import Any

from ..peers.protocol import Method, settings_of
from ..peers.registry import class_name

KEY_DIGITS = 20


@dataclass(frozen=True)
class Setup:
    """What all cells of one table have in common.

    Args:
        model (`str`): CLIP: its id on the Hub, or a folder.
        protocol (`str`): one of `anprompt_peft.evaluation.protocols.PROTOCOLS`.
        shots (`int`): images per class to learn from.
        halves (`str`): how classes are cut into base and new: `"order"`, `"random"` or `"paired"`.
        sampling (`str`): how shots are drawn: `"coop"` or `"seeded"`.
        source (`str`): where data sets of the catalog are read from: `"folder"` or `"hub"`.
        targets (`tuple[str, ...]`): data sets to measure on, of the protocol cross-data.
        robustness (`tuple[str, ...]`): perturbations to measure under as well: families, or the groups `text`,
            `image`, `phrasing` and `undecided`.

    Raises:
        ValueError: if `shots` is below 1.
    """

    model: str
    protocol: str = "base-to-new"
    shots: int = 16
    halves: str = "order"
    sampling: str = "coop"
    source: str = "folder"
    targets: tuple[str, ...] = ()
    robustness: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.shots < 1:
            raise ValueError(f"shots={self.shots} must be at least 1.")


@dataclass(frozen=True, eq=False)
class Cell:
    """One run: a data set, a method and a seed.

    Args:
        setup (`Setup`): what it has in common with other cells.
        data (`str`): as `load_benchmark_data` takes it.
        name (`str`): what tables call the method.
        method (`Method`): a dataclass whose fields are its settings, of JSON values.
        seed (`int`): of the shots, of random halves, and of the method.

    Raises:
        TypeError: if the method is not a dataclass, or has a setting that is not a JSON value.
    """

    setup: Setup
    data: str
    name: str
    method: Method
    seed: int

    def __post_init__(self) -> None:
        if not is_dataclass(self.method) or isinstance(self.method, type):
            raise TypeError(f"method {self.name!r} must be an instance of a dataclass, got {self.method!r}.")
        try:
            self._text  # noqa: B018 - computed and cached
        except (TypeError, ValueError) as error:
            raise TypeError(f"the settings of method {self.name!r} must be JSON values: {error}.") from error

    @property
    def configuration(self) -> dict[str, Any]:
        """Everything that decides the result, as JSON values. Folders in which data lie are not part of it."""
        configuration: dict[str, Any] = json.loads(self._text)
        return configuration

    @property
    def key(self) -> str:
        """The digest of the configuration: 20 hexadecimal digits that name the cell's folder."""
        return key_of(self._text)

    @cached_property
    def _text(self) -> str:
        method: dict[str, Any] = {
            "name": self.name,
            "class": class_name(self.method),
            "settings": settings_of(self.method),
        }
        if revision := getattr(self.method, "revision", 0):
            method["revision"] = revision
        return canonical({**asdict(self.setup), "data": self.data, "method": method, "seed": self.seed})

    def __str__(self) -> str:
        return f"{self.data}, {self.name}, seed {self.seed}"


def canonical(value: Any) -> str:
    """Return the JSON text of a value, with sorted keys; raise `TypeError` or `ValueError` for what is not JSON."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def key_of(text: str) -> str:
    """Return the key of a configuration's canonical text."""
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def make_cells(
    setup: Setup, data: Sequence[str], methods: Mapping[str, Method | Callable[[str], Method]], seeds: Sequence[int]
) -> list[Cell]:
    """Return all cells of a grid. Those that share images and shots follow each other.

    Args:
        setup (`Setup`): what they have in common.
        data (`Sequence[str]`): data sets.
        methods (`Mapping[str, Method or Callable]`): by the names that tables call them; or functions that make them
            for a data set, such as `functools.partial(make_method, "coop")`.
        seeds (`Sequence[int]`): of the runs.

    Raises:
        ValueError: if one of the three is empty.
    """
    for name, values in (("data", data), ("methods", methods), ("seeds", seeds)):
        if not values:
            raise ValueError(f"{name} is empty: a grid needs at least one of each.")
    made = {(each, name): _made(method, each) for each in data for name, method in methods.items()}
    return [
        Cell(setup, each, name, made[each, name], seed)
        for each in dict.fromkeys(data)
        for seed in dict.fromkeys(seeds)
        for name in methods
    ]


def _made(method: Any, data: str) -> Method:
    """Return a method, made for a data set if it is a function that makes one."""
    return method if hasattr(method, "fit") or not callable(method) else method(data)


def choose_shard(cells: Sequence[Cell], shard: str) -> list[Cell]:
    """Return one of n parts of a grid, which are disjoint and together complete.

    A part holds every n-th cell in the order of the keys, so data sets and methods of any cost are spread over all
    parts, and the order in which a grid was written does not matter.

    Args:
        cells (`Sequence[Cell]`): of the whole grid.
        shard (`str`): `"i/n"`, i from 1 to n.

    Raises:
        ValueError: for another text.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    number, total = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= total:
        raise ValueError(f"shard={shard!r} must be i/n with i from 1 to n, such as 1/4.")
    chosen = set(sorted(cell.key for cell in cells)[number - 1 :: total])
    return [cell for cell in cells if cell.key in chosen]
