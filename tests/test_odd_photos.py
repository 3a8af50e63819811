"""One folder of odd photos gets the same answers from every way to ask for them, with code as it is printed."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModel
from PIL import Image
from transformers import CLIPProcessor

import distributed_worker as worker
from anprompt_cli import main
from anprompt_peft.data import ClipTransform, RGBImage
from anprompt_peft.serve import export_onnx, predict
from documented import read_blocks
from odd_photos import CLASSES, make_odd_photos

Shares = dict[str, float]
PAGE = [block.text for block in read_blocks("docs/serving.md") if block.language == "python"]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    yield
    worker.forget_accelerators(leave_group=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, with the splits `train` and `test`."""
    folder = tmp_path_factory.mktemp("odd")
    make_odd_photos(folder / "train", seed=0)
    make_odd_photos(folder / "test", seed=1)
    return folder


@pytest.fixture(scope="module")
def adapter(photos: Path, clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `anprompt train` makes of the folder."""
    folder = tmp_path_factory.mktemp("run") / "my-adapter"
    options = ["--model", clip_folder, "--epochs", 1, "--batch-size", 8, "--precision", "fp32"]
    assert main([str(each) for each in ("train", photos, "--output", folder, *options)]) == 0
    return folder


@pytest.fixture
def answers(adapter: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> dict[Path, Shares]:
    """What `anprompt predict` says of each photo of the split `test`."""
    capsys.readouterr()
    options = ["--jsonl", "--top-k", "9", "--precision", "fp32"]
    assert main(["predict", str(adapter), str(photos / "test"), *options]) == 0
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    found = {
        Path(line["image"]): {each["class"]: each["probability"] for each in line["predictions"]} for line in lines
    }
    assert set(found) == {path for path in (photos / "test").rglob("*") if path.is_file()}
    return found


@pytest.fixture
def desk(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which printed code runs."""
    (tmp_path / "my-adapter").symlink_to(adapter)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def block(*parts: str) -> str:
    """The first block of the page that contains the parts."""
    return next(text for text in PAGE if all(part in text for part in parts))


class Printed:
    """Printed code: what it does before it names an image runs once, the rest for each photo."""

    def __init__(self, code: str) -> None:
        statements = ast.parse(code).body
        first = next(at for at, each in enumerate(statements) if ".jpg" in ast.unparse(each))
        self.names: dict[str, Any] = {"__name__": "printed"}
        self._run(statements[:first])
        self.rest = statements[first:]

    def __call__(self, photo: Path) -> Any:
        """Run the rest with a photo in the place of its image; return the value of a last expression."""
        for name in ("image.jpg", "photo.jpg"):
            shutil.copyfile(photo, name)
        *statements, last = self.rest
        self._run(statements)
        if isinstance(last, ast.Expr):
            return eval(compile(ast.Expression(last.value), "printed", "eval"), self.names)
        return self._run([last])

    def _run(self, statements: list[ast.stmt]) -> None:
        exec(compile(ast.Module(statements, []), "printed", "exec"), self.names)


def assert_same(found: Shares, expected: Shares, path: Path) -> None:
    assert found == pytest.approx(expected, abs=2e-5), path.name


def test_the_photos_differ_enough(answers: dict[Path, Shares]) -> None:
    assert len({round(shares[CLASSES[0]], 4) for shares in answers.values()}) > 0.8 * len(answers)


def test_evaluate(
    adapter: Path, photos: Path, answers: dict[Path, Shares], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(adapter), str(photos), "--json", "--precision", "fp32"]) == 0
    found = json.loads(capsys.readouterr().out)["classes"]["test"]
    for name in CLASSES:
        mine = [shares for path, shares in answers.items() if name in path.parts]
        assert found[name]["images"] == len(mine)
        assert found[name]["right"] == sum(max(shares, key=shares.__getitem__) == name for shares in mine)


def test_the_card(adapter: Path, clip_folder: Path, answers: dict[Path, Shares], desk: Path) -> None:
    code = re.search(r"```python\n(.*?)```", ModelCard.load(adapter / "README.md").text, re.DOTALL)
    assert code is not None
    ask = Printed(code[1].replace("path/to/clip", str(clip_folder)).replace('adapter = "."', 'adapter = "my-adapter"'))
    for path, expected in answers.items():
        ask(path)
        labels = [ask.names["model"].class_names[index] for index in ask.names["best"].tolist()]
        assert_same(dict(zip(labels, ask.names["shares"].tolist(), strict=True)), expected, path)


def test_the_auto_model(answers: dict[Path, Shares], desk: Path) -> None:
    ask = Printed(block("AutoPeftModel", "softmax"))
    for path, expected in answers.items():
        ask(path)
        labels, scores = ask.names["model"].class_names, ask.names["scores"].tolist()
        assert_same(dict(zip(labels, scores, strict=True)), expected, path)


def test_images_that_are_open_already(adapter: Path, answers: dict[Path, Shares]) -> None:
    model, processor = AutoPeftModel.from_pretrained(adapter), CLIPProcessor.from_pretrained(adapter)
    for path, found in zip(answers, predict(model, map(Image.open, answers), processor, top_k=9), strict=True):
        assert_same(dict(found.ranking), answers[path], path)


def test_the_pipeline_of_fixed_classes(
    answers: dict[Path, Shares], desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = Printed(block('pipeline("image-classification"', "photo.jpg"))
    for path, expected in answers.items():
        capsys.readouterr()
        ask(path)
        found = ast.literal_eval(capsys.readouterr().out)
        assert_same({row["label"]: row["score"] for row in found}, expected, path)


@pytest.mark.parametrize("way", ['model="my-adapter"', "model=AutoPeftModel"])
def test_the_pipelines_of_other_classes(way: str, adapter: Path, answers: dict[Path, Shares], desk: Path) -> None:
    """Their scores are those of the class logits, of the pixels that `predict` sees."""
    ask = Printed(block('"zero-shot-image-classification"', way))
    model = AutoPeftModel.from_pretrained(adapter).eval()
    transform = ClipTransform(CLIPProcessor.from_pretrained(adapter))
    model.set_classes(["hamster", "parrot"], "a photo of a {}.")
    for path in answers:
        pixels = transform({"image": [RGBImage().decode_example({"path": str(path), "bytes": None})]})["pixel_values"]
        with torch.no_grad():
            expected = model(pixel_values=pixels).logits_class.softmax(dim=-1)[0].tolist()
        found = ask(path)
        for rows in found if isinstance(found[0], list) else [found]:
            shares = {row["label"]: row["score"] for row in rows}
            assert_same(shares, dict(zip(model.class_names, expected, strict=True)), path)


@pytest.mark.slow
def test_onnx(adapter: Path, answers: dict[Path, Shares], desk: Path) -> None:
    model, processor = AutoPeftModel.from_pretrained(adapter), CLIPProcessor.from_pretrained(adapter)
    export_onnx(model, processor, "model.onnx")
    serve: dict[str, Any] = {"__name__": "serve"}
    exec(block("# serve.py"), serve)
    session, metadata = serve["load"]("model.onnx")
    for path, expected in answers.items():
        pixels = serve["read_pixels"](path, metadata["preprocessing"])
        (logits,) = session.run(["logits"], {"pixel_values": pixels[None]})
        shares = torch.tensor(logits[0]).softmax(dim=0).tolist()
        assert_same(dict(zip(metadata["class_names"], shares, strict=True)), expected, path)
