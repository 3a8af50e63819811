"""Runs that are killed, stopped, damaged or disturbed end as undisturbed ones once they are resumed, bit for bit.

| what breaks | what happens |
|---|---|
| a process is killed at any moment (slow) | the next run resumes, with nothing left over |
| the disk is full, or read-only (slow) | the run fails; the next one resumes |
| training stops within an epoch | it resumes from the checkpoint before, crops and random texts included |
| training stops after its last checkpoint | the next run takes no further step |
| a file of a checkpoint is damaged (`DAMAGE`, `NOT_JSON`) | the checkpoint is renamed, and the one before is taken |
| all checkpoints are damaged | Trainer names them, the command line restarts |
| files of others lie in a checkpoint (`FOREIGN`) | they are not opened |
| a file cannot be read | an error names it, and nothing is renamed |
| two runs want one folder | the second is refused |
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from threading import Thread
from typing import Any

import datasets
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import PeftModel, get_peft_model
from safetensors.torch import load
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor, EarlyStoppingCallback, Trainer, TrainerCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint, sort_checkpoints

import anprompt_cli.jobs.train  # noqa: F401 - what each process would else import after it was forked
import distributed_worker as worker
import train_accelerate
from anprompt_cli import main
from anprompt_cli.config_file import RESULTS
from anprompt_peft import ANPromptConfig
from anprompt_peft.data import ClipTransform, class_names_of, load_image_data
from anprompt_peft.publish.hub import TRAINERS_FOLDER
from anprompt_peft.training import ANPromptTrainer, ANPromptTrainingArguments, lock_folder, save_newest
from anprompt_peft.training.checkpoint import resume_point
from export_folder import export
from helpers import (
    TINY_CLIP,
    WEIGHTS,
    adapted,
    assert_same,
    copies,
    logits,
    make_clip,
    make_config,
    make_trainer,
    needs_add_adapter,
    scatter,
    train_by_command,
)

ROOT = Path(__file__).parents[1]
EVERY_STEP: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 1}


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def resume(output: Path) -> int:
    return main(["train", "--output", str(output), "--resume"])


def weights(folder: Path) -> dict[str, Tensor]:
    return load((folder / WEIGHTS).read_bytes())  # load_file maps the file, which the tests damage


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# stopped trainings


class StopAfter(TrainerCallback):
    """Stops a training after some steps, as a lost machine would."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.steps:
            raise KeyboardInterrupt


def add_noise(rows: dict[str, Any]) -> dict[str, Any]:
    """A random transform, as augmentation is."""
    pixels = torch.tensor(rows["pixel_values"])
    return {"pixel_values": pixels + 0.5 * torch.randn_like(pixels), "labels": rows["labels"]}


