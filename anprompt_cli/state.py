"""What one call of the command line carries from its options to its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class State:
    """Options that do not belong to a command, and what typer has no place for.

    Attributes:
        debug (`bool`): show where errors came from.
        sections (`dict[str, dict[str, Any]]`): what a configuration file says under `adapter` and `training`.
    """

    debug: bool = False
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
