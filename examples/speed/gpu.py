"""What a GPU does in training: the kernels and waits of a step, and epochs of 1,000 classes with 16 images each.

    python examples/speed/gpu.py [--sizes 50x4 100x32 1000x32] [--images 16000]
    python examples/speed/step.py --device cuda --dtype bfloat16 --block 10 --ways savings-bf16 savings plain lora

ViT-B/16 with random weights under bfloat16 autocast, as `accelerate launch --mixed_precision bf16` runs it; an epoch
reads JPEG files with augmentation, or caches images without it. `step.py` times the steps themselves. Prints tables
and writes gpu.json.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm
from transformers import CLIPImageProcessorPil, TrainerCallback

from anprompt_peft.data import ClipTransform, RGBImage
from anprompt_peft.files import to_json
from anprompt_peft.training import ANPromptTrainer, ANPromptTrainingArguments
from fresh import Row
from harness import Setting, parser_for, peak_memory_gb, positive, read_setting, run, spread, synchronize
from workload import Size, add_step_options, make_adapted, make_clip, make_step, make_workload

FILES = 500
PHOTO = (500, 375)


def main(arguments: list[str] | None = None) -> None:
    """Measure steps of every size, then epochs."""
    options, setting = parse(arguments)
    jobs: list[Size | str] = [*options.sizes, *(options.epochs_from if options.images else [])]

    def measure(job: Size | str) -> list[Row]:
        rows = epochs(job, options, setting) if isinstance(job, str) else steps(job, options, setting)
        print(f"\n{to_json(rows)}", flush=True)  # a machine may be taken away before the end
        return rows

    run("gpu", options, setting, jobs, measure)


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, Setting]:
    """Read the command line."""
    parser = parser_for("gpu", __doc__, dtype="bfloat16", steps=1, block=1)
    add_step_options(parser, "50x4 100x32 1000x32")
    parser.add_argument("--images", type=int, default=16000, help="of the epochs, 0 for none (default 16000)")
    parser.add_argument("--epochs-from", nargs="+", choices=["JPEG", "cached"], default=["JPEG", "cached"])
    parser.add_argument("--epochs", type=positive, default=5, help="from JPEG files and from the cache (default 5)")
    options = parser.parse_args(arguments)
    return options, read_setting(parser, options)


def steps(size: Size, options: argparse.Namespace, setting: Setting) -> list[Row]:
    """The third step of each way under the profiler, and the fourth with waiting forbidden."""
    rows = []
    for way in options.ways:
        step = make_step(way, size, setting.device, setting.dtype, options.former)
        step()
        step()
        row = {"classes x batch x tokens x pixels": str(size), "way": way, **profiled(step, setting.device)}
        rows.append({**row, "waits": waits(step, setting.device)})
    return rows


def profiled(step: Callable[[], Any], device: str) -> Row:
    """Kernels of one step: how many, how long the device is busy, the longest ones, and which attention ran."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as trace:
        step()
        synchronize(device)
    events = trace.events()
    kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    busy: Counter[str] = Counter()
    for event in kernels:
        busy[event.name] += event.device_time / 1000
    attention = {event.name for event in events if event.name.startswith("aten::_scaled_dot_product")}
    return {
        "kernels": len(kernels),
        "busy ms": float(sum(busy.values())),
        "longest, ms": "; ".join(f"{name[:40]} {value:.2f}" for name, value in busy.most_common(5)),
        "attention": ", ".join(sorted(attention)),
    }


def waits(step: Callable[[], Any], device: str) -> str | None:
    """The first operation of a step for which the host waits for the device, `None` if there is none."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return str(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def epochs(source: str, options: argparse.Namespace, setting: Setting) -> list[Row]:
    """Train on 1,000 classes from JPEG files with augmentation, or without it and with cached images."""
    classes = min(1000, options.images)
    work = make_workload(classes, 1)
    on_gpu = setting.device == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), min(FILES, options.images))
        rows = range(options.images)
        features = Features({"image": RGBImage(), "label": ClassLabel(names=work.class_names)})
        images = [files[row % len(files)] for row in rows]
        dataset = Dataset.from_dict({"image": images, "label": [row % classes for row in rows]}, features=features)
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        model = make_adapted(work.to(setting.device), make_clip(dtype="bfloat16"))
        if source == "cached":
            model.set_image_cache(Path(folder) / "cache", max_bytes=60 * 10**9)
        arguments = ANPromptTrainingArguments(
            str(Path(folder) / "out"),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=min(32, options.images),
            bf16=on_gpu,
            use_cpu=not on_gpu,
            dataloader_num_workers=min(16, os.cpu_count() or 1) if on_gpu else 0,
            dataloader_persistent_workers=on_gpu,
            accelerator_config={"non_blocking": True},
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        transform = ClipTransform(CLIPImageProcessorPil(), augment=source == "JPEG")
        trainer = ANPromptTrainer(model, arguments, train_dataset=transform.apply(dataset))
        clock = Clock(setting.device)
        trainer.add_callback(clock)
        setup = time.perf_counter() - start
        trainer.train()
    first, *further = (after - before for before, after in itertools.pairwise(clock.times))
    return [
        {
            "images": options.images,
            "from": source,
            "s set-up": setup,
            "s first epoch": first,
            "s each further epoch": spread(further) if further else None,
            "s in all": clock.times[-1] - start,
            "GB at the peak": peak_memory_gb(setting.device),
        }
    ]


def make_files(folder: Path, count: int) -> list[str]:
    """JPEG files of smooth colours with some noise, so that they are about as large as photographs."""
    rng = np.random.default_rng(0)
    files = [str(folder / f"{number:05}.jpg") for number in range(count)]
    for file in tqdm(files, desc="making files", unit="image"):
        colours = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(PHOTO)
        noisy = np.asarray(colours) + rng.normal(0, 12, (PHOTO[1], PHOTO[0], 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=90)
    return files


class Clock(TrainerCallback):
    """Records when training begins and when each epoch ends."""

    def __init__(self, device: str) -> None:
        self.device, self.times = device, list[float]()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Record the time."""
        self.times.append(time.perf_counter())

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """Record the time when the device has done what was asked of it."""
        synchronize(self.device)
        self.times.append(time.perf_counter())


if __name__ == "__main__":
    main()
