"""The scripts that measure speed: their arithmetic, their processes, and each of them run once, small."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import SiglipConfig

import gpu
import harness
import step
import workload
from anprompt_peft.fast import Savings
from fresh import collect, in_process
from harness import (
    Setting,
    interleave,
    operations,
    parser_for,
    ratios,
    read_setting,
    spread,
    tables,
)
from workload import Size, class_ids, make_clip, make_workload, read_size

SPEED = Path(step.__file__).parent
TOWER = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}


def run(script: str, output: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """Run a script; returns its record and what it printed."""
    command = [sys.executable, str(SPEED / f"{script}.py"), "--output", str(output), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    record = json.loads((output / f"{script}.json").read_text())
    assert record["did_not_finish"] == []
    assert {"torch", "transformers", "peft"} <= record["versions"].keys()
    return record, done.stdout


def test_rows_with_the_same_keys_are_a_table() -> None:
    rows: list[dict[str, Any]] = [
        {"way": "savings", "s": spread([1.25, 1, 2.0]), "GFLOP": 1234.5},
        {"way": "plain", "s": 10.0, "GFLOP": None},
        {"images": 16000},
    ]
    assert tables(rows).splitlines() == [
        "| way     |           s | GFLOP |",
        "| ------- | ----------: | ----: |",
        "| savings | 1.25 [1, 2] | 1,234 |",
        "| plain   |          10 |       |",
        "",
        "| images |",
        "| ------ |",
        "| 16,000 |",
    ]


def test_sizes() -> None:
    assert read_size("100x32") == Size(100, 32, 9, 224)
    assert read_size("100x32x4x64") == Size(100, 32, 4, 64)
    for wrong in ("100", "4x0", "axb", "4x-1", "", "4x1x2x32x1"):
        with pytest.raises(argparse.ArgumentTypeError, match="such as 50x4"):
            read_size(wrong)
    for wrong in ("1x4", "4x1x1", "4x1x2x230"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"start at 2, .* a multiple of 16"):
            read_size(wrong)


def test_ratios_are_of_the_same_round() -> None:
    assert ratios([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == {"median": 3, "min": 2, "max": 4, "values": [2, 3, 4]}
    assert spread([4.0, 1.0]) == {"median": 2.5, "min": 1.0, "max": 4.0, "values": [4.0, 1.0]}


def test_ways_take_turns_and_the_first_round_does_not_count() -> None:
    called: list[str] = []
    ways = {name: partial(called.append, name) for name in "abc"}
    seconds = interleave(ways, Setting("cpu", "float32", threads=1, steps=2))
    assert [called[at : at + 3] for at in (0, 3, 6)] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
    called.clear()
    interleave({"a": ways["a"]}, Setting("cpu", "float32", threads=1, steps=2, block=5))
    assert len(called) == 1 + 2 * 5
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 2, "b": 2, "c": 2}


def test_operations_count_products_and_attention_with_their_gradients() -> None:
    left, right = torch.randn(3, 4), torch.randn(4, 5)
    assert operations(lambda: left @ right) == 2 * 3 * 4 * 5
    query, key, value = (torch.randn(1, 2, length, 8, requires_grad=True) for length in (3, 6, 6))
    forward = 2 * 2 * 2 * 3 * 6 * 8
    assert operations(lambda: F.scaled_dot_product_attention(query, key, value)) == forward
    both = operations(lambda: F.scaled_dot_product_attention(query, key, value).sum().backward())
    assert both == 3 * forward


def test_a_process_that_breaks_off_is_named_and_the_rest_is_measured() -> None:
    jobs: dict[str, Any] = {
        "leaves": (sys.exit, 3),
        "killed": (signal.raise_signal, signal.SIGKILL),
        "parent": (os.getppid,),
    }
    rows, failures = collect(jobs, lambda name: [{name: in_process(*jobs[name])}])
    assert rows == [{"parent": os.getpid()}]
    assert failures == [
        "leaves: its process ended with code 3",
        f"killed: its process ended with code -{signal.SIGKILL.value}, killed, perhaps for want of memory",
    ]


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(ChildProcessError, match="7: its process ended with code 7"):
        collect([7], lambda code: in_process(sys.exit, code))


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_measurement_leaves_no_process(ending: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "waits.py"
    script.write_text(
        "import os, pathlib, signal, sys, time\n"
        "from fresh import in_process\n"
        "def wait(folder):\n"
        "    pathlib.Path(folder, str(os.getpid())).touch()\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "    in_process(wait, sys.argv[1])\n"
    )
    folder = tmp_path / "started"
    folder.mkdir()
    paths = os.pathsep.join([str(SPEED), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    with subprocess.Popen([sys.executable, str(script), str(folder)], env=environment) as parent:
        wait_until(lambda: any(folder.iterdir()))
        parent.send_signal(ending)
        parent.wait(timeout=60)
    (child,) = (int(each.name) for each in folder.iterdir())
    wait_until(lambda: not is_running(child))


def wait_until(condition: Any) -> None:
    """Wait for something that takes seconds at most."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "did not come to pass"
        time.sleep(0.05)


