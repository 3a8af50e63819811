"""What publishing adds to an adapted model: its card, and pushes that carry it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel

from ..patches import wrap
from .facts import TrainingFacts
from .hub import hide_local_names, push, save_card
from .non_finite import check_finite


class PublishMixin:
    """Methods of an adapted `CLIPModel` about its model card and the Hub."""

    active_config: Any
    head: Any
    _hf_peft_config_loaded: bool

    def describe_training(self, facts: TrainingFacts) -> None:
        """Attach what only the author knows to the active adapter; it is saved with it and shown on its card."""
        self.active_config.training_facts = facts.to_dict()

    def create_or_update_model_card(self, output_dir: str | Path) -> None:
        """Write the active adapter's model card into a folder; the author's text in an existing one is kept."""
        save_card(self, self.active_config, output_dir)

    def save_pretrained(self, save_directory: str | Path, is_main_process: bool = True, **kwargs: Any) -> None:
        """Save as transformers does; an adapter added with `add_adapter` or `load_adapter` gets its card.

        Raises:
            NonFiniteError: if the active adapter holds NaN or infinity.
            ValueError: for `push_to_hub=True`, which would put a generic card over the adapter's, for
                `safe_serialization=False`, and for a model inside a `PeftModel`: its layers would be written under
                names that CLIP does not have.
        """
        if not self._hf_peft_config_loaded:
            raise ValueError(
                "This CLIP has adapters in it, and could not be loaded again. Save them with save_pretrained of the "
                "PeftModel around it, or call unload() and save the CLIP that it returns."
            )
        if kwargs.get("push_to_hub"):
            raise ValueError("save_pretrained(push_to_hub=True) would lose the card. Call push_to_hub(repo_id).")
        _refuse_pickles(kwargs.get("safe_serialization", True))
        check_finite(self, self.head.adapter)  # type: ignore[arg-type]
        super().save_pretrained(save_directory, is_main_process, **kwargs)  # type: ignore[misc]
        if is_main_process:
            _write_card(self, save_directory)
            hide_local_names(self, save_directory)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Push the active adapter with its card, in one commit. See [`~anprompt_peft.publish.push_folder`]."""
        if self._hf_peft_config_loaded:
            return push(self, repo_id, **kwargs)
        return super().push_to_hub(repo_id, **kwargs)  # type: ignore[misc]


def patch_saving(tuner_cls: type[Any]) -> None:
    """Let a `PeftModel` around this tuner write and push the card of this package, and refuse NaN and pickles.

    `get_peft_model` and `PeftModel.from_pretrained` build a stock `PeftModel`, whose `save_pretrained` writes a
    generic card, with the base model's local path, and whose `push_to_hub` writes another one over it.
    """

    def of_tuner(own: Callable[..., Any]) -> Callable[..., Any]:
        def method(stock: Callable[..., Any], self: PeftModel, *args: Any, **kwargs: Any) -> Any:
            return (partial(own, stock) if isinstance(self.base_model, tuner_cls) else stock)(self, *args, **kwargs)

        return method

    wrap(PeftModel, "create_or_update_model_card", of_tuner(_create_or_update_model_card))
    wrap(PeftModel, "save_pretrained", of_tuner(_save_pretrained))
    wrap(PeftModel, "push_to_hub", of_tuner(lambda stock, self, *args, **kwargs: push(self, *args, **kwargs)))


def _create_or_update_model_card(stock: Callable[..., Any], self: PeftModel, output_dir: str) -> None:
    name = "default" if "default" in self.peft_config else self.active_adapter
    save_card(self.get_base_model(), self.peft_config[name], output_dir, None if name == "default" else name)


def _save_pretrained(
    stock: Callable[..., Any],
    self: Any,
    save_directory: Any,
    safe_serialization: bool = True,
    *args: Any,
    **kwargs: Any,
) -> None:
    _refuse_pickles(safe_serialization)
    for adapter in kwargs.get("selected_adapters") or self.peft_config:
        check_finite(self, adapter)
    wanted: list[str] = []
    self.create_or_update_model_card = wanted.append  # PEFT asks for the card before it writes the weights
    try:
        stock(self, save_directory, True, *args, **kwargs)
    finally:
        del self.create_or_update_model_card
    for folder in wanted:
        _write_card(self, folder)
        hide_local_names(self.get_base_model(), folder)


def _refuse_pickles(safe_serialization: bool) -> None:
    if not safe_serialization:
        raise ValueError(
            "safe_serialization=False would write a pickle, which can run code when it is read, and which loading an "
            "ANPrompt adapter refuses. Leave it out."
        )


def _write_card(model: Any, folder: str | Path) -> None:
    """Write a model's card beside its saved weights; whatever is wrong with the card, the weights stay."""
    try:
        model.create_or_update_model_card(folder)
    except Exception as error:
        warnings.warn(f"The weights are saved, and the card is not: {error}", stacklevel=3)
