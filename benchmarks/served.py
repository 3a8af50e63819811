"""What serves an adapted model: images per second, size, and accuracy of ONNX files and of PyTorch's own forms.

    PYTHONPATH=examples/digits python benchmarks/served.py [--batch 16] [--classes 100] [--steps 5] [--no-compile]

Speed and size are of ViT-B/16 with random weights: PyTorch in float32 and with bfloat16 weights, the image side
exported by torch.export and compiled by Inductor, and ONNX Runtime with the exported file, in float32, with float16
weights, and with weights of 8 bits, as onnxruntime's own tools make them. Class features are cached everywhere. The
ways take turns within one process. Accuracy is of the tiny CLIP of `examples/embedded`, adapted to ten handwritten
digits with 16 images each, on 720 test images. Prints two tables and writes served.json.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from adaptation import Settings, adapt, to_pixels
from anprompt_peft.fast import set_precision
from anprompt_peft.serve import export_onnx
from anprompt_peft.serve.onnx import ImageSide
from anprompt_peft.tuner import adapted_clip
from handwriting import load_split
from measuring import Setting, interleave, parser_for, positive, ratios, read_setting, spread
from reporting import run, table, with_range
from rounding import TINY_CLIP, configuration, shots_of
from workload import make_adapted, make_workload

TORCH, BFLOAT16, EXPORTED, COMPILED = "PyTorch, float32", "PyTorch, bfloat16 weights", "torch.export", "torch.compile"
FLOAT32, FLOAT16, INT8 = "ONNX, float32", "ONNX, float16", "ONNX, int8"
SPEED_COLUMNS = ["way", "images/s", "to PyTorch in float32", "MB"]
ACCURACY_COLUMNS = ["way", "accuracy, %", "same answers, %", "largest difference of a logit", "MB"]
NAMES = ("speed", "accuracy")


def main(arguments: list[str] | None = None) -> None:
    """Measure speed, then accuracy, in this process."""
    options, setting = parse(arguments)
    jobs = [partial(speed, options, setting), accuracy]
    run("served", options, setting, jobs, lambda job: job(), report, lambda rows: dict(zip(NAMES, rows, strict=True)))


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, Setting]:
    """Read the command line."""
    parser = parser_for("served", __doc__, dtype="float32", device="cpu")
    parser.add_argument("--batch", type=positive, default=16)
    parser.add_argument("--classes", type=positive, default=100)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes a minute")
    options = parser.parse_args(arguments)
    return options, read_setting(parser, options)


def speed(options: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """Time all ways in turn."""
    work = make_workload(options.classes, options.batch)
    model = make_adapted(work, random_targets=True).eval()
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(model, CLIPImageProcessorPil(), Path(folder))
        megabytes = sizes(files)
        ways = answers_of(model, files, setting.threads)
        side = ImageSide(copy.deepcopy(adapted_clip(model)), None)
        exported = torch.export.export(side, (work.pixels,)).module()
        ways[EXPORTED] = partial(_by_side, exported)
        if not options.no_compile:
            ways[COMPILED] = partial(_by_side, torch.compile(side))
        seconds = interleave({way: partial(answer, work.pixels) for way, answer in ways.items()}, setting, "rounds")
    return {
        "images_per_second": {way: spread(options.batch / each for each in taken) for way, taken in seconds.items()},
        "to_torch": {way: ratios(seconds[TORCH], taken) for way, taken in seconds.items()},
        "megabytes": megabytes,
    }


def accuracy() -> dict[str, Any]:
    """Adapt the tiny CLIP to digits, and compare the answers of all ways."""
    clip, processor = CLIPModel.from_pretrained(TINY_CLIP), CLIPProcessor.from_pretrained(TINY_CLIP)
    model, _ = adapt(clip, configuration(), *shots_of(processor, seed=1), Settings(), seed=1)
    tests, labels = load_split("test")
    seen = to_pixels(processor, tests)
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(model, processor, Path(folder))
        megabytes = sizes(files)
        logits = {way: answer(seen) for way, answer in answers_of(model, files, threads=1).items()}
    found = {way: each.argmax(dim=1) for way, each in logits.items()}
    return {
        "images": len(tests),
        "accuracy": {way: _percent(each.numpy() == labels) for way, each in found.items()},
        "same_answers": {way: _percent((each == found[TORCH]).numpy()) for way, each in found.items()},
        "largest_difference": {way: float((each - logits[TORCH]).abs().max()) for way, each in logits.items()},
        "megabytes": megabytes,
    }


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


def sizes(files: dict[str, Path]) -> dict[str, float]:
    """Megabytes of files."""
    return {way: file.stat().st_size / 1e6 for way, file in files.items()}


def report(record: dict[str, Any]) -> str:
    """The tables."""
    rates, answers = record["speed"], record["accuracy"]
    fast = [
        [way, with_range(rate, ".1f"), with_range(rates["to_torch"][way]), _size(rates, way)]
        for way, rate in rates["images_per_second"].items()
    ]
    right = [
        [
            way,
            f"{share:.1f}",
            f"{answers['same_answers'][way]:.1f}",
            f"{answers['largest_difference'][way]:.2g}",
            _size(answers, way),
        ]
        for way, share in answers["accuracy"].items()
    ]
    return f"{table(SPEED_COLUMNS, fast)}\n\n{table(ACCURACY_COLUMNS, right)}"


@torch.no_grad()
def _by_side(side: Any, pixels: Tensor) -> Tensor:
    return side(pixels)[0]


def _by_onnx(session: Any, pixels: Tensor) -> Tensor:
    (logits,) = session.run(["logits"], {"pixel_values": pixels.numpy()})
    return torch.from_numpy(logits)


def _percent(right: np.ndarray) -> float:
    return 100 * float(right.mean())


def _size(measured: dict[str, Any], way: str) -> str:
    return f"{measured['megabytes'][way]:.1f}" if way in measured["megabytes"] else ""


if __name__ == "__main__":
    main()