def is_running(process: int) -> bool:
    """Whether a process is there and not only waiting to be reaped."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_class_texts_end_in_the_same_token() -> None:
    ids = class_ids(make_workload(classes=20, batch=1).class_names, make_clip(TOWER, TOWER, 16))
    assert ids.shape[0] == 20
    assert len(set(ids[:, -1].tolist())) == 1
    assert (ids[:, :5] == ids[0, :5]).all()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CLIP of three layers in the place of ViT-B/16, in this process."""
    monkeypatch.setattr(workload, "make_clip", partial(make_clip, TOWER, TOWER, 16))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("way", "savings", "dtype"),
    [
        ("savings", Savings(), torch.float32),
        ("plain", Savings.none(), torch.float32),
        ("chunks-bf16", Savings(text_chunk=500), torch.bfloat16),
    ],
)
def test_a_way_has_its_savings_and_precision(
    way: str, savings: Savings, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "train_step", lambda model, work, dtype: model)
    model: Any = workload.make_step(way, Size(3, 1, 5), "cpu", "float32")
    assert model.savings == savings
    assert model.vision_model.post_layernorm.weight.dtype == dtype
    assert model.peft_config["default"].num_virtual_tokens == 3
    assert model.peft_config["default"].num_noise_tokens == 2


@pytest.mark.usefixtures("small")
def test_a_step_is_told_by_time_ratio_and_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "GEMM_SHAPES", {"cpu": [(64, 64, 64)]})
    ways = ["savings", "plain", "lora", "savings-bf16"]
    rows = step.time_ways(ways, True, Setting("cpu", "float32", threads=1, steps=2), Size(3, 2, image=32))
    assert [row["way"] for row in rows] == ways
    assert rows[0]["to savings"]["values"] == [1, 1]
    assert rows[1]["to savings"]["median"] == pytest.approx(
        sum(rows[1]["s per step"]["values"][at] / rows[0]["s per step"]["values"][at] for at in (0, 1)) / 2
    )
    assert 0 < rows[0]["GFLOP"] < rows[1]["GFLOP"]
    assert all(row["% of GEMM"] > 0 for row in rows)


def test_siglip_takes_steps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    made = partial(SiglipConfig, vision_config={**TOWER, "image_size": 32, "patch_size": 16})
    monkeypatch.setattr(workload, "SiglipConfig", lambda text_config: made(text_config={**TOWER, **text_config}))
    for way in ("siglip-savings", "siglip-plain", "siglip-lora"):
        workload.make_step(way, Size(3, 2, image=32), "cpu", "float32", former=True)()


