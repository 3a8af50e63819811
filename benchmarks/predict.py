"""Images per second from JPEG files: `predict`, the same one after the other, and CLIP on pixels that are ready.

    python benchmarks/predict.py [--images 64] [--batch 16] [--classes 100] [--rounds 5] [--output outputs/benchmarks]

ViT-B/16 with random weights, in float32, on the GPU if there is one; files of 500 x 375 pixels, made from a seed and
in the page cache. The ways take turns within one process and classify all files each time; medians count, after a
round that does not. Writes predict.json.
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

from anprompt_peft.images import IMAGE, RGBImage
from anprompt_peft.prediction import predict
from anprompt_peft.provenance import provenance, to_json, whole_file
from anprompt_peft.transform import ClipTransform
from measuring import Setting, interleave
from workload import make_adapted, make_clip, make_workload

SIZE = (500, 375)
PREDICT, SERIAL, READY = "predict", "serial", "CLIP, pixels ready"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table and write the record."""
    options = parse(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    setting = Setting(device, "float32", options.threads, options.rounds)
    setting.begin()
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), options.images)
        size = statistics.mean(Path(file).stat().st_size for file in files)
        seconds = interleave(make_ways(files, options.batch, options.classes), setting, "rounds")
    median = {name: statistics.median(times) for name, times in seconds.items()}
    record = {
        "images_per_second": {name: options.images / each for name, each in median.items()},
        "ratio_to_serial": {name: median[SERIAL] / each for name, each in median.items()},
        "ratio_to_clip": {name: median[READY] / each for name, each in median.items()},
        "all_seconds": seconds,
        "mean_file_bytes": size,
        **{name: getattr(options, name) for name in ("images", "batch", "classes", "rounds")},
        **provenance("pillow", "numpy"),
    }
    print(table(record))
    with whole_file(options.output / "predict.json") as fresh:
        fresh.write_text(to_json(record))
    print(f"Written to {options.output / 'predict.json'}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch (default: its own)")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks"))
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


def make_ways(files: list[str], batch: int, classes: int) -> dict[str, Callable[[], None]]:
    """What is compared; each call takes all files once and ends when the results are on the host."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
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


def table(record: dict[str, Any]) -> str:
    """The figures as text, with versions and hardware."""
    lines = [f"{'':20}{'images/s':>10}{'to serial':>12}{'to CLIP':>10}"]
    for name, rate in record["images_per_second"].items():
        ratios = f"{record['ratio_to_serial'][name]:>12.2f}{record['ratio_to_clip'][name]:>10.2f}"
        lines.append(f"{name:20}{rate:>10.1f}{ratios}")
    lines.append(", ".join(f"{name} {version}" for name, version in record["versions"].items()))
    lines.append(", ".join(f"{name} {value}" for name, value in record["hardware"].items()))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
