"""What training costs on a GPU: steps, their profile, and an epoch of 1,000 classes with 16 images each.

    python benchmarks/gpu.py [--sizes 50x4 100x32 1000x32] [--images 16000] [--no-compile]

ViT-B/16 with random weights under bfloat16 autocast, as `accelerate launch --mixed_precision bf16` runs it; ways named
"bfloat16 weights" also hold the frozen CLIP in bfloat16. Ways take turns in blocks of steps between which nothing
waits for the device, so that a block is what training takes. Memory is the peak of tensors of each way alone. The
share is of the best rate of a plain bfloat16 product in the same process. Takes less than ten minutes on an H100;
prints tables and writes gpu.json.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Features
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPImageProcessorPil, CLIPModel, TrainerCallback

from anprompt_peft.data import ClipTransform, RGBImage
from anprompt_peft.fast import Savings
from anprompt_peft.files import to_json
from anprompt_peft.training import ANPromptTrainer, ANPromptTrainingArguments
from measuring import (
    Setting,
    gemm_peak,
    interleave,
    operations,
    parser_for,
    peak_memory_gb,
    positive,
    ratios,
    read_setting,
    spread,
)
from measuring import size as read_size
from predict import make_files
from reporting import run, table, with_range
from ways import BFLOAT16, LORA, LORA_BFLOAT16, OURS_BFLOAT16, PLAIN, SAVINGS, with_savings
from workload import Workload, lora_step, make_adapted, make_clip, make_workload, train_step

COMPILED = f"{OURS_BFLOAT16}, compiled"
CHUNKED, HALF = f"500 texts at a time, {BFLOAT16}", "float16"
STEP_COLUMNS = ["classes, batch", "way", "ms per step", "times ours", "GB at the peak", "TFLOP", "of GEMM", "host ms"]
EPOCH_COLUMNS = ["images", "s set-up", "s first epoch", "s each further epoch", "GB at the peak"]
FILES = 500
PLAIN_CLASSES = 100


def main(arguments: list[str] | None = None) -> None:
    """Measure steps of every size, then epochs."""
    options, setting = parse(arguments)
    jobs: list[Any] = [*options.sizes, *(options.epochs_from if options.images else [])]

    def measure(job: Any) -> dict[str, Any]:
        if isinstance(job, str):
            row = {"epochs": job, **measure_epochs(job, options, setting)}
        else:
            row = {"size": job, **measure_steps(job, options, setting)}
        print(f"\n{job}: {to_json(row)}", flush=True)  # a machine may be taken away before the end
        return row

    run("gpu", options, setting, jobs, measure, report)


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, Setting]:
    """Read the command line."""
    parser = parser_for("gpu", __doc__, dtype="bfloat16")
    parser.add_argument("--sizes", nargs="*", type=read_size, default=[(50, 4), (100, 32), (1000, 32)], metavar="CxB")
    parser.add_argument("--images", type=int, default=16000, help="of the epochs, 0 for none (default 16000)")
    parser.add_argument("--epochs-from", nargs="+", choices=["JPEG", "cached"], default=["JPEG", "cached"])
    parser.add_argument("--epochs", type=positive, default=5, help="from JPEG files and from the cache (default 5)")
    parser.add_argument("--block", type=positive, default=10, help="steps between which nothing waits (default 10)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes a minute each")
    options = parser.parse_args(arguments)
    return options, read_setting(parser, options)


def measure_steps(of: tuple[int, int], options: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """Everything about the steps of one size."""
    work, clip = make_workload(*of).to(setting.device), make_clip().to(setting.device)
    steps, memory, first = {}, {}, {}
    for way in ways_for(of[0], options):
        gc.collect()
        before = _reset_memory(setting.device)
        step = make_step(way, clip, work, setting.dtype)
        start = time.perf_counter()
        step()
        first[way] = time.perf_counter() - start
        step()
        steps[way], memory[way] = step, peak_memory_gb(setting.device) - before
    host: dict[str, list[float]] = {way: [] for way in steps}

    def block(way: str) -> Callable[[], None]:
        def run() -> None:
            start = time.perf_counter()
            for _ in range(options.block):
                steps[way]()
            host[way].append((time.perf_counter() - start) / options.block)

        return run

    taken = interleave({way: block(way) for way in steps}, setting, f"{of[0]} classes, batch {of[1]}")
    seconds = {way: [each / options.block for each in times] for way, times in taken.items()}
    counts, peak = {way: operations(step) for way, step in steps.items() if way != COMPILED}, gemm_peak(setting)
    return {
        "seconds": {way: spread(each) for way, each in seconds.items()},
        "host_seconds": {way: spread(each[1:]) for way, each in host.items()},
        "first_step_seconds": first,
        "times_ours": {way: ratios(each, seconds[OURS_BFLOAT16]) for way, each in seconds.items()},
        "peak_memory_gb": memory,
        "operations": counts,
        "gemm_peak": peak,
        "waits": {way: waits(steps[way], setting.device) for way in (SAVINGS, OURS_BFLOAT16)},
        "profile": profiled(steps[OURS_BFLOAT16], setting.device),
    }


def ways_for(classes: int, options: argparse.Namespace) -> list[str]:
    """What is compared; the plain path and texts in chunks where they make sense."""
    ways = [OURS_BFLOAT16, SAVINGS, LORA, LORA_BFLOAT16]
    ways += [HALF] if options.device == "cuda" else []
    ways += [] if options.no_compile else [COMPILED]
    return [*ways, *([PLAIN] if classes <= PLAIN_CLASSES else [CHUNKED])]


def make_step(way: str, clip: CLIPModel, work: Workload, dtype: str) -> Callable[[], None]:
    """The step of a way, with a model of its own."""
    clip = copy.deepcopy(clip).to(torch.bfloat16 if BFLOAT16 in way else torch.float32)
    if way.startswith(LORA):
        return lora_step(work, dtype, clip)
    model = make_adapted(work, clip, random_targets=True)
    kinds = {PLAIN: Savings.none(), CHUNKED: Savings(text_chunk=500)}
    run = torch.compile(model) if way == COMPILED else model
    return with_savings(kinds.get(way, Savings()), model, train_step(run, work, HALF if way == HALF else dtype))


def waits(step: Callable[[], None], device: str) -> str | None:
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


def profiled(step: Callable[[], None], device: str) -> dict[str, Any]:
    """Kernels of one step: how many, how long the device is busy, the longest ones, and which attention ran."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as trace:
        step()
        _synchronize(device)
    events = trace.events()
    kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    busy = Counter({event.name: 0.0 for event in kernels})
    for event in kernels:
        busy[event.name] += event.device_time / 1000
    attention = Counter(event.name for event in events if event.name.startswith("aten::_scaled_dot_product"))
    return {
        "kernels": len(kernels),
        "busy_ms": sum(busy.values()),
        "longest_ms": {name[:90]: value for name, value in busy.most_common(12)},
        "attention": dict(attention),
    }


