"""Images per second from JPEG files: `predict`, the same one after the other, and CLIP on pixels that are ready.

    python benchmarks/predict.py [--images 64] [--batch 16] [--classes 100] [--steps 5]

ViT-B/16 with random weights, in float32, on the GPU if there is one; files of 500 x 375 pixels, made from a seed and
in the page cache. The ways take turns within one process and classify all files each time; medians count, after a
round that does not. Prints a table and writes predict.json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import CLIPImageProcessorPil, CLIPModel

from anprompt_peft.data import ClipTransform, RGBImage
from anprompt_peft.data.images import IMAGE
from anprompt_peft.serve import predict
from measuring import Setting, interleave, parser_for, positive, ratios, read_setting, spread
from reporting import run, table, with_range
from workload import make_adapted, make_clip, make_workload

COLUMNS = ["way", "images/s", "to one after the other", "to CLIP"]
SIZE = (500, 375)
PREDICT, SERIAL, READY = "predict", "one after the other", "CLIP, pixels ready"


def main(arguments: list[str] | None = None) -> None:
    """Measure all ways in this process."""
    options, setting = parse(arguments)
    size = options.images, options.batch, options.classes
    run("predict", options, setting, [size], lambda _: measure(*size, setting), report, lambda rows: rows[0])


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, Setting]:
    """Read the command line."""
    parser = parser_for("predict", __doc__, dtype="float32")
    parser.add_argument("--images", type=positive, default=64)
    parser.add_argument("--batch", type=positive, default=16)
    parser.add_argument("--classes", type=positive, default=100)
    options = parser.parse_args(arguments)
    return options, read_setting(parser, options)


def measure(images: int, batch: int, classes: int, setting: Setting) -> dict[str, Any]:
    """Time all ways in turn."""
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), images)
        size = statistics.mean(Path(file).stat().st_size for file in files)
        seconds = interleave(make_ways(files, batch, classes, setting.device), setting, "rounds")
    return {
        "images": images,
        "batch": batch,
        "classes": classes,
        "images_per_second": {way: spread(images / each for each in taken) for way, taken in seconds.items()},
        "ratio_to_serial": {way: ratios(seconds[SERIAL], taken) for way, taken in seconds.items()},
        "ratio_to_clip": {way: ratios(seconds[READY], taken) for way, taken in seconds.items()},
        "all_seconds": seconds,
        "mean_file_bytes": size,
    }


def make_files(folder: Path, count: int) -> list[str]:
    """JPEG files of smooth colours with some noise, so that they are about as large as photographs."""
    rng = np.random.default_rng(0)
    files = [str(folder / f"{number:05}.jpg") for number in range(count)]
    for file in tqdm(files, desc="making files", unit="image"):
        colours = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(SIZE)
        noisy = np.asarray(colours) + rng.normal(0, 12, (SIZE[1], SIZE[0], 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=90)
    return files


def make_ways(files: list[str], batch: int, classes: int, device: str) -> dict[str, Callable[[], None]]:
    """What is compared; each call takes all files once and ends when the results are on the host."""
    adapted: Any = make_adapted(make_workload(classes, 1)).eval().to(device)
    clip: CLIPModel = make_clip().to(device)
    processor = CLIPImageProcessorPil()
    transform = ClipTransform(processor)
    batches = [files[start : start + batch] for start in range(0, len(files), batch)]
    ready = [decode(transform, paths).to(device) for paths in batches]

    def overlapped() -> None:
        for _ in predict(adapted, files, processor, batch_size=batch):
            pass

    @torch.no_grad()
    def serial() -> None:
        for paths in batches:
            logits = adapted(pixel_values=decode(transform, paths).to(device)).logits
            logits.softmax(dim=-1).max(dim=-1).indices.tolist()

    @torch.no_grad()
    def encode() -> None:
        for pixels in ready:
            clip.get_image_features(pixels).pooler_output.cpu()

    return {PREDICT: overlapped, SERIAL: serial, READY: encode}


def decode(transform: ClipTransform, paths: list[str]) -> torch.Tensor:
    """Pixel values of image files: float32 [n, 3, H, W]."""
    images = [RGBImage().decode_example({"path": path, "bytes": None}) for path in paths]
    return transform({IMAGE: images})["pixel_values"]


def report(record: dict[str, Any]) -> str:
    """The table."""
    rows = [
        [
            way,
            with_range(rate, ".1f"),
            with_range(record["ratio_to_serial"][way]),
            with_range(record["ratio_to_clip"][way]),
        ]
        for way, rate in record["images_per_second"].items()
    ]
    return table(COLUMNS, rows)


if __name__ == "__main__":
    main()
