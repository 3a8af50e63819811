"""Ctrl-C during training: finish the step, write a checkpoint, stop."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

NOTE = b"\nInterrupted: a checkpoint is written after this step. Ctrl-C again quits at once.\n"


class Interruption(TrainerCallback):
    """Turns the first SIGINT into a checkpoint and the end of training; a second one raises `KeyboardInterrupt`.

    Give it to Trainer, and train inside `with interruption:`.

    Attributes:
        requested (`bool`): whether training was interrupted.
    """

    def __init__(self) -> None:
        self.requested = False
        self._process = os.getpid()
        self._previous: Any = None

    def __enter__(self) -> Interruption:
        self._previous = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _request(self, *_: object) -> None:
        if os.getpid() != self._process:  # a forked data worker, which has to deliver until the step is done
            return
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with suppress(OSError):  # the terminal may be gone
            os.write(2, NOTE)  # printing may not be re-entered from a signal handler

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop after this step, with a checkpoint."""
        if self.requested:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After a whole epoch save once more, as evaluation comes before it; within one, do nothing of its end."""
        if self.requested:
            whole = float(state.epoch or 0).is_integer()
            control.should_save = whole
            control.should_log &= whole
            control.should_evaluate &= whole
