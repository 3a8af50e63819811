"""The Gradio demo: what it computes, and the page over HTTP where gradio is installed (`pip install '.[demo]'`)."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel

from demo import Demo
from helpers import adapted


@pytest.fixture(scope="module")
def demo(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo") / "adapter"
    clip = CLIPModel.from_pretrained(clip_folder)
    adapted(clip, tokenizer_name_or_path=str(clip_folder)).save_pretrained(str(folder))
    return Demo(str(folder))


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.frombytes("RGB", (20, 16), random.Random(0).randbytes(20 * 16 * 3))


def expected(demo: Demo, image: Image.Image, names: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Both answers by the model's own forward."""
    inputs = demo.processor(images=[image], return_tensors="pt")
    demo.model.eval().set_classes(names)
    with torch.no_grad():
        ours = demo.model(**inputs).logits.softmax(dim=-1)[0]
        with demo.model.disable_adapter():
            zero_shot = demo.model(**inputs).logits.softmax(dim=-1)[0]
    return dict(zip(names, ours.tolist(), strict=True)), dict(zip(names, zero_shot.tolist(), strict=True))


@pytest.mark.parametrize("names", [["cat", "dog", "small fish"], ["dog", "red bird"]])
def test_both_answers(demo: Demo, image: Image.Image, names: list[str]) -> None:
    ours, zero_shot = demo.classify(image, ", ".join(names[:-1]) + "\n" + names[-1])
    wanted = expected(demo, image, names)
    assert ours == pytest.approx(wanted[0], abs=1e-5)
    assert zero_shot == pytest.approx(wanted[1], abs=1e-5)
    assert ours != pytest.approx(zero_shot, abs=1e-3)


def test_wrong_names_and_no_image_are_refused(demo: Demo, image: Image.Image) -> None:
    few = "too few class names"
    wrong = [(image, "cat", few), (image, " , \n", few), (image, "cat, cat", "cat"), (None, "cat, dog", "upload one")]
    for given, classes, message in wrong:
        with pytest.raises(ValueError, match=message):
            demo.classify(given, classes)


def test_a_file_is_opened_as_predict_opens_it(demo: Demo, image: Image.Image, tmp_path: Path) -> None:
    deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    wanted = expected(demo, image.convert("L").convert("RGB"), ["cat", "dog"])
    for answer, shares in zip(demo.classify(str(tmp_path / "deep.png"), "cat, dog"), wanted, strict=True):
        assert answer == pytest.approx(shares, abs=1e-5)


def test_gradio_is_missing(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs gradio, .* pip install 'anprompt-peft\[demo\]'"):
        demo.page()


def test_the_page_over_http(demo: Demo, image: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio")
    from gradio_client import Client, handle_file

    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    grey = image.convert("L")  # saved with 16 bits, which Gradio would clip to white
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / "image.png")
    page: Any = demo.page()
    _, url, shared = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, share=False)
    try:
        assert url.startswith("http://127.0.0.1:")
        assert not shared
        client = Client(url, verbose=False, httpx_kwargs={"trust_env": False})
        picture = handle_file(str(tmp_path / "image.png"))
        answers = client.predict(picture, "cat, dog", api_name="/classify")
        for answer, wanted in zip(answers, expected(demo, grey.convert("RGB"), ["cat", "dog"]), strict=True):
            shares = {each["label"]: each["confidence"] for each in answer["confidences"]}
            assert shares == pytest.approx(wanted, abs=1e-5)
            assert answer["label"] == max(shares, key=lambda name: shares[name])
        with pytest.raises(Exception, match="too few class names"):
            client.predict(picture, "cat", api_name="/classify")
    finally:
        page.close()
