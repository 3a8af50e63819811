"""Images per second from JPEG files: `predict`, the same one after the other, and CLIP on pixels that are ready.

    python benchmarks/predict.py [--images 64] [--batch 16] [--classes 100] [--rounds 5]

ViT-B/16 with random weights, in float32, on the GPU if there is one; files of 500 x 375 pixels, made from a seed and
in the page cache. The ways take turns within one process and classify all files each time; medians count, after a
round that does not. Prints a table and writes predict.json and predict.png.
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
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm
from transformers import CLIPImageProcessorPil, CLIPModel

from anprompt_peft.data import ClipTransform, RGBImage
from anprompt_peft.data.images import IMAGE
from anprompt_peft.files import to_json, whole_folder
from anprompt_peft.serve import predict
from measuring import Setting, interleave, positive, ratios, spread
from reporting import head, make_record, table, tidy, whiskers, with_range
from workload import make_adapted, make_clip, make_workload

RECORD = "predict.json"
COLUMNS = ["way", "images/s", "to one after the other", "to CLIP"]
SIZE = (500, 375)
PREDICT, SERIAL, READY = "predict", "one after the other", "CLIP, pixels ready"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write the record and the picture."""
    options = parse(arguments)
    setting = Setting(options.device, "float32", options.threads, options.rounds)
    setting.begin()
    with tempfile.TemporaryDirectory() as images:
        files = make_files(Path(images), options.images)
        size = statistics.mean(Path(file).stat().st_size for file in files)
        seconds = interleave(make_ways(files, options.batch, options.classes, options.device), setting, "rounds")
    record = make_record(
        setting,
        failures=[],
        images_per_second={way: spread(options.images / each for each in taken) for way, taken in seconds.items()},
        ratio_to_serial={way: ratios(seconds[SERIAL], taken) for way, taken in seconds.items()},
        ratio_to_clip={way: ratios(seconds[READY], taken) for way, taken in seconds.items()},
        all_seconds=seconds,
        mean_file_bytes=size,
        **{name: getattr(options, name) for name in ("images", "batch", "classes")},
    )
    with whole_folder(options.output, replaces=RECORD) as folder:
        (folder / RECORD).write_text(to_json(record))
        save_chart(folder / "predict.png", record["images_per_second"])
    print(report(record))
    print(f"\nWritten to {options.output}/: {RECORD}, predict.png")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, default=64)
    parser.add_argument("--batch", type=positive, default=16)
    parser.add_argument("--classes", type=positive, default=100)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="of PyTorch")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/predict"), help="folder to write")
    return parser.parse_args(arguments)


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
    return f"{head(record)}\n\n{table(COLUMNS, rows)}"


def save_chart(path: Path, rates: dict[str, dict[str, float]]) -> None:
    """Draw images per second, a bar for every way."""
    figure = Figure(figsize=(7, 2.2), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(rates), [rate["median"] for rate in rates.values()], xerr=whiskers(list(rates.values())))
    axes.bar_label(bars, fmt="%.3g", padding=12)
    axes.invert_yaxis()
    axes.set_xlabel("images per second")
    tidy(axes)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
