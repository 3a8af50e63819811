"""What Trainer calls while it trains: a progress bar, and Ctrl-C or SIGTERM that end with a checkpoint."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import Any

from tqdm import tqdm
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState

NOTE = b"\nInterrupted: a checkpoint is written after this step. Ctrl-C again quits at once.\n"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Progress(ProgressCallback):
    """Trainer's progress bar, with a name, and with losses on standard error instead of standard output."""

    def __init__(self, name: str = "training") -> None:
        super().__init__()
        self.name = name

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Open the bar."""
        super().on_train_begin(args, state, control, **kwargs)
        self.training_bar.set_description(self.name)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        """Write a line with the loss, or with what evaluation found."""
        shown = {name: value for name, value in (logs or {}).items() if name in ("loss", "eval_loss", "eval_accuracy")}
        if shown:
            figures = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
            tqdm.write(f"epoch {state.epoch:.4g}: {figures}", file=sys.stderr)

    def close(self) -> None:
        """End the line of a bar that training left open, so that an error begins one of its own."""
        if self.training_bar is not None:
            self.training_bar.close()


class Interruption(TrainerCallback):
    """Turns the first SIGINT or SIGTERM into a checkpoint and the end of training; a second one interrupts it at once.

    Give it to Trainer, and train inside `with interruption:`. Its `received` is the signal.
    """

    running: Interruption | None = None

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        self._previous = {each: signal.signal(each, self._request) for each in SIGNALS}
        Interruption.running = self
        return self

    def __exit__(self, *_: object) -> None:
        Interruption.running = None
        self._restore()

    def _restore(self) -> None:
        for each, handler in self._previous.items():
            signal.signal(each, handler)

    def _request(self, number: int, _: object) -> None:
        self.received = number
        self._restore()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        with suppress(OSError):  # the terminal may be gone
            os.write(2, NOTE)  # printing may not be re-entered from a signal handler

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop after this step, with a checkpoint."""
        if self.received:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After a whole epoch save once more, as evaluation comes before it; within one, do nothing of its end."""
        if self.received:
            whole = float(state.epoch or 0).is_integer()
            control.should_save = whole
            control.should_log &= whole
            control.should_evaluate &= whole


def _shield() -> None:
    """Let data workers, which a terminal or a scheduler sends the signal too, deliver until the step is done."""
    if Interruption.running:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_shield)
