"""The examples, on the embedded digits at reduced size, and the site."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from peft import AutoPeftModel

import train_trainer
from export_folder import export

ROOT = Path(__file__).resolve().parents[1]
TINY_CLIP = ROOT / "examples" / "embedded" / "tiny_clip"
TEMPLATE = "a photo of the digit {}."


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as an image folder, ten per class and split."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    export(folder, limit=10)
    return folder


def test_trainer_example(digits: Path, tmp_path: Path) -> None:
    settings = ["--shots", "8", "--num_train_epochs", "4", "--report_to", "none", "--seed", "1"]
    options = ["--model", str(TINY_CLIP), "--template", TEMPLATE, "--output_dir", str(tmp_path / "out")]
    metrics = train_trainer.main([str(digits), *options, *settings])
    assert metrics["eval_accuracy"] > 0.6
    assert metrics["eval_loss"] > 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{metrics['eval_accuracy']:g}" in card
    model = AutoPeftModel.from_pretrained(tmp_path / "out")
    assert model.class_names[:2] == ["eight", "five"], "folders come in alphabetical order"


def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    api = (tmp_path / "site" / "api" / "index.html").read_text()
    for name in ("ANPromptConfig", "load_image_data", "ANPromptTrainer", "export_onnx", "num_virtual_tokens"):
        assert name in api