@pytest.mark.usefixtures("small")
def test_gpu_runs_on_a_cpu_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "make_clip", partial(make_clip, TOWER, TOWER, 16))
    options = ["--device", "cpu", "--threads", "1", "--sizes", "3x2", "--ways", "savings", "lora"]
    gpu.main([*options, "--images", "6", "--epochs", "2", "--output", str(tmp_path)])
    ours, lora, jpeg, cached = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert (ours["way"], lora["way"]) == ("savings", "lora")
    assert ours["attention"].startswith("aten::_scaled_dot_product")
    for row in (jpeg, cached):
        assert (row["images"], len(row["s each further epoch"]["values"])) == (6, 1)
        assert row["s in all"] > row["s first epoch"] + row["s each further epoch"]["median"] > 0
    assert "cached" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("parse", "arguments", "message"),
    [
        (step.parse, ["--dtype", "float16", "--device", "cpu"], "float16 needs a GPU"),
        (step.parse, ["--steps", "0"], "must be at least 1"),
        (step.parse, ["--sizes", "50"], "such as 50x4"),
        (step.parse, ["--sizes", "50x4x9x230"], "a multiple of 16"),
        (step.parse, ["--ways", "half"], "invalid choice: 'half'"),
        (gpu.parse, ["--sizes", "50"], "such as 50x4"),
        (gpu.parse, ["--dtype", "bfloat16"], "unrecognized arguments: --dtype"),
    ],
)
def test_wrong_options(parse: Any, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert message in capsys.readouterr().err


def test_a_script_writes_what_was_measured_and_ends_with_what_was_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = parser_for("small", None, device="cpu", dtype="float32", threads=torch.get_num_threads())
    options = parser.parse_args(["--output", str(tmp_path / "out"), "--steps", "3"])

    def measure(job: int) -> list[dict[str, Any]]:
        if job == 2:
            raise ChildProcessError("its process ended with code 9")
        return [{"measured": 10 * job}]

    with pytest.raises(SystemExit, match="2: its process ended with code 9"):
        harness.run("small", options, read_setting(parser, options), [1, 2, 3], measure)
    record = json.loads((tmp_path / "out" / "small.json").read_text())
    assert record["rows"] == [{"measured": 10}, {"measured": 30}]
    assert record["did_not_finish"] == ["2: its process ended with code 9"]
    threads = torch.get_num_threads()
    assert record["setting"] == {"device": "cpu", "dtype": "float32", "threads": threads, "steps": 3, "block": 1}
    printed = capsys.readouterr().out
    assert "of 3 steps" in printed
    assert "| measured |" in printed


@pytest.mark.slow
def test_step(tmp_path: Path) -> None:
    ways = ["savings", "plain"]
    record, printed = run("step", tmp_path / "out", "--sizes", "4x1", "4x1x5x32", "--steps", "1", "--ways", *ways)
    full, small = record["rows"][:2], record["rows"][2:]
    assert [row["way"] for row in full] == [row["way"] for row in small] == ways
    assert 1 < full[0]["GFLOP"] < full[1]["GFLOP"]
    assert small[0]["GFLOP"] < full[0]["GFLOP"]
    assert all(0.6 < row["GB at the peak"] < 20 for row in record["rows"])
    assert record["versions"]["torch"] in printed
    assert printed.count("| 4 x 1 x 9 x 224 ") == 2
    assert Image.open(tmp_path / "out" / "step.png").width > 1000


@pytest.mark.slow
def test_served(tmp_path: Path) -> None:
    """Files of the tiny CLIP answer as PyTorch does, up to rounding; those of fewer bits are smaller."""
    served = pytest.importorskip("served", reason="the extra 'onnx' is not installed", exc_type=ImportError)
    arguments = ("--batch", "1", "--classes", "3", "--steps", "1", "--threads", "1", "--no-compile")
    record, printed = run("served", tmp_path / "out", *arguments)
    ways = list(dict.fromkeys(row["way"] for row in record["rows"]))
    rates, answers = record["rows"][: len(ways)], {row["way"]: row for row in record["rows"][len(ways) :]}
    assert set(ways) == {*answers, served.EXPORTED, served.CLIP}
    for rows in (rates, answers.values()):
        size = {row["way"]: row["MB"] for row in rows}
        assert size[served.INT8] < size[served.FLOAT16] < size[served.FLOAT32]
    same = {way: row["same answers, %"] for way, row in answers.items()}
    assert same[served.TORCH] == same[served.FLOAT32] == 100
    assert answers[served.TORCH]["accuracy, %"] > 50
    assert min(same.values()) > 90
    assert printed.count("ONNX, int8") == 2
