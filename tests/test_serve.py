"""`anprompt serve` over the loopback: its answers, limits and refusals, its engines, its page, and how it ends."""

from __future__ import annotations

import io
import json
import signal
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
import torch
from peft import AutoPeftModel
from PIL import Image
from torch import Tensor
from transformers import CLIPModel

import chromium
from anprompt_cli.jobs import serve as job
from anprompt_peft.classifier import load_classifier, save_classifier
from anprompt_peft.evaluation.peers.zero_shot import FrozenCLIP
from anprompt_peft.serve import Graph, predict
from anprompt_peft.serve.graph import graph_path
from command import call, refused
from helpers import adapted
from peers import BACKBONE, BASE, PROCESSOR

uvicorn = pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

from anprompt_peft.serve.app import Limits, make_app  # noqa: E402 - it needs the extra

Files = list[tuple[str, str, bytes]]
ABOUT = {"adapter": "a <b>", "engine": "none"}
PATIENCE = 60.0
"""Seconds that an answer may take before a test fails."""


@pytest.fixture(scope="module")
def adapter(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that was not trained."""
    folder = tmp_path_factory.mktemp("serve") / "adapter"
    clip = CLIPModel.from_pretrained(clip_folder)
    adapted(clip, tokenizer_name_or_path=str(clip_folder)).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def classifier(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier as `anprompt compare --save` writes it."""
    folder = tmp_path_factory.mktemp("serve") / "classifier"
    folder.mkdir()
    save_classifier(FrozenCLIP(BACKBONE), folder, BASE.names, ["a photo of a {}."], str(clip_folder))
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.getbasetemp() / "assets"
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(folder))


def picture(seed: int, size: tuple[int, int] = (20, 16)) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def send(url: str, files: Files, **headers: str) -> tuple[int, str]:
    """POST files as a browser's form does; return status and text."""
    body = b"".join(
        b'--edge\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n\r\n%s\r\n'
        % (field.encode(), name.encode(), content)
        for field, name, content in files
    )
    headers = {"Content-Type": "multipart/form-data; boundary=edge", **headers}
    return ask(urllib.request.Request(url, body + b"--edge--\r\n", headers))


def ask(request: str | urllib.request.Request) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


