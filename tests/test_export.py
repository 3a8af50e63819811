"""The ONNX file against the model it came from, and served without PyTorch as docs/serving.md says."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.image_utils import load_image

from anprompt_peft import ANPromptConfig
from anprompt_peft.method.config import LogitsKind
from anprompt_peft.serve import export_onnx, predict
from anprompt_peft.serve import onnx as export
from conftest import IMAGE_SIZE
from helpers import CLASSES, adapted, make_clip, make_config, make_model, needs_add_adapter, scatter
from peers import processor_of
from tokenization import train_tokenizer

onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "serving.md"
CROP = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
UNSEEN = ["red bird", "one fish"]
VISION_LAYERS = 5


@pytest.fixture(scope="module")
def processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=CROP)


def run(path: Path, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and image features from ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    logits, embeds = session.run(["logits", "image_embeds"], {"pixel_values": pixels.numpy()})
    return torch.from_numpy(logits), torch.from_numpy(embeds)


def metadata(path: Path) -> dict[str, Any]:
    record = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    return {name: json.loads(value) for name, value in record.items()}


@torch.no_grad()
def assert_parity(path: Path, model: Any, logits: str, side: int = IMAGE_SIZE) -> float:
    """Compare with the model at several batch sizes and return the largest difference of logits."""
    largest = 0.0
    for batch in (1, 3, 8):
        pixels = torch.randn(batch, 3, side, side)
        output = model(pixel_values=pixels)
        ours, embeds = run(path, pixels)
        torch.testing.assert_close(ours, output[f"logits_{logits}"], rtol=0, atol=1e-5)
        torch.testing.assert_close(embeds, output.image_embeds, rtol=0, atol=1e-5)
        largest = max(largest, float((ours - output[f"logits_{logits}"]).abs().max()))
    return largest


def weight_bytes(path: Path) -> int:
    return sum(onnx.numpy_helper.to_array(weight).nbytes for weight in onnx.load(path).graph.initializer)


def layer_norms(path: Path) -> int:
    return sum(node.op_type == "LayerNormalization" for node in onnx.load(path).graph.node)


def shape(value: Any) -> list[str | int]:
    return [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """Check that nothing of a model is another object, or has another value or dtype, when the block ends."""
    clip = model.get_base_model()
    with torch.no_grad():
        text = model.encode_classes()
    before = (model.training, clip.training, model.active_adapters, model.class_names, dict(vars(clip)))
    tensors = model.state_dict(keep_vars=True)
    state = {name: (tensor, tensor.clone(), tensor.dtype, tensor.grad) for name, tensor in tensors.items()}
    yield
    assert (model.training, clip.training, model.active_adapters, model.class_names, dict(vars(clip))) == before
    assert set(model.state_dict()) == set(state)
    for name, tensor in model.state_dict(keep_vars=True).items():
        same, value, dtype, gradient = state[name]
        assert tensor is same
        assert torch.equal(tensor, value)
        assert tensor.dtype == dtype
        assert tensor.grad is gradient
    with torch.no_grad():
        assert model.encode_classes() is text


def test_default(clip: CLIPModel, processor: Any, tmp_path: Path) -> None:
    """Fused logits for trained classes; one pass through the image encoder, and no weights but those it needs."""
    model = adapted(clip)
    model.add_adapter("unused", make_config())
    path = tmp_path / "new folder" / "model.onnx"
    export_onnx(model, processor, path)
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(path, full_check=True)
    assert_parity(path, model, "fused")
    graph = onnx.load(path).graph
    assert {each.name: shape(each) for each in (*graph.input, *graph.output)} == {
        "pixel_values": ["batch", 3, IMAGE_SIZE, IMAGE_SIZE],
        "logits": ["batch", 3],
        "image_embeds": ["batch", clip.config.projection_dim],
    }
    assert layer_norms(path) == 2 * VISION_LAYERS + 3, "no second pass for the teacher"
    head: Any = clip.visual_projection
    needed = (clip.vision_model, head.base_layer, head.anprompt_prototype["default"])
    needed_bytes = sum(4 * weight.numel() for module in needed for weight in module.parameters())
    text_bytes = sum(4 * weight.numel() for weight in clip.text_model.parameters())
    assert weight_bytes(path) < needed_bytes + 0.05 * text_bytes
    assert not any(word in weight.name for weight in graph.initializer for word in ("text_model", "unused"))
    content = path.read_bytes()
    assert not any(str(folder).encode() in content for folder in (ROOT, tmp_path, Path(torch.__file__).parent))


VARIANTS: dict[str, tuple[str, LogitsKind, int, dict[str, Any]]] = {
    "updates": (
        "sdpa",
        "ensemble",
        20,
        {"num_virtual_tokens": 0, "num_noise_tokens": 0, "vision_lora_rank": 2, "inference_logits": "ensemble"},
    ),
    "updates, eager": ("eager", "fused", 18, {"vision_lora_rank": 2}),
    "mixing": ("eager", "fused", 18, {"prompt_mixing": 0.3, "vision_layers": [2, 3, 5]}),
    "low rank": (
        "sdpa",
        "prototype",
        24,
        {"projection_rank": 2, "text_update_rank": 2, "prototype_rank": 3, "latent_dim": 10},
    ),
}


@pytest.mark.parametrize(
    "variant",
    ["updates", "low rank", *(pytest.param(name, marks=pytest.mark.slow) for name in ("updates, eager", "mixing"))],
)
def test_variants(variant: str, processor: Any, tmp_path: Path) -> None:
    attention, logits, opset, settings = VARIANTS[variant]
    model = adapted(make_clip(attention), **settings)
    path = tmp_path / "model.onnx"
    export_onnx(model, processor, path, logits=logits, opset=opset)
    assert_parity(path, model, logits)
    assert metadata(path)["logits"] == logits
    assert {each.domain: each.version for each in onnx.load(path).opset_import} == {"": opset}


@pytest.mark.slow
@needs_add_adapter
def test_asked_classes_in_the_metadata(clip: CLIPModel, processor: Any, tmp_path: Path) -> None:
    """Unseen classes and an ensemble of templates, on a model that transformers' `add_adapter` made."""
    clip.add_adapter(make_config(latent_dim=40, noise_map="learned", vision_layers=[4]))
    model: Any = scatter(clip)
    model.set_classes(UNSEEN, template=["a photo of a {}.", "the drawing of one {}."])
    model.name_or_path = "someone/their-clip"
    path = tmp_path / "model.onnx"
    export_onnx(model, processor, path)
    assert_parity(path, model, "ensemble")
    assert layer_norms(path) > 2 * VISION_LAYERS + 2, "the frozen encoder too"
    record = metadata(path)
    assert set(record.pop("versions")) >= {"torch", "transformers", "peft", "anprompt-peft", "onnx", "onnxscript"}
    assert record == {
        "class_names": UNSEEN,
        "templates": ["a photo of a {}.", "the drawing of one {}."],
        "logits": "ensemble",
        "classifier_weight": 0.0,
        "preprocessing": {
            "size": {"shortest_edge": IMAGE_SIZE},
            "resample": Image.Resampling.BICUBIC,
            "crop_size": CROP,
            "rescale_factor": 1 / 255,
            "image_mean": list(processor.image_mean),
            "image_std": list(processor.image_std),
        },
        "base_model": "someone/their-clip",
    }


