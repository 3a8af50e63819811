"""Trainings that are killed, or that cannot write, end as undisturbed ones once they are resumed, bit for bit.

Three trainings of a tiny CLIP on digits: by the command line, by Trainer and by the Accelerate example. Half of the
kills come at a random time, the others at the n-th change of a file in the output folder, for n = 1, 2, ...; each run
is killed and resumed until it has got through.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load
from transformers import CLIPModel, CLIPProcessor, set_seed

import anprompt_cli.jobs.train  # noqa: F401 - what each process would else import after it was forked
import train_accelerate
from anprompt_cli import main as command_line
from anprompt_cli.config_file import RESULTS
from anprompt_peft import ANPromptConfig
from anprompt_peft.data import ClipTransform, class_names_of, load_image_data
from anprompt_peft.training import ANPromptTrainer, ANPromptTrainingArguments
from export_folder import export

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")]

TINY_CLIP = Path(__file__).parents[1] / "examples" / "embedded" / "tiny_clip"
WEIGHTS = "adapter_model.safetensors"
ADDING = {"open", "os.mkdir", "os.rename"}
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.unlink"}


def by_command_line(data: Path, output: Path, resume: bool) -> None:
    """Train with `anprompt train`, which says so if it is to resume what is complete."""
    settings = ["--model", str(TINY_CLIP), "--shots", "1", "--epochs", "3", "--batch-size", "5"]
    if resume and (output / "run.yaml").is_file():
        expected = 2 if (output / RESULTS).is_file() else 0
        code = command_line(["train", "--output", str(output), "--resume"])
    else:
        expected, code = 0, command_line(["train", str(data), "--output", str(output), *settings])
    if code != expected:
        raise SystemExit(code)


def by_trainer(data: Path, output: Path, resume: bool) -> None:
    """Train with `ANPromptTrainer`, a checkpoint at every step."""
    set_seed(1)
    train, processor = load_image_data(data, "train"), CLIPProcessor.from_pretrained(TINY_CLIP)
    clip = CLIPModel.from_pretrained(TINY_CLIP)
    model: Any = get_peft_model(clip, ANPromptConfig(class_names=class_names_of(train)))
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "report_to": "none"}
    arguments = ANPromptTrainingArguments(
        str(output), max_steps=6, per_device_train_batch_size=5, use_cpu=True, **settings
    )
    trainer = ANPromptTrainer(model, arguments, train_dataset=ClipTransform(processor, augment=True).apply(train))
    begun = [path for path in output.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    trainer.train(resume_from_checkpoint=bool(resume and begun))
    trainer.save_model()


def by_accelerate(data: Path, output: Path, resume: bool) -> None:
    """Train with the Accelerate example, a checkpoint at every step."""
    settings = ["--data", str(data), "--model", str(TINY_CLIP), "--output", str(output), "--shots", "1"]
    settings += ["--epochs", "2", "--batch-size", "4", "--save-every", "1"]
    begun = train_accelerate.newest(output / "checkpoints") is not None
    train_accelerate.main([*settings, "--resume_from_checkpoint", str(resume and begun)])


RUNS: dict[str, tuple[Callable[[Path, Path, bool], None], str]] = {
    "command line": (by_command_line, WEIGHTS),
    "Trainer": (by_trainer, WEIGHTS),
    "Accelerate": (by_accelerate, f"result/adapter/{WEIGHTS}"),
}


def attempt(
    run: Callable[[], None], output: Path, seconds: float | None = None, change: int | None = None, error: int = 0
) -> tuple[bool, bool]:
    """Run in a process of its own, killed after so many seconds or at the n-th change in the output folder.

    With an error number, this and all later changes fail with it instead.

    Returns:
        `tuple`: whether it was killed, and whether it ended as it should.
    """
    process = os.fork()
    if not process:
        said = StringIO()
        try:
            os.setsid()
            if change is not None:
                at_change(change, str(output), error)
            with redirect_stdout(said), redirect_stderr(said):
                run()
            os._exit(0)
        except BaseException as failure:
            print(repr(failure), *said.getvalue().splitlines()[-9:], sep="\n", file=sys.__stderr__, flush=True)
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        if not os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    killed = os.WIFSIGNALED(status)
    return killed, killed or os.WEXITSTATUS(status) == 0


def at_change(number: int, folder: str, error: int) -> None:
    """Kill this process at its n-th change of a file in a folder, before the change is made, or let it fail."""
    left = [number]

    def watch(event: str, values: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(values[2], int) and values[2] & (os.O_WRONLY | os.O_RDWR)
        if (event in CHANGES or writes) and any(str(value).startswith(folder) for value in values[:2]):
            left[0] -= 1
            if left[0] == 0 and not error:
                os.kill(os.getpid(), signal.SIGKILL)
            if left[0] <= 0 and error and event in ADDING:
                raise OSError(error, os.strerror(error), str(values[0]))

    sys.addaudithook(watch)


def kill_and_resume(name: str, data: Path, folder: Path, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kill one kind of training so many times; return counts.

    Args:
        name (`str`): of [`RUNS`].
        data (`Path`): image folder.
        folder (`Path`): to work in.
        kills (`int`): number of kills.
        seed (`int`): of the moments.
    """
    run, weights = RUNS[name]
    rng = random.Random(seed)
    started = time.perf_counter()
    whole = folder / "whole"
    assert attempt(lambda: run(data, whole, False), whole) == (False, True)
    duration = time.perf_counter() - started
    counts = {"kills": 0, "in saving": 0, "runs": 0, "same weights": 0, "failed": 0, "seconds": round(duration, 1)}
    while counts["kills"] < kills:
        output, in_saving = folder / f"run-{counts['runs']}", counts["runs"] % 2 == 1
        counts["runs"] += 1
        resume, change = False, 0
        while True:
            change += in_saving
            enough = counts["kills"] >= kills
            killed, fine = attempt(
                lambda output=output, resume=resume: run(data, output, resume),  # type: ignore[misc]
                output,
                None if in_saving or enough else rng.uniform(0.1, 1.1) * duration,
                change if in_saving and not enough else None,
            )
            if not killed:
                break
            counts["kills"] += 1
            counts["in saving"] += in_saving
            resume = True
        if not fine:
            counts["failed"] += 1
            continue
        counts["same weights"] += same_weights(output / weights, whole / weights)
        left = [path.name for path in output.rglob(".*")] + [path.name for path in output.rglob("unfinished")]
        assert not left, left
        print(name, counts, file=sys.stderr, flush=True)
    return counts


