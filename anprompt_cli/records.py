"""YAML and JSON files of the user: plain values only, so that a short file cannot ask for much time or memory."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .text import short

MAX_BYTES = 10_000_000
MAX_DEPTH = 16
MAX_DIGITS = 100
MAX_VALUES = 100_000
TAG = "tag:yaml.org,2002:"
AS_TEXT = [f"{TAG}{kind}" for kind in ("timestamp", "value")]


def read_record(path: Path, aliases: bool = False) -> Any:
    """Read a YAML file, or a JSON file, whose name ends in `.json`; with `aliases`, settings may be used again.

    It raises `ValueError`, with the line and not the path, for files of more than 10 MB, several documents, and values
    that are not plain: tags, keys that are not text or stand twice, numbers that are not finite or have more than 64
    bits, more than 16 levels, and anchors and aliases, or with `aliases` more than 100,000 values.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES:,} bytes.")
    text = data.decode("utf-8")
    if path.suffix == ".json":
        from anprompt_peft.files import parse_json

        return parse_json(text)
    try:
        return _Loader(text, aliases).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        assert mark is not None
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise ValueError(f"{problem[:200]}, in line {mark.line + 1}.") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def to_yaml(record: Mapping[str, Any], comment: str) -> str:
    """Return a record as YAML text under a comment line."""
    return f"# {comment}\n{yaml.safe_dump(dict(record), sort_keys=False, allow_unicode=True, width=1000)}"


class _Loader(yaml.SafeLoader):
    """YAML of plain values, in which 1e-3 is a number and 2026-01-31 a text, as in YAML 1.2 and JSON."""

    def __init__(self, text: str, aliases: bool) -> None:
        super().__init__(text)
        self._aliases = aliases
        self._depth = 0
        self._sizes: dict[Any, tuple[int, int]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if event.anchor is not None and not self._aliases:
            mark = "*" if isinstance(event, yaml.AliasEvent) else "&"
            raise _at(event, f"{short(mark + event.anchor)}: anchors and aliases are not read. {_instead(mark)}")
        if getattr(event, "tag", None) not in (None, "!"):
            raise _at(event, f"{short(event.tag)}: tags are not read. {_instead('!')}")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _at(event, f"values are nested more than {MAX_DEPTH} levels deep.")
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        if self._aliases:
            self._measure(node, event)
        return node

    def _measure(self, node: Any, event: Any) -> None:
        """Raise `ValueError` if a node has too many values or levels once its aliases are written out."""
        if node not in self._sizes:
            if isinstance(event, yaml.AliasEvent):
                raise _at(event, f"{short('*' + event.anchor)} stands within itself.")
            parts = [] if isinstance(node, yaml.ScalarNode) else node.value
            inner = [each for part in parts for each in (part if isinstance(part, tuple) else (part,))]
            sizes, levels = zip((0, 0), *(self._sizes[each] for each in inner), strict=True)
            self._sizes[node] = 1 + sum(sizes), 1 + max(levels)
        size, depth = self._sizes[node]
        if size > MAX_VALUES or depth > MAX_DEPTH:
            raise _at(event, f"with its aliases it has more than {MAX_VALUES:,} values or {MAX_DEPTH} levels.")

    def compose_mapping_node(self, anchor: Any) -> Any:
        node: Any = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if key.tag not in (f"{TAG}str", f"{TAG}merge"):
                shown = short(key.value) if isinstance(key, yaml.ScalarNode) else "of several values"
                raise _at(key, f"the key {shown} must be text. Quote it.")
            if key.value in seen:
                raise _at(key, f"the key {short(key.value)} stands there twice. Keep one.")
            seen.add(key.value)
        return node

    def construct_number(self, node: Any) -> int | float:
        """Return a number that is finite and has at most 64 bits."""
        if len(node.value) > MAX_DIGITS:
            raise _at(node, f"{short(node.value)} has more than {MAX_DIGITS} digits. Quote it if it is text.")
        number = self.construct_yaml_int(node) if node.tag == f"{TAG}int" else self.construct_yaml_float(node)
        if isinstance(number, int) and number.bit_length() > 63:
            raise _at(node, f"{short(node.value)} has more than 64 bits.")
        if not math.isfinite(number):
            raise _at(node, f"{short(node.value)} is not a finite number.")
        return number


def _instead(mark: str) -> str:
    return f"Write the value itself, or quote a text that begins with {mark}."


def _at(where: Any, problem: str) -> ValueError:
    return ValueError(f"line {where.start_mark.line + 1}: {problem}")


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag not in AS_TEXT]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    f"{TAG}float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
for kind in ("int", "float"):
    _Loader.add_constructor(f"{TAG}{kind}", _Loader.construct_number)
