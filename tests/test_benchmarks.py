"""The benchmark of a step runs from one command; at full model size it takes minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

STEP = Path(__file__).resolve().parents[1] / "benchmarks" / "step.py"


@pytest.mark.slow
def test_step(tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [sys.executable, str(STEP), "--sizes", "4x1", "--steps", "1", "--output", str(output)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    record = json.loads((output / "step.json").read_text())
    (row,) = record["rows"]
    assert set(row["seconds"]) == set(row["peak_memory_gb"]) == {"all savings", "plain", "LoRA"}
    assert 0 < row["share_of_peak"] <= 1
    assert row["operations"] > 1e9
    assert "(4, 1): all savings" in printed
    assert Image.open(output / "step.png").width > 1000
