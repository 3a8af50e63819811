"""The benchmarks: their arithmetic, their processes, and each of them run once as small as ViT-B/16 allows."""

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
from unittest.mock import Mock, call, patch

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import gpu
import predict
import processes
import reporting
import scaling
import step
import ways
from anprompt_peft.fast import Savings
from fresh import collect, in_process, in_processes
from growth import fit
from measuring import Setting, interleave, operations, parser_for, ratios, read_setting, size, spread
from reporting import table
from workload import class_ids, make_clip, make_workload

BENCHMARKS = Path(step.__file__).parent


def run(script: str, output: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """Run a benchmark; returns its record and what it printed."""
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), "--output", str(output), *arguments]
    digits = str(BENCHMARKS.parent / "examples" / "digits")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([digits, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    record = json.loads((output / f"{script}.json").read_text())
    assert record["did_not_finish"] == []
    assert {"torch", "transformers", "peft"} <= record["versions"].keys()
    return record, done.stdout


def leave(code: int) -> None:
    """End this process at once. Under coverage `os._exit` itself is a function that cannot be sent to a process."""
    os._exit(code)


def test_fit_finds_a_line_and_an_exponent() -> None:
    line = fit([1, 2, 3, 4], [5, 7, 9, 11])
    assert line is not None
    assert (line.start, line.slope, line.r_squared) == pytest.approx((3, 2, 1))
    square = fit([1, 2, 4, 8], [1, 4, 16, 64])
    assert square is not None
    assert (square.exponent, square.exponent_r_squared) == pytest.approx((2, 1))
    assert square.r_squared < 0.99


def test_fit_takes_the_exponent_from_the_upper_half() -> None:
    growth = fit([1, 2, 4, 8, 16, 32], [100, 100, 100, 8, 16, 32])
    assert growth is not None
    assert growth.exponent == pytest.approx(1)
    assert fit([32, 4, 16, 1, 8, 2], [32, 100, 16, 100, 8, 100]) == growth


def test_fit_of_a_constant_and_of_too_few_points() -> None:
    constant = fit([1, 2, 3], [5, 5, 5])
    assert constant is not None
    assert (constant.slope, constant.r_squared, constant.exponent) == pytest.approx((0, 1, 0))
    assert fit([1, 2], [1, 2]) is None


def test_table_lines_up() -> None:
    lines = table(["way", "s"], [["all savings", "1.25"], ["x", "10"]]).splitlines()
    assert lines == [
        "| way         |    s |",
        "| ----------- | ---: |",
        "| all savings | 1.25 |",
        "| x           |   10 |",
    ]


def test_size() -> None:
    assert size("100x32") == (100, 32)
    for wrong in ("100", "1x4", "4x0", "axb", "4x-1", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="such as 50x4"):
            size(wrong)


def test_ratios_are_of_the_same_round() -> None:
    assert ratios([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == {"median": 3.0, "min": 2.0, "max": 4.0}
    assert spread([4.0, 1.0]) == {"median": 2.5, "min": 1.0, "max": 4.0}


def test_ways_take_turns_and_the_first_round_does_not_count() -> None:
    called: list[str] = []
    ways = {name: partial(called.append, name) for name in "abc"}
    seconds = interleave(ways, Setting("cpu", "float32", threads=1, steps=2))
    assert [called[at : at + 3] for at in (0, 3, 6)] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 2, "b": 2, "c": 2}


def test_operations_count_products_and_attention_with_their_gradients() -> None:
    left, right = torch.randn(3, 4), torch.randn(4, 5)
    assert operations(lambda: left @ right) == 2 * 3 * 4 * 5
    query, key, value = (torch.randn(1, 2, length, 8, requires_grad=True) for length in (3, 6, 6))
    forward = 2 * 2 * 2 * 3 * 6 * 8
    assert operations(lambda: F.scaled_dot_product_attention(query, key, value)) == forward
    both = operations(lambda: F.scaled_dot_product_attention(query, key, value).sum().backward())
    assert both == 3 * forward


def test_fresh_processes_return_in_order() -> None:
    assert in_processes(pow, [(2, 3), (3, 2)]) == [8, 9]
    assert in_process(os.getppid) == os.getpid()


def test_a_process_that_breaks_off_is_named_and_the_rest_is_measured() -> None:
    jobs: list[tuple[Any, int]] = [(leave, 3), (signal.raise_signal, signal.SIGKILL), (abs, -1)]
    results, failures = collect(jobs, lambda job: in_process(*job), lambda job: job[0].__name__)
    assert results == [1]
    assert failures == [
        "leave: its process ended with code 3",
        f"raise_signal: its process ended with code -{signal.SIGKILL.value}, killed, perhaps for want of memory",
    ]


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(ChildProcessError, match="7: its process ended with code 7"):
        collect([7], lambda code: in_process(leave, code), str)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_benchmark_leaves_no_process(ending: signal.Signals, tmp_path: Path) -> None:
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
    paths = os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])
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
    ids = class_ids(make_workload(classes=20, batch=1).class_names)
    assert ids.shape[0] == 20
    assert len(set(ids[:, -1].tolist())) == 1
    assert (ids[:, :5] == ids[0, :5]).all()


def test_parts_of_a_workload_are_all_of_it() -> None:
    work = make_workload(classes=5, batch=6, image_size=32)
    parts = [work.part(number, 2) for number in (0, 1)]
    assert sorted(label for part in parts for label in part.labels.tolist()) == sorted(work.labels.tolist())
    torch.testing.assert_close(sum(part.pixels.sum() for part in parts), work.pixels.sum())


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (4, ["all savings", "plain", "LoRA"]),
        (5, ["all savings", "LoRA"]),
        (6, ["7 texts at a time"]),
    ],
)
def test_ways_of_a_step(classes: int, expected: list[str]) -> None:
    arguments = ["--plain-classes", "4", "--chunk-from", "6", "--text-chunk", "7"]
    assert step.ways_for(classes, step.parse(arguments)[0]) == expected
    half = [ways.OURS_BFLOAT16, ways.LORA_BFLOAT16] if len(expected) > 1 else []
    assert step.ways_for(classes, step.parse([*arguments, "--bfloat16"])[0]) == expected + half