@contextmanager
def serving(model: Any, limits: Limits | None = None, top_k: int = 2) -> Iterator[str]:
    """A server in a thread of this process; its address."""
    listener = job._listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(make_app(model, PROCESSOR, ABOUT, limits, top_k), log_level="error"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listener.close()
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def url(classifier: Path) -> Iterator[str]:
    """A server with low limits."""
    with serving(load_classifier(classifier), Limits(megabytes=1, images=2, megapixels=1)) as address:
        yield address


@pytest.mark.parametrize("kind", ["adapter", "classifier"])
def test_answers_are_those_of_predict(kind: str, adapter: Path, classifier: Path) -> None:
    model = load_classifier(classifier) if kind == "classifier" else adapted()
    contents = [picture(seed) for seed in range(3)]
    wanted = list(predict(model, [Image.open(io.BytesIO(each)) for each in contents], PROCESSOR, top_k=2))
    files = [("images", f"{at}.png", each) for at, each in enumerate(contents)]
    with serving(model) as url:
        status, text = send(f"{url}/batch", [*files, ("images", "text.png", b"no image")])
        assert status == 200
        *answers, broken = json.loads(text)["results"]
        assert broken == {"image": "text.png", "error": "text.png cannot be decoded: no known image format"}
        one = json.loads(send(f"{url}/predict", [("image", "0.png", contents[0])])[1])
        for at, answer, expected in zip((0, 1, 2, 0), [*answers, one], [*wanted, wanted[0]], strict=True):
            assert answer["image"] == f"{at}.png"
            found = [(each["class"], each["probability"]) for each in answer["predictions"]]
            assert found == [(name, pytest.approx(share, abs=1e-6)) for name, share in expected.ranking]
        assert json.loads(ask(f"{url}/health")[1]) == {
            "status": "ok", **ABOUT, "limits": {"megabytes": 20, "images": 32, "megapixels": 40, "seconds": 60},
        }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "files", "status", "message"),
    [
        ("/predict", [("image", "a.png", b"no image")], 400, "a.png cannot be decoded: no known image format"),
        ("/predict", [("image", "a.png", b"")], 400, "'a.png' is empty. Send an image file."),
        ("/predict", [("other", "a.png", b"x")], 400, "/predict needs one file in the form field image: curl -F"),
        ("/batch", [], 400, "/batch needs files in the form field images: curl -F"),
        ("/batch", [("images", "a.png", b"x")] * 3, 413, "3 images are too many. Send at most 2 (--max-images)."),
        ("/batch", [("images", "a.png", bytes(10**6))], 413, "1.0 MB are too much. Send at most 1 MB (--max-megabyte"),
        ("/predict", [("image", "a.png", picture(0, (2000, 501))[:900_000])], 400,
         "a.png has 1,002,000 pixels. Send at most 1 million (--max-megapixels)."),
        ("/none", [], 404, "POST /none: Not Found. There are POST /predict and /batch, GET /health."),
        ("/health", [], 405, "POST /health: Method Not Allowed."),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error(url: str, path: str, files: Files, status: int, message: str) -> None:
    found, text = send(url + path, files)
    assert (found, set(json.loads(text))) == (status, {"error"})
    assert json.loads(text)["error"].startswith(message)


def test_a_body_of_unknown_length_is_refused(url: str) -> None:
    request = urllib.request.Request(f"{url}/predict", iter([b"x"]), {"Content-Type": "image/png"})
    status, text = ask(request)
    assert (status, json.loads(text)["error"][:40]) == (411, "The request does not say how long it is.")


class Stuck(Graph):
    """A model that answers when it is allowed to."""

    def __init__(self) -> None:
        self.class_names = ("cat", "dog")
        self.allowed = threading.Event()

    def logits(self, pixels: Tensor) -> Tensor:
        assert self.allowed.wait(PATIENCE)
        return torch.zeros(len(pixels), 2)


def test_a_request_that_takes_too_long_is_told_so_and_others_are_answered() -> None:
    model = Stuck()
    with serving(model, Limits(seconds=1)) as url:
        status, text = send(f"{url}/predict", [("image", "a.png", picture(0))])
        assert (status, json.loads(text)["error"][:44]) == (503, "This took more than 1 s (--timeout). Send fe")
        assert ask(f"{url}/health")[0] == 200
        model.allowed.set()
        assert send(f"{url}/predict", [("image", "a.png", picture(0))])[0] == 200


def test_a_failure_is_told_without_its_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stuck, "logits", lambda self, pixels: 1 / 0)
    with serving(Stuck()) as url:
        status, text = send(f"{url}/predict", [("image", "a.png", picture(0))])
    assert (status, json.loads(text)) == (
        500,
        {"error": "The server failed with ZeroDivisionError. Its log says more."},
    )


# the command


