"""examples/load_and_predict.py on an adapter of the digits' tiny CLIP."""

from __future__ import annotations

import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from anprompt_peft import ANPromptConfig
from handwriting import CLASS_NAMES, TEMPLATE, load_split
from helpers import scatter

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY_CLIP = EXAMPLES / "digits" / "tiny_clip"

Main = Callable[[list[str]], int]


@pytest.fixture(scope="module")
def main() -> Main:
    return runpy.run_path(str(EXAMPLES / "load_and_predict.py"))["main"]


@pytest.fixture(scope="module")
def model() -> Any:
    config = ANPromptConfig(class_names=CLASS_NAMES[:5], template=TEMPLATE)
    return scatter(get_peft_model(CLIPModel.from_pretrained(TINY_CLIP), config).eval(), 0.02)


@pytest.fixture
def adapter(model: Any, tmp_path: Path) -> str:
    model.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two digits, one of them in a sub-folder, and a file that is no image."""
    images, _ = load_split("test")
    (tmp_path / "images" / "more").mkdir(parents=True)
    images[0].save(tmp_path / "images" / "a.png")
    images[1].save(tmp_path / "images" / "more" / "b.jpg", quality=100)
    (tmp_path / "images" / "notes.txt").write_text("not for the model")
    return tmp_path / "images"


@torch.no_grad()
def expected(model: Any, file: Path, classes: list[str], top_k: int) -> str:
    model.set_classes(classes)
    pixels = CLIPProcessor.from_pretrained(TINY_CLIP)(images=[Image.open(file)], return_tensors="pt")["pixel_values"]
    scores = dict(zip(classes, model(pixel_values=pixels).logits[0].softmax(dim=-1).tolist(), strict=True))
    best = sorted(classes, key=lambda name: -scores[name])[:top_k]
    return f"{file}: {', '.join(f'{name} {scores[name]:.1%}' for name in best)}"


@pytest.mark.parametrize("classes", [CLASS_NAMES[:5], CLASS_NAMES[5:]], ids=["trained", "unseen"])
def test_prints_the_models_own_scores(
    classes: list[str], main: Main, model: Any, adapter: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [] if classes == CLASS_NAMES[:5] else ["--classes", *classes]
    assert main([adapter, str(folder), "--top-k", "2", *asked]) == 0
    files = (folder / "a.png", folder / "more" / "b.jpg")
    assert capsys.readouterr().out.splitlines() == [expected(model, file, classes, 2) for file in files]


def test_unreadable_files_are_named_and_the_rest_is_done(
    main: Main, adapter: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    assert main([adapter, str(folder), str(folder / "notes.txt"), "nowhere.png"]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    cut, notes, nowhere = (line for line in err.splitlines() if line.startswith("error: "))
    assert cut.startswith(f"error: {folder / 'cut.png'} cannot be decoded: ")
    assert notes == f"error: {folder / 'notes.txt'} cannot be decoded: no known image format"
    assert nowhere.endswith("No such file or directory: 'nowhere.png'")


def test_refuses(main: Main, adapter: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([adapter, str(folder), "--top-k", "0"])
    assert "--top-k must be at least 1, got 0" in capsys.readouterr().err
    shutil.rmtree(folder / "more")
    (folder / "a.png").unlink()
    with pytest.raises(SystemExit):
        main([adapter, str(folder)])
    assert f"no images in the folder {folder}" in capsys.readouterr().err