@pytest.mark.parametrize(
    ("way", "expected"),
    [("all savings", Savings()), ("plain", Savings.none()), ("7 texts at a time", Savings(text_chunk=7))],
)
def test_a_step_of_a_way_sets_its_savings_first(way: str, expected: Savings) -> None:
    model = Mock()
    with patch.object(ways, "train_step", lambda model, work, dtype: model.train_step):
        ways.make_step(way, model, make_workload(2, 1, 32), "float32")()
    assert model.mock_calls == [call.set_savings(expected), call.train_step()]


def test_gpu_runs_on_a_cpu_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
    monkeypatch.setattr(gpu, "make_clip", partial(make_clip, tower, tower, 16))
    options = ["--device", "cpu", "--threads", "1", "--steps", "2", "--block", "1", "--no-compile", "--sizes", "3x2"]
    gpu.main([*options, "--images", "6", "--epochs", "2", "--output", str(tmp_path)])
    steps, jpeg, cached = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert set(steps["seconds"]) == {ways.OURS_BFLOAT16, ways.SAVINGS, ways.LORA, ways.LORA_BFLOAT16, ways.PLAIN}
    assert steps["times_ours"][ways.OURS_BFLOAT16]["median"] == 1
    assert steps["profile"]["attention"]
    for row in (jpeg, cached):
        assert (row["images"], len(row["epoch_seconds"])) == (6, 2)
        assert row["all_epochs_seconds"] > sum(row["epoch_seconds"]) > 0
    assert "6, cached" in capsys.readouterr().out