def same_weights(found: Path, expected: Path) -> bool:
    """Whether two files hold the same tensors, bit for bit; if not, say which differ."""
    one, other = load(found.read_bytes()), load(expected.read_bytes())
    differ = [name for name in one.keys() | other.keys() if not torch.equal(one[name], other[name])]
    if differ:
        print(f"{found} differs from {expected} in {differ}", file=sys.stderr, flush=True)
    return not differ


def fill_and_resume(name: str, data: Path, folder: Path, every: int) -> dict[str, Any]:
    """Let one kind of training fail from its n-th change on, for each n-th, and resume it; return counts.

    The disk is full, or the folder can only be read, by turns. No such run may end as if all were well.

    Args:
        name (`str`): of [`RUNS`].
        data (`Path`): image folder.
        folder (`Path`): to work in.
        every (`int`): distance of the moments tried.
    """
    run, weights = RUNS[name]
    whole = folder / "whole"
    assert attempt(lambda: run(data, whole, False), whole) == (False, True)
    counts = {"failures": 0, "told": 0, "same weights": 0}
    for change in itertools.count(1, every):
        output = folder / f"run-{change}"
        error = (errno.ENOSPC, errno.EROFS)[counts["failures"] % 2]
        _, fine = attempt(lambda output=output: run(data, output, False), output, None, change, error)  # type: ignore[misc]
        if fine and (output / weights).is_file():
            assert same_weights(output / weights, whole / weights)
            return counts
        counts["failures"] += 1
        counts["told"] += not fine
        _, fine = attempt(lambda output=output: run(data, output, True), output)  # type: ignore[misc]
        counts["same weights"] += fine and same_weights(output / weights, whole / weights)
    raise AssertionError


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    export(tmp_path / "digits", 2)
    return tmp_path / "digits"


@pytest.mark.parametrize("kills", [3, 100])
@pytest.mark.parametrize("name", RUNS)
def test_killed_trainings_resume_exactly(name: str, kills: int, data: Path, tmp_path: Path) -> None:
    counts = kill_and_resume(name, data, tmp_path / "work", kills)
    assert counts["kills"] >= kills
    assert counts["failed"] == 0
    assert counts["same weights"] == counts["runs"]


@pytest.mark.parametrize("name", RUNS)
def test_a_full_disk_is_told_and_the_run_can_go_on(name: str, data: Path, tmp_path: Path) -> None:
    counts = fill_and_resume(name, data, tmp_path / "work", every=7)
    assert counts["failures"] == counts["told"] == counts["same weights"] > 3
