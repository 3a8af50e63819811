"""Each benchmark runs from one command; at full model size it takes minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.slow
def test_step(tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [sys.executable, str(BENCHMARKS / "step.py"), "--sizes", "4x1", "--steps", "1", "--output", str(output)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    record = json.loads((output / "step.json").read_text())
    (row,) = record["rows"]
    assert set(row["seconds"]) == set(row["peak_memory_gb"]) == {"all savings", "plain", "LoRA"}
    assert 0 < row["share_of_peak"] <= 1
    assert row["operations"] > 1e9
    assert "(4, 1): all savings" in printed
    assert Image.open(output / "step.png").width > 1000


@pytest.mark.slow
def test_predict(tmp_path: Path) -> None:
    size = ["--images", "6", "--batch", "2", "--classes", "3", "--rounds", "1"]
    command = [sys.executable, str(BENCHMARKS / "predict.py"), *size, "--output", str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    record = json.loads((tmp_path / "predict.json").read_text())
    rates = record["images_per_second"]
    assert set(rates) == {"predict", "serial", "CLIP, pixels ready"}
    assert all(rate > 0 for rate in rates.values())
    assert record["ratio_to_serial"]["predict"] == pytest.approx(rates["predict"] / rates["serial"])
    assert 20_000 < record["mean_file_bytes"] < 200_000, "about as large as photographs"
    assert "torch 2." in printed
    assert "cpu_count" in printed