def test_scaling_plans_each_axis_with_the_others_at_their_defaults() -> None:
    axes = ["--axes", "classes", "image", "--classes", "9", "3", "6", "--image", "32"]
    limits = ["--chunk-from", "6", "--text-chunk", "7", "--plain-classes", "5"]
    points = list(scaling.plan(scaling.parse([*axes, *limits])[0]))
    assert [(point.axis, point.classes, point.batch, point.image, point.way) for point in points] == [
        ("classes", 3, 4, 224, "all savings"),
        ("classes", 3, 4, 224, "plain"),
        ("classes", 6, 4, 224, "all savings"),
        ("classes", 6, 4, 224, "7 texts at a time"),
        ("classes", 9, 4, 224, "7 texts at a time"),
        ("image", 50, 4, 32, "7 texts at a time"),
    ]
    assert points[-1].x == 4, "patches of 16 pixels"
    batches = scaling.plan(scaling.parse(["--axes", "batch", "--batch", "1", "2", "--plain-batch", "1"])[0])
    assert [(point.batch, point.way) for point in batches] == [(1, "all savings"), (1, "plain"), (2, "all savings")]


@pytest.mark.parametrize(
    ("parse", "arguments", "message"),
    [
        (step.parse, ["--dtype", "float16", "--device", "cpu"], "float16 needs a GPU"),
        (step.parse, ["--steps", "0"], "must be at least 1"),
        (step.parse, ["--sizes", "50"], "such as 50x4"),
        (scaling.parse, ["--image", "230"], "multiples of 16"),
        (scaling.parse, ["--tokens", "1"], "start at 2"),
        (processes.parse, ["--batch", "3"], "must divide by --processes 2"),
        (gpu.parse, ["--sizes", "50"], "such as 50x4"),
        (predict.parse, ["--dtype", "bfloat16"], "unrecognized arguments: --dtype"),
    ],
)
def test_wrong_options(parse: Any, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert message in capsys.readouterr().err


def test_a_benchmark_writes_what_was_measured_and_ends_with_what_was_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = parser_for("small", None, device="cpu", dtype="float32", threads=torch.get_num_threads())
    options = parser.parse_args(["--output", str(tmp_path / "out"), "--steps", "3"])

    def measure(job: int) -> int:
        if job == 2:
            raise ChildProcessError("its process ended with code 9")
        return 10 * job

    with pytest.raises(SystemExit, match="2: its process ended with code 9"):
        reporting.run("small", options, read_setting(parser, options), [1, 2, 3], measure, lambda record: "a table")
    record = json.loads((tmp_path / "out" / "small.json").read_text())
    assert record["rows"] == [10, 30]
    assert record["did_not_finish"] == ["2: its process ended with code 9"]
    assert record["setting"] == {"device": "cpu", "dtype": "float32", "threads": torch.get_num_threads(), "steps": 3}
    printed = capsys.readouterr().out
    assert "of 3 steps" in printed
    assert "a table" in printed


def test_speedup_and_efficiency() -> None:
    names = list(processes.threads_by_way(2))
    seconds = dict(zip(names, ([4.0, 6.0], [2.0, 3.0], [5.0, 5.0], [3.2, 4.8]), strict=True))
    row = processes.summary(50, seconds, 2)
    assert [row["efficiency"][name] for name in names] == pytest.approx([1, 1, 0.5, 0.625])
    assert row["speedup"]["2 processes"] == pytest.approx({"median": 1.0, "min": 0.8, "max": 1.2})


@pytest.mark.slow
def test_step(tmp_path: Path) -> None:
    arguments = ("--sizes", "4x1", "6x1", "--chunk-from", "6", "--steps", "1", "--bfloat16")
    record, printed = run("step", tmp_path / "out", *arguments)
    row, in_chunks = record["rows"]
    ours, lora = ways.OURS_BFLOAT16, ways.LORA_BFLOAT16
    assert set(row["seconds"]) == set(row["peak_memory_gb"]) == {"all savings", "plain", "LoRA", ours, lora}
    assert set(in_chunks["seconds"]) == {"500 texts at a time"}
    assert all(0 < share <= 1 for share in row["share_of_peak"].values())
    assert 1e9 < row["operations"][ours] < row["operations"]["plain"]  # rephrased texts are drawn anew in every step
    assert 1e9 < row["operations"]["all savings"] < row["operations"]["plain"]
    assert all(0.6 < each < 20 for each in row["peak_memory_gb"].values())
    assert set(row["inference"]["images_per_second"]) == {step.CLIP, "all savings", ours}
    assert record["versions"]["torch"] in printed
    assert printed.count("| 4, 1 ") == 8
    assert Image.open(tmp_path / "out" / "step.png").width > 1000


@pytest.mark.slow
def test_scaling(tmp_path: Path) -> None:
    arguments = ("--axes", "tokens", "image", "--image", "32", "64", "128", "--tokens", "2", "--steps", "1")
    limits = ("--plain-classes", "0", "--threads", "1")
    record, printed = run("scaling", tmp_path / "out", *arguments, *limits)
    assert [(point["axis"], point["x"]) for point in record["points"]] == [
        ("tokens", 2), ("image", 4), ("image", 16), ("image", 64),
    ]  # fmt: skip
    images = record["points"][1:]
    assert images[0]["operations"] < images[1]["operations"] < images[2]["operations"]
    (growth,) = record["fits"]
    assert growth["axis"] == "image"
    assert 0 <= growth["r_squared"] <= 1
    assert "time = a + b * x" in printed
    assert Image.open(tmp_path / "out" / "scaling.png").width > 1000


@pytest.mark.slow
def test_processes(tmp_path: Path) -> None:
    record, printed = run("processes", tmp_path / "out", "--classes", "4", "--batch", "2", "--steps", "1")
    (row,) = record["rows"]
    assert list(row["seconds"]) == list(processes.threads_by_way(2))
    assert row["efficiency"]["1 process, 1 thread"] == 1
    assert row["speedup"]["2 processes"]["median"] == pytest.approx(
        row["all_seconds"]["1 process, 1 thread"][0] / row["all_seconds"]["2 processes"][0]
    )
    assert "2 processes, texts shared" in printed
    assert Image.open(tmp_path / "out" / "processes.png").width > 800


@pytest.mark.slow
def test_predict(tmp_path: Path) -> None:
    arguments = ("--images", "6", "--batch", "2", "--classes", "3", "--steps", "1", "--threads", "1")
    record, printed = run("predict", tmp_path / "out", *arguments)
    rates = record["images_per_second"]
    assert set(rates) == {"predict", "one after the other", "CLIP, pixels ready"}
    assert all(rate["median"] > 0 for rate in rates.values())
    assert record["ratio_to_serial"]["predict"]["median"] == pytest.approx(
        rates["predict"]["median"] / rates["one after the other"]["median"]
    )
    assert 20_000 < record["mean_file_bytes"] < 200_000, "about as large as photographs"
    assert record["versions"]["torch"] in printed


@pytest.mark.slow
def test_served(tmp_path: Path) -> None:
    """Files of the tiny CLIP answer as PyTorch does, up to rounding; those of fewer bits are smaller."""
    served = pytest.importorskip("served", reason="the extra 'onnx' is not installed", exc_type=ImportError)
    arguments = ("--batch", "1", "--classes", "3", "--steps", "1", "--threads", "1", "--no-compile")
    record, printed = run("served", tmp_path / "out", *arguments)
    rates, answers = record["speed"], record["accuracy"]
    assert set(rates["images_per_second"]) == {*answers["accuracy"], served.EXPORTED}
    for megabytes in (rates["megabytes"], answers["megabytes"]):
        assert megabytes[served.INT8] < megabytes[served.FLOAT16] < megabytes[served.FLOAT32]
    assert answers["same_answers"][served.TORCH] == answers["same_answers"][served.FLOAT32] == 100
    assert answers["accuracy"][served.TORCH] > 50
    assert min(answers["same_answers"].values()) > 90
    assert printed.count("ONNX, int8") == 2


@pytest.mark.slow
def test_text_sharding(tmp_path: Path) -> None:
    output = tmp_path / "out"
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(BENCHMARKS / "text_sharding.py")]
    options = ["--classes", "3", "--steps", "1", "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", *launch, *options], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    record = json.loads((output / "text_sharding.json").read_text())
    (row,) = record["rows"]
    assert (record["processes"], record["backend"], row["classes"]) == (2, "gloo", 3)
    assert row["speedup"]["median"] == pytest.approx(row["all_seconds"]["whole"][0] / row["all_seconds"]["shared"][0])
    assert "small CLIP, 2 processes over gloo" in done.stdout
