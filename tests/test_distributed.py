"""Two real processes: the same training as one, exact evaluation and resuming, sharded class texts, launchers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import distributed_worker as worker
from anprompt_peft.fast import sharding as distributed
from helpers import assert_exact

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPT = EXAMPLES / "train_accelerate.py"
ADAPTER = "adapter_model.safetensors"
TERMS = {
    "loss", "cross_entropy_class", "cross_entropy_prototype", "similarity_image", "similarity_text",
    "similarity_rephrased", "waloss",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    settings = {
        "ACCELERATE_USE_CPU": "true",
        "HF_DATASETS_CACHE": str(tmp_path_factory.mktemp("cache")),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield
    worker.forget_accelerators(leave_group=True)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def ranks(clip_folder: Path, digits: Path, output: Path) -> list[dict[str, Any]]:
    """What each of two processes brought back."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launch(*launcher, worker.__file__, str(clip_folder), str(digits), str(output))
    return [torch.load(output / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def launch(*command: str) -> str:
    """Run Python with these arguments; returns what it printed, and fails with it."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def assert_same_weights(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, weight in expected.items():
        assert_exact(ours[name], weight, name)


@pytest.mark.parametrize(("scenario", "batch_size"), [("plain", 6), ("checkpointed", 6), ("accumulated", 12)])
def test_two_processes_train_as_one_with_the_large_batch(
    scenario: str, batch_size: int, ranks: list[dict[str, Any]], clip_folder: Path
) -> None:
    one = worker.train(clip_folder, batch_size, waloss_weight=0.0)
    assert (one["processes"], one["parallel"]) == (1, False)
    for rank in ranks:
        two = rank[scenario]
        assert (two["processes"], two["parallel"], two["find_unused_parameters"]) == (2, True, False)
        assert_same_weights(two["weights"], one["weights"])
        if batch_size == 6:
            assert two["losses"] == pytest.approx(one["losses"], abs=1e-10)


def test_waloss_is_nearly_that_of_the_doubled_batch(ranks: list[dict[str, Any]], clip_folder: Path) -> None:
    """Its scale is the standard deviation of the logits of each process's own batch."""
    one, two = worker.train(clip_folder, 6, text_update_rank=None), ranks[0]["waloss"]
    assert two["losses"] == pytest.approx(one["losses"], rel=0.05)
    assert two["losses"] != pytest.approx(one["losses"], rel=1e-6)


def test_distributed_data_parallel_has_nothing_to_complain_about(ranks: list[dict[str, Any]]) -> None:
    for message in (message for rank in ranks for message in rank["plain"]["warnings"]):
        assert not any(word in message for word in ("bucket", "unused", "stride", "find_unused_parameters")), message


@pytest.mark.parametrize("scenario", ["sharded", "sharded_checkpointed"])
def test_sharded_class_texts_change_nothing_but_the_work(
    scenario: str, ranks: list[dict[str, Any]], clip_folder: Path
) -> None:
    """33 texts are 17 for each of two processes, one of them to fill up."""
    one = worker.train(clip_folder, 6, class_names=worker.MANY_CLASSES, waloss_weight=0.0)
    count = len(worker.MANY_CLASSES)
    assert count == 33
    for rank in ranks:
        assert set(rank["many"]["texts"]) == {count}
        assert set(rank[scenario]["texts"]) == {17}
        assert rank[scenario]["losses"] == pytest.approx(rank["many"]["losses"], abs=1e-10)
        assert_same_weights(rank[scenario]["weights"], rank["many"]["weights"])
        assert_same_weights(rank[scenario]["weights"], one["weights"])


def test_few_class_texts_are_not_sharded(ranks: list[dict[str, Any]]) -> None:
    assert len(worker.CLASSES) < distributed.SHARD_FROM
    assert set(ranks[1]["few_sharded"]["texts"]) == {len(worker.CLASSES)}
    assert ranks[1]["few_sharded"]["losses"] == ranks[1]["plain"]["losses"]


def test_one_process_has_nobody_to_share_with(clip_folder: Path) -> None:
    alone = worker.train(clip_folder, 6, shard=True, class_names=worker.MANY_CLASSES)
    assert set(alone["texts"]) == {len(worker.MANY_CLASSES)}


def test_fully_sharding_by_hand_gives_the_same_adapter(ranks: list[dict[str, Any]]) -> None:
    """FSDP2 without CLIP's scalar, its shards gathered for `save_pretrained`, as examples/speed/README.md shows."""
    expected = {name.replace(".default", ""): weight for name, weight in ranks[0]["plain"]["weights"].items()}
    saved = ranks[1]["fully_sharded"]
    assert len(saved) == len(expected) + 4
    assert_same_weights({name: saved[name] for name in expected}, expected)


def test_processes_may_evaluate_different_numbers_of_batches(ranks: list[dict[str, Any]]) -> None:
    """Without gradients no process waits for another, in training mode neither."""
    assert [rank["uneven"] for rank in ranks] == [1, 3]


def test_bfloat16_autocast(ranks: list[dict[str, Any]], clip_folder: Path) -> None:
    exact = worker.train(clip_folder, 6, waloss_weight=0.0)
    for rank in ranks:
        rough = rank["bfloat16"]
        assert rough["loss_dtype"] == torch.float32
        assert {weight.dtype for weight in rough["weights"].values()} == {torch.float32}
        assert rough["losses"] == pytest.approx(exact["losses"], rel=0.05)
        assert rough["losses"] != pytest.approx(exact["losses"], rel=1e-6)


def test_buffers_are_those_of_the_first_process(ranks: list[dict[str, Any]]) -> None:
    """Noise prompts, features and the int64 token ids, although the second process had others."""
    first, second = (rank["buffers"] for rank in ranks)
    assert {buffer.dtype for buffer in first.values()} == {torch.float64, torch.int64}
    assert len(first) == 4
    assert all(torch.equal(first[name], second[name]) for name in first)
    noise = next(buffer for name, buffer in first.items() if "noise_prompts" in name)
    assert noise.norm(dim=-1).max() <= 1 + 1e-9


def test_uneven_evaluation_is_exact(ranks: list[dict[str, Any]], clip_folder: Path) -> None:
    counts = worker.evaluate(clip_folder)
    assert [images for _, images in counts] == list(worker.EVALUATED)
    assert 0 < counts[0][0] < worker.EVALUATED[0]
    for rank in ranks:
        assert rank["evaluate"] == counts


def test_a_training_stopped_within_an_epoch_resumes_exactly(ranks: list[dict[str, Any]], output: Path) -> None:
    """Two processes, augmented images, accumulated gradients; 3 optimizer steps an epoch, stopped after the fourth."""
    for rank in ranks:
        runs = rank["resume"]
        assert runs["stopped"] is None
        assert runs["left"] == [f"step-{worker.STOP_AFTER:08d}"]
        assert runs["whole"]["settings"]["processes"] == "2"
        for figure in ("accuracy", "loss_terms", "test_images"):
            assert runs["resumed"][figure] == runs["whole"][figure]
    whole, resumed = (load_file(output / run / "result" / "adapter" / ADAPTER) for run in ("whole", "parts"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    checkpoint = output / "parts" / "checkpoints" / "step-00000006"
    assert all(torch.equal(whole[name], weight) for name, weight in load_file(checkpoint / ADAPTER).items())
    assert torch.load(checkpoint / "scheduler.bin")["last_epoch"] == 6


def command(digits: Path, output: Path) -> list[str]:
    data = ["--data", str(digits), "--model", str(EXAMPLES / "embedded" / "tiny_clip"), "--output", str(output)]
    return [str(SCRIPT), *data, "--shots", "2", "--epochs", "1"]


def test_the_example_says_what_it_did(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process; test_docs.py runs it under `accelerate launch`, as docs/training.md says."""
    record: Any = worker.run_script(digits, tmp_path)
    assert record == json.loads((tmp_path / "result" / "results.json").read_text())
    printed = capsys.readouterr().out
    assert "1 process(es) on cpu" in printed
    assert f"{round(30 * record['accuracy'])} of 30 test images right" in printed
    assert [set(terms) for terms in record["loss_terms"]] == [TERMS, TERMS]
    assert record["versions"]["torch"] == torch.__version__


@pytest.mark.slow
def test_accelerate_launch_runs_the_example_on_two_processes(digits: Path, tmp_path: Path) -> None:
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    assert "2 process(es) on cpu" in launch(*launcher, *command(digits, tmp_path), "--mixed-precision", "bf16")
    assert json.loads((tmp_path / "result" / "results.json").read_text())["test_images"] == 30


def test_trainer_logs_the_terms_of_all_processes(
    ranks: list[dict[str, Any]], clip_folder: Path, tmp_path: Path
) -> None:
    """Two processes with batches of 2 log what one logs with batches of 4, and evaluate seven images as it does."""
    one, two = worker.train_with_trainer(clip_folder, tmp_path, 4), ranks[0]["trainer"]
    assert (one["processes"], two["processes"]) == (1, 2)
    assert len(one["logs"]) == len(two["logs"]) == 2
    for alone, together in zip(one["logs"], two["logs"], strict=True):
        for name in TERMS - {"waloss"}:
            assert together[name] == pytest.approx(alone[name], rel=1e-6), name
    assert two["eval"]["eval_accuracy"] == one["eval"]["eval_accuracy"]
    assert two["eval"]["eval_loss"] == pytest.approx(one["eval"]["eval_loss"], rel=0.02), "Trainer fills a batch up"