@pytest.mark.slow
def test_half_precision_in_training(processor: Any, tmp_path: Path) -> None:
    """The file holds the same weights in float32, in evaluation mode; the model stays as it is."""
    model = adapted(dtype=torch.bfloat16).train()
    pixels = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.bfloat16)
    model(pixel_values=pixels, labels=torch.tensor([0, 1])).loss.backward()
    with unchanged(model):
        export_onnx(model, processor, tmp_path / "model.onnx")
    assert_parity(tmp_path / "model.onnx", model.float().eval(), "fused")


@pytest.mark.slow
def test_without_prompts_it_is_clip(tokenizer: CLIPTokenizer, processor: Any, tmp_path: Path) -> None:
    model = adapted(num_virtual_tokens=0, num_noise_tokens=0, text_update_rank=None)
    export_onnx(model, processor, tmp_path / "model.onnx")
    assert metadata(tmp_path / "model.onnx")["logits"] == "class"
    texts = tokenizer([f"a photo of a {name}." for name in CLASSES], padding=True, return_tensors="pt")
    pixels = torch.randn(3, 3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        expected = make_clip()(**texts, pixel_values=pixels).logits_per_image
    torch.testing.assert_close(run(tmp_path / "model.onnx", pixels)[0], expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_exports_are_the_same_bytes(processor: Any, tmp_path: Path) -> None:
    model = adapted()
    for name in ("one.onnx", "two.onnx"):
        export_onnx(model, processor, tmp_path / name)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


REFUSED: dict[str, tuple[Callable[[Any], dict[str, Any]], type[Exception], str]] = {
    "plain CLIP": (lambda model: {"model": model.unload()}, TypeError, "an ANPrompt adapter, not CLIPModel"),
    "logits": (
        lambda _: {"logits": "best"},
        ValueError,
        r"'best' is not .*\['fused', 'class', 'prototype', 'ensemble'\]",
    ),
    "logits of no prompts": (
        lambda model: {"model": model.base_model.disable_adapter_layers() or model, "logits": "prototype"},
        ValueError,
        r"logits='prototype' is not one of those the model has: \['fused', 'class'\]",
    ),
    "opset": (lambda _: {"opset": 17}, ValueError, "opset=17 must lie between 18 and 24"),
}
PROCESSORS: list[tuple[dict[str, Any], str]] = [
    ({"crop_size": {"height": 32, "width": 32}}, r"makes pixels \[3, 32, 32\], but the model takes \[3, 16, 16\]"),
    ({"do_center_crop": False}, r"makes pixels \[3, 16, 32\]"),
    ({"do_rescale": False}, "'do_rescale': False"),
    ({"size": {"shortest_edge": 10**6}}, "size={'shortest_edge': 1000000} must have whole numbers from 1 to 4096"),
    ({"image_std": [0.0, 1.0, 1.0]}, "image_std=.* must be 3 finite numbers above 0"),
    ({"size": {"shortest_edge": 16, "longest_edge": 20}}, "size=.*'longest_edge': 20"),
]


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, processor: Any, tmp_path: Path) -> None:
    change, error, message = REFUSED[case]
    arguments = {"model": adapted(), "processor": processor, "path": tmp_path / "model.onnx"}
    with pytest.raises(error, match=message):
        export_onnx(**arguments | change(arguments["model"]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("settings", "message"), PROCESSORS)
def test_refused_processors(settings: dict[str, Any], message: str, processor: Any, tmp_path: Path) -> None:
    other = CLIPImageProcessorPil(**{**processor.to_dict(), **settings})
    with pytest.raises(ValueError, match=message):
        export_onnx(adapted(), other, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_refused_for_want_of_room_packages_or_a_file_name(
    processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        export_onnx(model, processor, tmp_path)
    monkeypatch.setattr(export, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="one ONNX file holds at most 1,000"):
        export_onnx(model, processor, tmp_path / "model.onnx")
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else "there")
    with pytest.raises(ImportError, match=r"needs onnxscript, .* pip install 'anprompt-peft\[onnx\]'"):
        export_onnx(model, processor, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_the_old_file(
    processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_the_disk(path: Path) -> None:
        path.write_text("half")
        raise OSError("No space left on device")

    path = tmp_path / "model.onnx"
    path.write_text("old")
    program = SimpleNamespace(model=SimpleNamespace(metadata_props={}), save=fill_the_disk)
    monkeypatch.setattr(export, "_to_onnx", lambda *_: program)
    with pytest.raises(OSError, match="No space left"):
        export_onnx(adapted(), processor, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def blocks() -> tuple[list[str], str]:
    """The page's Python blocks but serve.py, and serve.py."""
    found = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    (serve,) = (block for block in found if block.startswith("# serve.py\n"))
    return [block for block in found if block != serve], serve


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The page's serve.py as a module."""
    path = tmp_path_factory.mktemp("page") / "serve.py"
    path.write_text(blocks()[1])
    spec = importlib.util.spec_from_file_location("serve", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    return Image.fromarray(noise, "RGBA").convert(mode)


SIZES: dict[str, dict[str, Any]] = {
    "CLIP": {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}},
    "resized more than cropped": {"size": {"shortest_edge": 41}, "crop_size": {"height": 32, "width": 37}},
    "cropped beyond the edge": {"size": {"shortest_edge": 21}, "crop_size": {"height": 32, "width": 37}},
    "squeezed": {"size": {"height": 24, "width": 35}, "do_center_crop": False, "resample": Image.Resampling.BILINEAR},
}


@pytest.mark.parametrize("sizes", SIZES)
def test_the_pages_pixels_are_the_processors(sizes: str, serve: ModuleType, tmp_path: Path) -> None:
    processor = CLIPImageProcessorPil(**SIZES[sizes])
    rotated = Image.Exif()
    rotated[0x0112] = 6
    picture(50, 31).save(tmp_path / "rotated.jpg", exif=rotated)
    for mode, shape in (("RGB", (97, 60)), ("RGB", (33, 301)), ("L", (16, 16)), ("P", (20, 31)), ("RGBA", (40, 23))):
        picture(*shape, mode=mode).save(tmp_path / f"{mode}-{shape[0]}.png")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 6
    for file in files:
        expected = processor(images=load_image(str(file)), return_tensors="np")["pixel_values"][0]
        settings = export.preprocessing(processor, expected.shape)
        pixels = serve.read_pixels(file, json.loads(json.dumps(settings)))
        assert pixels.dtype == np.float32
        assert np.array_equal(pixels, expected), file.name


@pytest.mark.parametrize("family", ["metaclip_2", "siglip"])
def test_models_of_other_families(family: str, serve: ModuleType, tmp_path: Path) -> None:
    model, processor, path = adapted(make_model(family)), processor_of(family), tmp_path / "model.onnx"
    with unchanged(model):
        export_onnx(model, processor, path)
    assert_parity(path, model, "fused")
    words = model.text_model.embeddings.token_embedding.weight
    assert list(words.shape) not in [list(weight.dims) for weight in onnx.load(path).graph.initializer]
    picture(50, 31).save(tmp_path / "photo.png")
    expected = processor(images=load_image(str(tmp_path / "photo.png")), return_tensors="np")["pixel_values"][0]
    assert np.array_equal(serve.read_pixels(tmp_path / "photo.png", metadata(path)["preprocessing"]), expected)
    (predicted,) = predict(model, [tmp_path / "photo.png"], processor)
    with torch.no_grad():
        likely = model(pixel_values=torch.from_numpy(expected)[None]).logits.softmax(dim=-1).max()
    assert predicted.ranking[0][1] == pytest.approx(float(likely), abs=1e-5)


@pytest.mark.slow  # test_docs.py runs the page, too
def test_the_page_runs_as_printed(clip_folder: Path, serve: ModuleType, tmp_path: Path) -> None:
    """Every block in order; then serve.py on the exported file where PyTorch and transformers cannot be imported."""
    clip = CLIPModel.from_pretrained(clip_folder)
    model: Any = scatter(get_peft_model(clip, ANPromptConfig(class_names=CLASSES)).eval())
    model.save_pretrained(tmp_path / "my-adapter")
    picture(40, 30).save(tmp_path / "photo.jpg")
    (tmp_path / "photos").mkdir()
    picture(40, 30).save(tmp_path / "photos" / "a.jpg")
    others, code = blocks()
    (tmp_path / "page.py").write_text("\n".join(others))
    ran = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, check=True, capture_output=True, text=True)
    lines = [line for line in ran.stdout.splitlines() if not line.startswith("Applied ")]  # onnxscript's, older torch
    *scores, predicted, classified = lines
    assert [line.split(":")[0] for line in scores] == CLASSES
    assert predicted.startswith("photos/a.jpg: ")
    assert {row["label"] for row in ast.literal_eval(classified)} == set(CLASSES)

    (tmp_path / "serve.py").write_text(code)
    bare = """
import runpy, sys
absent = ["torch", "transformers", "peft", "anprompt_peft"]
sys.modules.update(dict.fromkeys(absent))
runpy.run_path("serve.py", run_name="__main__")
assert not any(sys.modules[name] for name in absent)
"""
    command = [sys.executable, "-c", bare, "model.onnx", "photo.jpg", "photo.jpg"]
    served = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    model.set_classes(["hamster", "parrot"])
    pixels = CLIPProcessor.from_pretrained(clip_folder)(images=load_image(str(tmp_path / "photo.jpg")))["pixel_values"]
    with torch.no_grad():
        scores = model(pixel_values=torch.tensor(np.array(pixels))).logits.softmax(dim=-1)[0]
    ranking = {model.class_names[at]: float(100 * scores[at]) for at in scores.argsort(descending=True)}
    first, second = (re.findall(r"(\w+) (\d+\.\d)%", line) for line in served.stdout.splitlines())
    assert first == second
    assert [name for name, _ in first] == [*ranking]
    assert [float(share) for _, share in first] == pytest.approx([*ranking.values()], abs=0.051)


@pytest.mark.slow
def test_vit_b_16(tmp_path: Path) -> None:
    """Random weights at the released model's logit scale of 100; prints what docs/serving.md states."""
    tokenizer = train_tokenizer(["a photo of a cat."], merges=10, context=77)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = CLIPConfig(
        text_config={"vocab_size": len(tokenizer), **special},
        vision_config={"patch_size": 16},
        logit_scale_init_value=math.log(100),
    )
    model = scatter(
        get_peft_model(
            CLIPModel(config), ANPromptConfig(class_names=CLASSES, tokenizer_name_or_path=tokenizer)
        ).eval(),
        0.02,
    )
    path = tmp_path / "model.onnx"
    export_onnx(model, CLIPImageProcessorPil(), path)
    weights = sum(4 * weight.numel() for weight in model.get_base_model().vision_model.parameters())
    assert weights < path.stat().st_size < 1.02 * weights
    print(path.stat().st_size, assert_parity(path, model, "fused", side=224))
