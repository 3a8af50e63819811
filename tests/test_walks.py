"""The walks of docs/architecture.md: what they list exists, and runs in the order that the page lists."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model

from anprompt_cli import main
from helpers import IMAGE_SIZE, LABELS, adapted, make_clip, make_config, make_trainer

ROOT = Path(__file__).parents[1]
TINY_CLIP = ROOT / "examples" / "embedded" / "tiny_clip"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WALKS = {
    title: [line.split()[0] for line in block.splitlines()]
    for title, block in re.findall(r"^### (.+?)\n.*?^```text\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
}


def first_calls(run: Callable[[], Any]) -> list[str]:
    """Names of the functions of both packages in the order of their first calls."""
    found: dict[str, None] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0].startswith("anprompt_"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("anprompt_peft.")
            found.setdefault(f"{module}.{frame.f_code.co_qualname}".replace(".<locals>", ""))

    before = sys.gettrace()
    sys.settrace(note)
    try:
        run()
    finally:
        sys.settrace(before)
    return list(found)


def adapt() -> Any:
    torch.manual_seed(0)
    return get_peft_model(make_clip(), make_config(rephrased_weight=1.0)).train()


def load(folder: Path, clip_folder: Path) -> Callable[[], Any]:
    adapted(tokenizer_name_or_path=str(clip_folder)).save_pretrained(folder / "saved")
    clip = make_clip()
    return lambda: PeftModel.from_pretrained(clip, folder / "saved")


def command(*arguments: object) -> Callable[[], Any]:
    def run() -> None:
        assert main([*map(str, arguments)]) == 0

    return run


@pytest.fixture
def runs(tmp_path: Path, clip_folder: Path, data: Dataset, digits: Path) -> dict[str, Callable[[], Any]]:
    """What each walk is a walk of."""
    pixels = torch.randn(3, 3, IMAGE_SIZE, IMAGE_SIZE)
    images = shutil.copytree(digits, tmp_path / "images")  # as data sets that a test has read are cached
    model = adapt()
    trainer = make_trainer(tmp_path / "run", data, adapt(), num_train_epochs=2, logging_strategy="epoch")
    short = ("--template", "a photo of the digit {}.", "--epochs", 1, "--shots", 1)
    return {
        "`get_peft_model`": adapt,
        "A forward with labels": lambda: model(pixel_values=pixels, labels=LABELS),
        "A training with `ANPromptTrainer`": trainer.train,
        "`PeftModel.from_pretrained`": load(tmp_path, clip_folder),
        "`anprompt train`": command("train", images, "--output", tmp_path / "adapter", "--model", TINY_CLIP, *short),
        "`anprompt benchmark`": command(
            "benchmark", "--data", images, "--model", TINY_CLIP, "--method", "linear-probe", "--shots", 1,
            "--seeds", 1, "--output", tmp_path / "grid",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("walk", WALKS)
def test_what_runs_is_what_the_page_lists(walk: str, runs: dict[str, Callable[[], Any]]) -> None:
    ran, listed = first_calls(runs[walk]), WALKS[walk]
    assert [name for name in listed if name not in ran] == []
    assert sorted(listed, key=ran.index) == listed


def test_every_walk_is_tried(runs: dict[str, Callable[[], Any]]) -> None:
    assert list(WALKS) == list(runs)
