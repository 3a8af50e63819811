"""Images per second on one core: decoding, CLIP's image processor, and the transform that equals it.

    OMP_NUM_THREADS=1 python benchmarks/transform.py [--rounds 40]

A 500 x 375 JPEG becomes 224 x 224 pixel values. All kinds take turns within one run, in batches; medians of the
processor time are printed as JSON. If OpenCV is installed, its decoder is one of the kinds.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features
from PIL import Image
from sklearn.datasets import load_sample_images
from tqdm import tqdm
from transformers import CLIPImageProcessorPil

from anprompt_peft.data import ClipTransform, RGBImage
from anprompt_peft.files import to_json
from anprompt_peft.provenance import provenance

BATCH = 16


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="batches of each kind (default 40)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    jpeg = io.BytesIO()
    Image.fromarray(load_sample_images().images[0]).resize((500, 375)).save(jpeg, "JPEG", quality=90)
    values = [{"bytes": jpeg.getvalue(), "path": None}] * BATCH
    data = Dataset.from_dict({"image": values}, features=Features({"image": RGBImage()}))
    images = data[:]["image"]
    processor = CLIPImageProcessorPil()
    evaluation, training = ClipTransform(processor), ClipTransform(processor, augment=True)
    kinds: dict[str, Callable[[], Any]] = {
        "decode": lambda: data[:],
        "processor": lambda: processor(images, return_tensors="pt"),
        "transform": lambda: evaluation({"image": images}),
        "transform, augmenting": lambda: training({"image": images}),
        "decode and transform": lambda: data.with_transform(evaluation)[:],
    }
    if find_spec("cv2") is not None:
        cv2, content = import_module("cv2"), np.frombuffer(jpeg.getvalue(), np.uint8)
        kinds["decode, OpenCV"] = lambda: [cv2.imdecode(content, cv2.IMREAD_COLOR_RGB) for _ in range(BATCH)]
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in tqdm(range(rounds)):
        for kind, run in kinds.items():
            started = time.process_time()
            run()
            seconds[kind].append(time.process_time() - started)
    medians = {kind: statistics.median(taken) for kind, taken in seconds.items()}
    record = {
        "images_per_second": {kind: round(BATCH / median, 1) for kind, median in medians.items()},
        "processor_over_transform": round(medians["processor"] / medians["transform"], 2),
        "rounds": rounds,
        **provenance("pillow", "numpy"),
    }
    print(to_json(record), end="")


if __name__ == "__main__":
    main()