@pytest.mark.parametrize("workers", [0, 1])
def test_resuming_within_an_epoch_changes_no_bit(workers: int, data: Dataset, tmp_path: Path) -> None:
    """Saved after step 4 of 3 per epoch, stopped after step 5, resumed in a new model."""

    def fresh(folder: str, *callbacks: TrainerCallback) -> ANPromptTrainer:
        torch.manual_seed(11)
        model = adapted(scattered=False, text_update_rank=2, rephrased_weight=1.0, rephrased_texts=4)
        settings: Any = {"save_strategy": "steps", "save_steps": 4, "seed": 3, "dataloader_num_workers": workers}
        return make_trainer(tmp_path / folder, data.with_transform(add_noise), model, callbacks, **settings)

    whole = fresh("whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        fresh("broken", StopAfter(5)).train()
    resumed = fresh("broken")
    torch.rand(5)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 9
    assert_same(copies(resumed.model), copies(whole.model))
    assert resumed.state.log_history[-2]["loss"] == whole.state.log_history[-2]["loss"]


class Cropped(torch.utils.data.Dataset):
    """Images with a random shift, as a crop has it."""

    def __init__(self, data: Dataset) -> None:
        self.rows = [data[row] for row in range(len(data))]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        shift = int(torch.randint(4, ()))
        return {**self.rows[row], "pixel_values": self.rows[row]["pixel_values"].roll(shift, -1)}


@pytest.mark.parametrize("strategy", ["no", "epoch"])
def test_persistent_workers_change_no_bit(strategy: str, data: Dataset, tmp_path: Path) -> None:
    """Of the weights, and of those of a run resumed from an earlier checkpoint; with evaluations or without."""

    def run(folder: Path, checkpoint: str | None = None, **workers: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = adapted(scattered=False, rephrased_weight=1.0, rephrased_texts=4)
        settings: Any = {"save_strategy": "epoch", "eval_strategy": strategy, **workers}
        trainer = make_trainer(folder, Cropped(data), model, **settings)
        trainer.eval_dataset = data
        trainer.train(resume_from_checkpoint=checkpoint)
        return copies(model)

    persistent: Any = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    expected, folder = run(tmp_path / "none"), tmp_path / "persistent"
    assert_same(run(folder, **persistent), expected)
    assert_same(run(folder, str(folder / "checkpoint-3"), **persistent), expected)


EARLY = {
    "learning_rate": 0.0, "eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss", "restore_callback_states_from_checkpoint": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "steps"), [({"max_steps": 4, "save_strategy": "steps", "save_steps": 2}, 4), (EARLY, 6)]
)
def test_a_run_resumed_after_its_last_checkpoint_takes_no_further_step(
    settings: dict[str, Any], steps: int, data: Dataset, tmp_path: Path
) -> None:
    """All of `max_steps` done within an epoch, or early stopping after the second epoch; then a second process."""
    callbacks = [[EarlyStoppingCallback(1)] if settings is EARLY else [] for _ in range(2)]
    whole, resumed = (make_trainer(tmp_path, data, None, each, **settings) for each in callbacks)
    whole.train()
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == steps
    assert_same(copies(resumed.model), copies(whole.model))
    whole.train()
    assert whole.state.global_step == steps


# what a checkpoint holds


def test_checkpoints_hold_the_adapter_alone(data: Dataset, tmp_path: Path) -> None:
    model = adapted(scattered=False, classifier_weight=0)  # which is fitted after the last checkpoint
    make_trainer(tmp_path, data, model, num_train_epochs=1, save_strategy="epoch").train()
    checkpoint = tmp_path / "checkpoint-3"
    assert {"adapter_config.json", WEIGHTS, "optimizer.pt", "scheduler.pt"} <= names(checkpoint)
    assert not names(checkpoint) & {"model.safetensors", "pytorch_model.bin", "config.json"}
    assert all("anprompt_" in name for name in weights(checkpoint))
    again, pixels = PeftModel.from_pretrained(make_clip(), checkpoint).eval(), data["pixel_values"][:]
    assert torch.equal(logits(again, pixels), logits(model.eval(), pixels))


HOLDERS = ["default", "named", "named beside default", pytest.param("add_adapter", marks=needs_add_adapter)]


def holder(way: str) -> Any:
    """A model whose adapter PEFT saves in another place each."""
    clip = make_clip()
    if way == "add_adapter":
        clip.add_adapter(make_config(), "flowers")
        return clip
    model = adapted(clip, scattered=False, adapter_name="flowers" if way == "named" else "default")
    if way == "named beside default":
        model.add_adapter("flowers", make_config())
        model.set_adapter("flowers")
    return model


@pytest.mark.parametrize("way", HOLDERS)
def test_the_best_weights_and_a_resumed_run_are_the_trained_adapters(way: str, data: Dataset, tmp_path: Path) -> None:
    """The second of three epochs is the best, and a run resumed from the first ends as this one would have."""
    saved: list[dict[str, Tensor]] = []

    class Remember(TrainerCallback):
        def on_save(self, *args: Any, model: Any, **kwargs: Any) -> None:
            saved.append(copies(model))

    def run(**settings: Any) -> Any:
        scores = iter((0.1, 0.9, 0.2))
        every: Any = {"eval_strategy": "epoch", "save_strategy": "epoch", "learning_rate": 0.05}
        trainer = make_trainer(tmp_path, data, holder(way), [Remember()], **every, **settings)
        trainer.compute_metrics = lambda prediction: {"score": next(scores)}
        return trainer

    best = run(load_best_model_at_end=True, metric_for_best_model="score")
    best.train()
    assert best.state.best_model_checkpoint == str(tmp_path / "checkpoint-6")
    assert not torch.equal(*(next(iter(each.values())) for each in saved[1:3]))
    assert_same(copies(best.model), saved[1])
    resumed = run()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same(copies(resumed.model), saved[2])


def test_a_best_checkpoint_without_the_adapter_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(tmp_path, None, holder("named beside default"))
    trainer.state.best_model_checkpoint = str(tmp_path)
    trainer.save_model(str(tmp_path))
    (tmp_path / "flowers" / WEIGHTS).unlink()
    before = copies(scatter(trainer.model))
    trainer._load_best_model()
    assert str(tmp_path / "flowers" / WEIGHTS) in caplog.text
    assert_same(copies(trainer.model), before)


def test_a_checkpoint_of_another_adapter_is_not_resumed(data: Dataset, tmp_path: Path) -> None:
    named, other = (make_trainer(tmp_path, data, holder(way), **EVERY_STEP) for way in ("named", "default"))
    named.train()
    with pytest.raises(ValueError, match=r"holds the adapters \['flowers'\], and 'default' is to be trained"):
        other.train(resume_from_checkpoint=True)


def test_a_checkpoint_without_optimizer_is_named(
    data: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for checkpoint in (None, str(tmp_path / "checkpoint-2")):
        assert not caplog.text
        make_trainer(tmp_path, data, **EVERY_STEP, save_only_model=True).train(checkpoint)
    assert "checkpoint-2 holds no optimizer state" in caplog.text


# damaged checkpoints


def flip(path: Path) -> None:
    """Change a bit in each of more bytes than the 63 that torch may leave unused between two tensors."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(byte ^ 1 for byte in content[middle : middle + 64])
    path.write_bytes(content)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def watch_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A list that gets each file that is read from now on."""
    opened: list[Path] = []
    read = Path.read_bytes

    def watched(path: Path) -> bytes:
        opened.append(path)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", watched)
    return opened


NOT_JSON = {"list": b"[]", "null": b"null", "empty object": b"{}", "deep": b"[" * 100_000, "bytes": b"\xff\xff"}
DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "empty weights": (WEIGHTS, lambda path: path.write_bytes(b"")),
    "empty configuration": ("adapter_config.json", lambda path: path.write_bytes(b"")),
    "lost state": ("trainer_state.json", Path.unlink),
    "short schedule": ("scheduler.pt", lambda path: path.write_bytes(path.read_bytes()[:-100])),
    "a folder": ("scheduler.pt", make_folder),
    "flipped bits": ("optimizer.pt", flip),
    "lost random state": ("rng_state.pth", Path.unlink),
    "no archive": ("training_args.bin", lambda path: path.write_bytes(b"PK")),
    **{name: ("trainer_state.json", partial(Path.write_bytes, data=text)) for name, text in NOT_JSON.items()},
}


@pytest.mark.parametrize("name", DAMAGE)
def test_each_file_that_trainer_wrote_has_to_be_whole(
    name: str, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is wrong, nothing of the checkpoint is lost, and neither Trainer nor a push takes it for one."""
    damaged = shutil.copytree(next(trained.glob("checkpoint-*")), tmp_path / "checkpoint-7")
    (tmp_path / "damaged-checkpoint-7").mkdir()
    file, damage = DAMAGE[name]
    damage(damaged / file)
    before = {path.name: path.is_dir() or path.read_bytes() for path in damaged.iterdir()}
    assert resume_point(tmp_path) is None
    moved = tmp_path / "damaged-checkpoint-7-2"
    assert {path.name: path.is_dir() or path.read_bytes() for path in moved.iterdir()} == before
    assert "now called damaged-checkpoint-7-2. Training restarts." in caplog.text
    assert get_last_checkpoint(tmp_path) is None
    assert sort_checkpoints(str(tmp_path), use_mtime=True) == []
    assert TRAINERS_FOLDER.fullmatch(moved.name)


def test_trainer_falls_back_to_the_newest_checkpoint_that_can_be_read(
    data: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is read once."""
    make_trainer(tmp_path, data, **EVERY_STEP).train()
    expected = weights(tmp_path / "checkpoint-3")
    (tmp_path / "checkpoint-3" / "scheduler.pt").write_bytes(b"")
    flip(tmp_path / "checkpoint-2" / "rng_state.pth")
    opened = watch_reads(monkeypatch)
    again = make_trainer(tmp_path, data, **EVERY_STEP)
    again.train(resume_from_checkpoint="True")
    lines = [record.getMessage() for record in caplog.records if "cannot be read" in record.getMessage()]
    assert [f"checkpoint-{number} cannot be read" in line for number, line in zip((2, 3), lines, strict=True)]
    assert all(line.endswith(f"Training goes on from {tmp_path / 'checkpoint-1'}.") for line in lines)
    assert len(set(opened)) == len(opened) > 6
    assert_same(weights(tmp_path / "checkpoint-3"), expected)


FOREIGN: dict[str, Callable[[Path], Any]] = {
    "._trainer_state.json": lambda path: path.write_bytes(b"\0\5\x16\7"),
    "notes.json": lambda path: path.write_text('{"half": '),
    "model.safetensors": lambda path: path.write_bytes(b"x"),
    "old.pt": lambda path: path.write_bytes(b""),
    ".DS_Store": lambda path: path.write_bytes(b"\0\0\0\1Bud1"),
    "backup": lambda path: shutil.copytree(path.parent, path, ignore=lambda *_: ["backup", WEIGHTS]),
    "loop": lambda path: path.symlink_to(path),
    "pipe.json": os.mkfifo,
}


def test_foreign_files_damage_no_checkpoint(
    data: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither do those that this user may not read: they are not opened. One of Trainer's ends the training."""
    make_trainer(tmp_path, data, **EVERY_STEP).train()
    newest = tmp_path / "checkpoint-3"
    for name, make in FOREIGN.items():
        make(newest / name)
    (tmp_path / "checkpoint-9").write_text("a file")
    (tmp_path / "checkpoint-best").mkdir()
    read, opened = Path.read_bytes, watch_reads(monkeypatch)
    assert resume_point(tmp_path) == newest
    found = {path.name for path in opened}
    assert not FOREIGN.keys() & found
    assert {"adapter_config.json", WEIGHTS, "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= found
    before = sorted(tmp_path.rglob("*"))
    for number in (errno.EACCES, errno.EIO):

        def refuse(path: Path, number: int = number) -> bytes:
            if path.name == "optimizer.pt":
                raise OSError(number, os.strerror(number), str(path))
            return read(path)

        monkeypatch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(OSError, match=r"checkpoint-\d/optimizer\.pt"):
            make_trainer(tmp_path, data, **EVERY_STEP).train(resume_from_checkpoint=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert caplog.records == []


def test_a_new_checkpoint_of_a_loop_replaces_its_own_kind_alone(tmp_path: Path) -> None:
    for name in ("step-00000001", "step-by-step", "damaged-step-00000002"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000003").write_text("a file")
    save_newest(Accelerator(cpu=True), tmp_path, step=4)
    assert names(tmp_path) == {"step-00000003", "step-00000004", "step-by-step", "damaged-step-00000002"}


def test_trainer_names_checkpoints_that_are_all_damaged(data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-7").mkdir()
    with pytest.raises(ValueError, match=r"no checkpoint that can be read, only checkpoint-7\."):
        make_trainer(tmp_path, data).train(resume_from_checkpoint=True)


# what a killed process leaves


def leave(folder: Path, *scratch: str) -> None:
    """Put half-written results and the lock of a killed process into a folder."""
    for name in scratch:
        (folder / name).mkdir(parents=True)
        (folder / name / "half").write_text("x")
    (folder / ".lock").touch()


@pytest.mark.parametrize("broken", [(), (6,), (4, 6)])
def test_the_command_line_falls_back_and_cleans_up(
    broken: tuple[int, ...], trained: Path, digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is left, the end is that of an undisturbed run, and so are the files."""
    output = tmp_path / "out"
    assert train_by_command(digits, output, "--epochs", 3) == 0
    expected = weights(output)
    assert names(output) == names(trained) - {"checkpoint-2"} | {"checkpoint-4", "checkpoint-6"}
    for name in ("results.json", WEIGHTS, "report.html"):
        (output / name).unlink()
    leave(output, ".new-abc", ".run.yaml-abc")
    for step in broken:
        (output / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"")
    assert resume(output) == 0
    assert_same(weights(output), expected)
    assert not [name for name in names(output) if name.startswith(".")]
    assert len(caplog.records) >= len(broken)
    assert ("Training restarts." in caplog.text) == (len(broken) == 2)


def test_a_start_that_was_killed_before_anything_was_written_can_be_repeated(
    trained: Path, digits: Path, tmp_path: Path
) -> None:
    leave(tmp_path / "out", ".run.yaml-abc", ".base-new.json-abc")
    assert train_by_command(digits, tmp_path / "out") == 0
    assert names(tmp_path / "out") == names(trained)


def test_a_run_that_was_killed_after_its_last_file_is_complete(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = shutil.copytree(trained, tmp_path / "out")
    leave(output, ".new-abc")
    assert resume(output) == 2
    assert "is complete" in capsys.readouterr().err
    assert names(output) == names(trained)


def test_the_accelerate_example_falls_back_and_cleans_up(digits: Path, tmp_path: Path) -> None:
    whole = worker.run_script(digits, tmp_path / "whole")
    parts, checkpoints = tmp_path / "parts", tmp_path / "parts" / "checkpoints"
    assert worker.run_script(digits, parts, "--save-every", "1", stop_after=3) is None
    for name in ("unfinished", "step-00000009"):
        shutil.copytree(checkpoints / "step-00000003", checkpoints / name)
        (checkpoints / name / "optimizer.bin").write_bytes(b"")
    (checkpoints / "unfinished" / "custom_checkpoint_1.pkl").touch()
    (parts / ".result-abc" / "new").mkdir(parents=True)
    resumed = worker.run_script(digits, parts, "--resume_from_checkpoint", "True")
    assert whole is not None
    assert resumed is not None
    assert resumed["loss_terms"] == whole["loss_terms"]
    assert_same(*(weights(tmp_path / run / "result" / "adapter") for run in ("parts", "whole")))
    assert names(checkpoints) == {"step-00000010", "damaged-step-00000009"}
    assert not [*parts.glob(".result*")]


# two runs at once

HOLD = """
import time
from anprompt_peft.training import lock_folder
with lock_folder({!r}):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_gone(
    data: Dataset, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command line, Trainer and the example; a killed process holds nothing."""
    output = tmp_path / "out"
    script = HOLD.format(str(output))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        for start in (make_trainer(output, data, **EVERY_STEP).train, lambda: worker.run_script(digits, output)):
            with pytest.raises(FileExistsError, match="is in use: another run"):
                start()
        assert train_by_command(digits, output) == 2
        assert "out is in use: another run is going on in it." in capsys.readouterr().err
        assert names(output) == {".lock"}
        holder.kill()
    assert train_by_command(digits, output) == 0
    assert not (output / ".lock").exists()


def test_a_folder_is_locked_once_and_again_by_the_same_thread(tmp_path: Path) -> None:
    seen: list[str] = []

    def lock() -> None:
        try:
            with lock_folder(tmp_path / "new"):
                seen.append("locked")
        except FileExistsError:
            seen.append("refused")

    with lock_folder(tmp_path / "new"):
        with lock_folder(tmp_path / "other" / ".." / "new"):
            pass
        assert (tmp_path / "new" / ".lock").exists()
        thread = Thread(target=lock)
        thread.start()
        thread.join()
    lock()
    assert seen == ["refused", "locked"]
    assert not (tmp_path / "new").exists()


# killed at any moment, and disks that are full


def by_command_line(data: Path, output: Path, again: bool) -> None:
    """Train with `anprompt train`, which says so if it is to resume what is complete."""
    if again and (output / "run.yaml").is_file():
        expected, code = 2 if (output / RESULTS).is_file() else 0, resume(output)
    else:
        expected, code = 0, train_by_command(data, output, "--epochs", 3)
    if code != expected:
        raise SystemExit(code)


def by_trainer(data: Path, output: Path, again: bool) -> None:
    """Train with `ANPromptTrainer`, a checkpoint at every step."""
    set_seed(1)
    images, processor = load_image_data(data, "train"), CLIPProcessor.from_pretrained(TINY_CLIP)
    clip = CLIPModel.from_pretrained(TINY_CLIP)
    model = get_peft_model(clip, ANPromptConfig(class_names=class_names_of(images)))
    settings: Any = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "report_to": "none"}
    arguments = ANPromptTrainingArguments(
        str(output), max_steps=6, per_device_train_batch_size=5, use_cpu=True, **settings
    )
    shots = ClipTransform(processor, augment=True).apply(images)
    trainer: Trainer = ANPromptTrainer(model, arguments, train_dataset=shots)
    begun = [path for path in output.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    trainer.train(resume_from_checkpoint=bool(again and begun))
    trainer.save_model()


def by_accelerate(data: Path, output: Path, again: bool) -> None:
    """Train with the Accelerate example, a checkpoint at every step."""
    settings = ["--data", str(data), "--model", str(TINY_CLIP), "--output", str(output), "--shots", "1"]
    settings += ["--epochs", "2", "--batch-size", "4", "--save-every", "1"]
    begun = train_accelerate.newest(output / "checkpoints") is not None
    train_accelerate.main([*settings, "--resume_from_checkpoint", str(again and begun)])


RUNS: dict[str, tuple[Callable[[Path, Path, bool], None], str]] = {
    "command line": (by_command_line, ""),
    "Trainer": (by_trainer, ""),
    "Accelerate": (by_accelerate, "result/adapter"),
}
ADDING = {"open", "os.mkdir", "os.rename"}
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.unlink"}


def attempt(
    run: Callable[[], None], output: Path, seconds: float | None = None, change: int | None = None, error: int = 0
) -> str:
    """Run in a process of its own and say how it ended: "killed", "well" or "badly".

    It is killed after so many seconds, or at the n-th change in the output folder. With an error number, this and all
    later changes fail with it instead.
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
    return "killed" if os.WIFSIGNALED(status) else "badly" if os.WEXITSTATUS(status) else "well"


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


@pytest.fixture
def undisturbed(
    request: pytest.FixtureRequest, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Callable[[Path, bool], None], str, dict[str, Tensor], float]:
    """One kind of training, where it saves its adapter, the undisturbed run's weights, and its seconds."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    run, saved = RUNS[request.param]
    export(tmp_path / "digits", 2)
    started = time.perf_counter()
    assert attempt(partial(run, tmp_path / "digits", tmp_path / "whole", False), tmp_path / "whole") == "well"
    return partial(run, tmp_path / "digits"), saved, weights(tmp_path / "whole" / saved), time.perf_counter() - started


killing = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")]


@pytest.mark.parametrize("kills", [pytest.param(number, marks=killing) for number in (3, 100)])
@pytest.mark.parametrize("undisturbed", RUNS, indirect=True)
def test_killed_trainings_resume_exactly(kills: int, undisturbed: Any, tmp_path: Path) -> None:
    """By turns at a random time, and at the n-th change of a file, for n = 1, 2, ..., until the run gets through."""
    run, saved, expected, seconds = undisturbed
    rng, done = random.Random(0), 0
    for number in itertools.count():
        output = tmp_path / f"run-{number}"
        for change in itertools.count(1):
            how: Any = {"change": change} if number % 2 else {"seconds": rng.uniform(0.1, 1.1) * seconds}
            ended = attempt(partial(run, output, change > 1), output, **(how if done < kills else {}))
            if ended != "killed":
                break
            done += 1
        assert ended == "well"
        assert_same(weights(output / saved), expected)
        left = [*output.rglob(".*"), *output.rglob("unfinished")]
        assert not [path for path in left if not path.parent.name.startswith("damaged-")]
        if done >= kills:
            return


@pytest.mark.parametrize("undisturbed", [pytest.param(name, marks=killing) for name in RUNS], indirect=True)
def test_a_full_disk_ends_a_run_and_the_next_one_resumes(undisturbed: Any, tmp_path: Path) -> None:
    """The disk is full, or the folder can only be read, by turns, from every seventh change on."""
    run, saved, expected, _ = undisturbed
    for failures, change in enumerate(itertools.count(1, 7)):
        output, error = tmp_path / f"run-{change}", (errno.ENOSPC, errno.EROFS)[failures % 2]
        ended = attempt(partial(run, output, False), output, change=change, error=error)
        if ended == "well":
            assert_same(weights(output / saved), expected)
            assert failures > 3
            return
        assert ended == "badly"
        assert attempt(partial(run, output, True), output) == "well"
        assert_same(weights(output / saved), expected)
