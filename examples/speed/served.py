"""What serves an adapted model: images per second, size, and accuracy of ONNX files and of PyTorch's own forms.

    python examples/speed/served.py [--batch 16] [--classes 100] [--steps 5] [--no-compile]

Speed and size are of ViT-B/16 with random weights: PyTorch in float32 and with bfloat16 weights, the image side
exported by torch.export and compiled by Inductor, and ONNX Runtime with the exported file, in float32, with float16
weights, and with weights of 8 bits, as onnxruntime's own tools make them; beside them zero-shot CLIP. Class features
are cached everywhere. The ways take turns within one process. Accuracy is of the tiny CLIP of `examples/embedded`,
adapted to ten handwritten digits with 16 images each, on 720 test images. Prints two tables and writes served.json.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from anprompt_peft.evaluation.backbone import Backbone
from anprompt_peft.evaluation.benchmarks import load_benchmark_data
from anprompt_peft.evaluation.peers import make_method
from anprompt_peft.evaluation.protocols import make_task
from anprompt_peft.extras import extra
from anprompt_peft.fast import set_precision
from anprompt_peft.serve import export_onnx
from anprompt_peft.serve.onnx import ImageSide
from anprompt_peft.tuner import adapted_clip
from fresh import Row
from harness import Setting, interleave, parser_for, positive, ratios, read_setting, run, spread
from workload import make_adapted, make_clip, make_workload

with extra("onnx"):
    import onnx
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.transformers.float16 import convert_float_to_float16

EMBEDDED = Path(__file__).resolve().parents[1] / "embedded"
SHOTS = 16
CLIP = "zero-shot CLIP"
TORCH, BFLOAT16, EXPORTED, COMPILED = "PyTorch, float32", "PyTorch, bfloat16 weights", "torch.export", "torch.compile"
FLOAT32, FLOAT16, INT8 = "ONNX, float32", "ONNX, float16", "ONNX, int8"


def main(arguments: list[str] | None = None) -> None:
    """Measure speed, then accuracy, in this process."""
    options, setting = parse(arguments)
    jobs: dict[str, Callable[[], list[Row]]] = {"speed": partial(speed, options, setting), "accuracy": accuracy}
    run("served", options, setting, jobs, lambda name: jobs[name]())


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, Setting]:
    """Read the command line."""
    parser = parser_for("served", __doc__, dtype="float32", device="cpu", block=1)
    parser.add_argument("--batch", type=positive, default=16)
    parser.add_argument("--classes", type=positive, default=100)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes a minute")
    options = parser.parse_args(arguments)
    return options, read_setting(parser, options)


@torch.no_grad()
def speed(options: argparse.Namespace, setting: Setting) -> list[Row]:
    """Time all ways in turn."""
    work = make_workload(options.classes, options.batch)
    model = make_adapted(work, random_targets=True).eval()
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(model, CLIPImageProcessorPil(), Path(folder))
        ways = answers_of(model, files, setting.threads)
        side = ImageSide(copy.deepcopy(adapted_clip(model)), None)
        ways[EXPORTED] = partial(_by_side, torch.export.export(side, (work.pixels,)).module())
        ways[CLIP] = partial(_by_clip, make_clip(), torch.randn(512, options.classes))
        if not options.no_compile:
            ways[COMPILED] = partial(_by_side, torch.compile(side))
        seconds = interleave({way: partial(answer, work.pixels) for way, answer in ways.items()}, setting, "rounds")
        return [
            {
                "way": way,
                "images/s": spread(options.batch / each for each in taken),
                f"to {TORCH}": ratios(seconds[TORCH], taken),
                "MB": _megabytes(files, way),
            }
            for way, taken in seconds.items()
        ]


def accuracy() -> list[Row]:
    """Adapt the tiny CLIP to digits, and compare the answers of all ways."""
    sys.path.append(str(EMBEDDED))
    clip, processor = (kind.from_pretrained(EMBEDDED / "tiny_clip") for kind in (CLIPModel, CLIPProcessor))
    task = make_task(load_benchmark_data("data:digits"), processor, "few-shot", SHOTS, seed=1)
    method = make_method("anprompt", recipe={"augment": False})
    fitted: Any = method.fit(Backbone(clip, processor), task.shots, task.classes, seed=1)
    model, tests = fitted.model, task.parts[0].images
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(model, processor, Path(folder))
        logits = {way: answer(tests.pixels()) for way, answer in answers_of(model, files, threads=1).items()}
        found = {way: each.argmax(dim=1) for way, each in logits.items()}
        return [
            {
                "way": way,
                "accuracy, %": _percent(found[way] == tests.labels),
                "same answers, %": _percent(found[way] == found[TORCH]),
                "largest difference of a logit": float((each - logits[TORCH]).abs().max()),
                "MB": _megabytes(files, way),
            }
            for way, each in logits.items()
        ]


def write_files(model: Any, processor: Any, folder: Path) -> dict[str, Path]:
    """Export the model, and convert the file with onnxruntime's tools."""
    files = {FLOAT32: folder / "model.onnx", FLOAT16: folder / "float16.onnx", INT8: folder / "int8.onnx"}
    export_onnx(model, processor, files[FLOAT32])
    onnx.save(convert_float_to_float16(onnx.load(files[FLOAT32]), keep_io_types=True), files[FLOAT16])
    quantize_dynamic(files[FLOAT32], files[INT8])
    return files


def answers_of(model: Any, files: dict[str, Path], threads: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """From pixels to logits by PyTorch and by ONNX Runtime; float32 on both ends."""
    half = copy.deepcopy(model)
    set_precision(half, "bf16")

    @torch.no_grad()
    def by_torch(adapted: Any, pixels: Tensor) -> Tensor:
        return adapted(pixel_values=pixels).logits

    ways: dict[str, Callable[[Tensor], Tensor]] = {TORCH: partial(by_torch, model), BFLOAT16: partial(by_torch, half)}
    for way, file in files.items():
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        ways[way] = partial(_by_onnx, onnxruntime.InferenceSession(file, settings))
    return ways


@torch.no_grad()
def _by_side(side: Any, pixels: Tensor) -> Tensor:
    return side(pixels)[0]


def _by_onnx(session: Any, pixels: Tensor) -> Tensor:
    (logits,) = session.run(["logits"], {"pixel_values": pixels.numpy()})
    return torch.from_numpy(logits)


@torch.no_grad()
def _by_clip(clip: CLIPModel, texts: Tensor, pixels: Tensor) -> Tensor:
    return clip.get_image_features(pixels).pooler_output @ texts


def _percent(right: Tensor) -> float:
    return 100 * float(right.double().mean())


def _megabytes(files: dict[str, Path], way: str) -> float | None:
    return files[way].stat().st_size / 1e6 if way in files else None


if __name__ == "__main__":
    main()
