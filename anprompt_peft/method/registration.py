"""Makes PEFT know the method: the `PeftType` member and the public `register_peft_method` call."""

from __future__ import annotations

from typing import Any

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, register_peft_method

NAME = "ANPROMPT"
PREFIX = "anprompt_"


def peft_type() -> PeftType:
    """Return `PeftType.ANPROMPT`, adding it to PEFT's enum on the first call.

    PEFT keeps its method names in a closed enum and offers no public way to extend it, so the member is put into the
    tables that every lookup of `enum.Enum` goes through. Calling this again returns the same member.
    """
    if NAME in PeftType.__members__:
        return PeftType[NAME]
    member = str.__new__(PeftType, NAME)
    member._name_ = NAME
    member._value_ = NAME
    type.__setattr__(PeftType, NAME, member)
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member
    PeftType._member_names_.append(NAME)
    return member


def register(config_cls: type[Any], model_cls: type[Any]) -> None:
    """Register the method with PEFT; a second import of the package finds it registered and does nothing."""
    if peft_type() not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name=NAME.lower(), config_cls=config_cls, model_cls=model_cls, prefix=PREFIX)