def measure_epochs(source: str, options: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """Train on 1,000 classes from JPEG files with augmentation, or without it and with cached images."""
    classes = min(1000, options.images)
    work = make_workload(classes, 1)
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), min(FILES, options.images))
        rows = range(options.images)
        features = Features({"image": RGBImage(), "label": ClassLabel(names=work.class_names)})
        images = [files[row % len(files)] for row in rows]
        dataset = Dataset.from_dict({"image": images, "label": [row % classes for row in rows]}, features=features)
        _reset_memory(setting.device)
        start = time.perf_counter()
        model = make_adapted(work.to(setting.device), make_clip(dtype="bfloat16"))
        if source == "cached":
            model.set_image_cache(Path(folder) / "cache", max_bytes=60 * 10**9)
        arguments = ANPromptTrainingArguments(
            str(Path(folder) / "out"),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=min(32, options.images),
            bf16=setting.device == "cuda",
            use_cpu=setting.device == "cpu",
            dataloader_num_workers=min(16, os.cpu_count() or 1) if setting.device == "cuda" else 0,
            dataloader_persistent_workers=setting.device == "cuda",
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
    seconds = [after - before for before, after in itertools.pairwise(clock.times)]
    return {
        "images": options.images,
        "setup_seconds": setup,
        "all_epochs_seconds": clock.times[-1] - start,
        "epoch_seconds": seconds,
        "peak_memory_gb": peak_memory_gb(setting.device),
    }


class Clock(TrainerCallback):
    """Notes when training begins and when each epoch ends."""

    def __init__(self, device: str) -> None:
        self.device, self.times = device, list[float]()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the time when the device has done what was asked of it."""
        _synchronize(self.device)
        self.times.append(time.perf_counter())


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _reset_memory(device: str) -> float:
    """Start a new peak; return the GB that are held already."""
    if device != "cuda":
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / 1e9


def report(record: dict[str, Any]) -> str:
    """The tables."""
    steps, epochs, notes = [], [], []
    for row in record["rows"]:
        if "epochs" in row:
            first, *further = row["epoch_seconds"]
            each = with_range(spread(further), ".1f") if further else ""
            name = f"{row['images']:,}, {row['epochs']}"
            epochs.append([name, f"{row['setup_seconds']:.1f}", f"{first:.1f}", each, f"{row['peak_memory_gb']:.1f}"])
            continue
        name = "{}, {}".format(*row["size"])
        for way, taken in row["seconds"].items():
            count = row["operations"].get(way)
            rate = f"{count / taken['median'] / row['gemm_peak']:.0%}" if count else ""
            steps.append(
                [
                    name,
                    way,
                    with_range({key: 1000 * value for key, value in taken.items()}, ".1f"),
                    with_range(row["times_ours"][way]),
                    f"{row['peak_memory_gb'][way]:.2f}",
                    f"{count / 1e12:.2f}" if count else "",
                    rate,
                    f"{1000 * row['host_seconds'][way]['median']:.1f}",
                ]
            )
        seen = row["profile"]
        notes.append(
            f"{name}: {row['gemm_peak'] / 1e12:.1f} TFLOP/s of GEMM; a step launches {seen['kernels']} kernels, which "
            f"keep the device busy for {seen['busy_ms']:.1f} ms; attention: {', '.join(seen['attention'])}; waits: "
            f"{row['waits'][OURS_BFLOAT16] or 'none'}"
        )
    return "\n\n".join([table(STEP_COLUMNS, steps), "\n".join(notes), table(EPOCH_COLUMNS, epochs)])


if __name__ == "__main__":
    main()
