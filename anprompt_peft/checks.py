"""Ranges of configuration values, and the most that any adapter may ask for."""

from __future__ import annotations

import math
from typing import Any

FORMAT_VERSION = 1
"""Of a saved configuration. It grows when an older version of this package would load an adapter wrongly."""

CAPS = {"num_virtual_tokens": 1024, "num_noise_tokens": 1024, "latent_dim": 65536, "noise_draws": 1000}
"""Far beyond any use; without them a small file could ask for much memory or time."""


def check_int(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise `ValueError` unless `value` is an integer from `low` to `high`, and below the cap of that name."""
    allowed = f"at least {low}" if high is None else f"between {low} and {high}"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise ValueError(f"{name}={value!r} must be an integer, {allowed}.")
    if value > CAPS.get(name, value):
        raise ValueError(f"{name}={value!r} is more than this package handles, which is {CAPS[name]}.")


def check_float(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raise `ValueError` unless `value` is a finite number from `low` to `high`."""
    allowed = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
    if not is_number(value) or not low <= value <= high:
        raise ValueError(f"{name}={value!r} must be a finite number, {allowed}.")


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raise `ValueError` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {list(allowed)}.")


def check_format(version: Any) -> None:
    """Raise `ValueError` unless this version of the package reads configurations of that `format_version`."""
    check_int("format_version", version, 1)
    if version > FORMAT_VERSION:
        raise ValueError(
            f"format_version={version}: a newer version of this package saved the adapter, and this one reads up to "
            f"{FORMAT_VERSION}. Upgrade it: pip install --upgrade anprompt-peft."
        )


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -math.inf < value < math.inf and (isinstance(value, float) or value.bit_length() < 1024)