@pytest.fixture
def apps(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command would have served."""
    served: list[Any] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: served.append(self.config.app))
    return served


def test_onnx_runtime_computes_on_a_cpu_and_its_graph_is_exported_once(
    adapter: Path, apps: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    arguments = ("serve", adapter, "--port", 0, "--device", "cpu")
    first = call(*arguments)
    told, path = first.err.strip().removesuffix(".").rsplit(" ", 1)
    assert told.endswith("Exporting the graph once, to"), first.err
    monkeypatch.setattr(job, "export_onnx", None)
    second = call(*arguments)
    assert [first.code, second.code, second.err, len(apps)] == [0, 0, "", 2], second.err
    assert second.out.startswith("Serving with ONNX Runtime at http://127.0.0.1:")
    model: Any = AutoPeftModel.from_pretrained(adapter)
    image = Image.open(io.BytesIO(picture(0)))
    (wanted,), (found,) = (list(predict(each, [image], PROCESSOR, top_k=9)) for each in (model, Graph(path)))
    assert found.ranking == [(name, pytest.approx(share, abs=1e-5)) for name, share in wanted.ranking]


def test_a_graph_is_cached_for_what_it_was_made_of() -> None:
    pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")
    model = adapted()
    paths = [graph_path(adapted(), PROCESSOR), graph_path(model, PROCESSOR)]
    model.set_classes(["dog", "red bird"])
    paths.append(graph_path(model, PROCESSOR))
    next(model.parameters()).data.add_(1)
    paths.append(graph_path(model, PROCESSOR))
    assert paths[0] == paths[1]
    assert len({*paths}) == 3


def test_other_cases_compute_with_pytorch(adapter: Path, classifier: Path, apps: list[Any]) -> None:
    why = {
        (adapter, "--engine", "torch"): "",
        (adapter, "--precision", "bf16"): "Computing with PyTorch: the graph is float32, and --precision bf16 was",
        (classifier,): "Computing with PyTorch: only ANPrompt adapters are exported (--engine).",
    }
    for arguments, reason in why.items():
        answer = call("serve", *arguments, "--port", 0, "--classes", "cat", "--classes", "dog")
        assert (answer.code, reason in answer.err) == (0, True), answer
        assert answer.out.startswith("Serving with PyTorch at http://127.0.0.1:")
    text = refused("serve", classifier, "--port", 0, "--engine", "onnx")
    assert text == "error: --engine onnx: only ANPrompt adapters are exported. Give --engine torch."


def test_wrong_options_are_refused(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with job._listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        text = refused("serve", adapter, "--port", port)
    assert f"Nothing can listen at --host 127.0.0.1 --port {port}: " in text
    assert "--port 0 for any that is free" in text
    assert "holds no adapter" in refused("serve", tmp_path, "--port", 0)
    both = refused("serve", adapter, "--classes", "cat", "--classes-file", adapter / "adapter_config.json")
    assert "--classes and --classes-file exclude each other" in both
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    missing = call("serve", adapter, "--port", 0)
    assert (missing.code, "pip install 'anprompt-peft[serve]'" in missing.err) == (1, True)


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """SIGINT, which is ignored where the tests run in the background, interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(number: int, classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main thread serves until another one, which has its answer, signals the process."""
    listener, statuses = job._listen("127.0.0.1", 0), []
    monkeypatch.setattr(job, "_listen", lambda host, port: listener)

    def use() -> None:
        statuses.append(send(f"http://127.0.0.1:{port}/predict", [("image", "a.png", picture(0))])[0])
        signal.raise_signal(number)

    port, client = listener.getsockname()[1], threading.Thread(target=use)
    client.start()
    answer = call("serve", classifier)
    client.join(PATIENCE)
    assert (statuses, answer.code, answer.err.splitlines()[-1]) == ([200], 128 + number, "interrupted")
    assert listener.fileno() == -1


# the page


def test_the_page_in_a_browser(url: str, tmp_path: Path) -> None:
    if chromium.BINARY is None:
        pytest.skip("neither chromium nor google-chrome is installed")
    (tmp_path / "<i>one.png").write_bytes(picture(0))
    (tmp_path / "text.png").write_text("no image")
    with chromium.browser() as page:
        for width, scheme in ((1280, "light"), (1280, "dark"), (400, "light")):
            page.show(width, scheme)
            page.open(f"{url}/")
            root = page.call("DOM.getDocument")["root"]["nodeId"]
            field = page.call("DOM.querySelector", nodeId=root, selector="input")["nodeId"]
            page.call("DOM.setFileInputFiles", nodeId=field, files=[*map(str, sorted(tmp_path.glob("*.png")))])
            page.follow("document.querySelector('button').click()")
            assert page.evaluate("[...document.querySelectorAll('h2')].map(each => each.innerText)") == [
                "<i>one.png", "text.png",
            ]  # fmt: skip
            assert page.evaluate("document.querySelectorAll('.bars tbody tr').length") == 2
            assert "no known image format" in page.evaluate("document.querySelector('section .note').innerText")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.complaints == []
        assert {address for address in page.requests if not address.startswith("data:")} == {f"{url}/"}


def test_the_page_says_what_is_wrong(url: str) -> None:
    for files, status, message in (
        ([], 400, "/ needs image files: choose at least one."),
        ([("images", "a", bytes(10**6))], 413, "1.0 MB are too much."),
    ):
        found, text = send(f"{url}/", files)
        assert (found, f'<p class="note" role="alert">{message}' in text) == (status, True), text
        assert "a &lt;b&gt;" in text
